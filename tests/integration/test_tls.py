"""TLS between services over real connections: who is let in, which names are insisted on, files that are replaced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.cli.authority import Authority, write_bundle, write_certificate
from carrel.errors import CarrelError, PermissionDeniedError, Status, UnavailableError
from carrel.v1 import bridge_pb2, bridge_pb2_grpc
from servicekit.health import LIVENESS, READINESS
from servicekit.rpc.channel import TlsChannel, open_channel, responses
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer, Service
from servicekit.tls.settings import TlsSettings
from tests.conftest import Eventually
from tests.support.certificates import DOMAIN, certificate_for, tls_of
from tests.support.identity import identity, service_context, session_context
from tests.support.rpc import shared_settings


class Bridge(bridge_pb2_grpc.BridgeServiceServicer):
    """Answers ``GetState``, and ``ReadEvents`` for as long as it is left."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = asyncio.Event()

    async def Revoke(
        self, request: bridge_pb2.BridgeServiceRevokeRequest, context: Any
    ) -> bridge_pb2.BridgeServiceRevokeResponse:
        return bridge_pb2.BridgeServiceRevokeResponse()

    async def GetState(self, request: Any, context: Any) -> bridge_pb2.GetStateResponse:
        self.calls += 1
        return bridge_pb2.GetStateResponse()

    async def Publish(self, request_iterator: Any, context: Any) -> AsyncIterator[bridge_pb2.PublishResponse]:
        for nothing in list[Any]():
            yield nothing

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[bridge_pb2.AttachResponse]:
        for nothing in list[Any]():
            yield nothing

    async def ResolveRun(self, request: Any, context: Any) -> bridge_pb2.ResolveRunResponse:
        raise NotImplementedError

    async def ReadEvents(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.ReadEventsResponse]:
        yield bridge_pb2.ReadEventsResponse()
        await self.go_on.wait()
        yield bridge_pb2.ReadEventsResponse()


@asynccontextmanager
async def serving_bridge(tls: TlsSettings, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[RpcServer, Bridge]]:
    bridge = Bridge()
    services: list[Service] = [(bridge_pb2_grpc.add_BridgeServiceServicer_to_server, bridge, "carrel.v1.BridgeService")]
    async with RpcServer(listen, services, identity().verifier(), shared_settings(tls=tls)) as server:
        yield server, bridge


async def ask(channel: aio.Channel, timeout: float = 15.0) -> None:
    stub: Any = bridge_pb2_grpc.BridgeServiceStub(channel)
    await stub.GetState(bridge_pb2.GetStateRequest(context=service_context()), timeout=timeout)


async def test_both_sides_are_known_by_their_certificates(tmp_path: Path) -> None:
    gateway = tls_of(certificate_for(tmp_path / "gateway", "gateway"), "gateway")
    async with serving_bridge(certificate_for(tmp_path / "bridge", "bridge")) as (server, bridge):
        async with open_channel(server.address, tls=gateway.to("bridge")) as channel:
            await ask(channel)
        assert bridge.calls == 1


async def test_whoever_shows_no_certificate_of_our_ca_is_not_talked_to(tmp_path: Path) -> None:
    stranger = Authority.new("stranger")
    foreign = certificate_for(
        tmp_path / "foreign", "gateway", signed_by=stranger, trusts=(Authority.load(_saved(tmp_path)), stranger)
    )
    async with serving_bridge(certificate_for(tmp_path / "bridge", "bridge")) as (server, bridge):
        roots = (tmp_path / "bridge" / "ca.crt").read_bytes()
        name = (("grpc.ssl_target_name_override", "bridge." + DOMAIN),)
        nameless = aio.secure_channel(server.address, grpc.ssl_channel_credentials(roots), options=name)
        for channel in (
            open_channel(server.address),
            open_channel(server.address, tls=tls_of(foreign).to("bridge")),
        ):
            async with channel:
                with pytest.raises(UnavailableError):
                    await ask(channel)
        async with nameless:
            with pytest.raises(aio.AioRpcError) as refused:
                await ask(nameless)
            assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert bridge.calls == 0


def _saved(tmp_path: Path) -> Path:
    from tests.support.certificates import authority

    authority().save(tmp_path / "authority")
    return tmp_path / "authority"


async def test_a_server_that_is_another_service_is_not_talked_to(tmp_path: Path) -> None:
    gateway = tls_of(certificate_for(tmp_path / "gateway", "gateway"))
    async with serving_bridge(certificate_for(tmp_path / "emitter", "emitter")) as (server, bridge):
        async with open_channel(server.address, tls=gateway.to("bridge")) as channel:
            with pytest.raises(UnavailableError):
                await ask(channel)
        assert bridge.calls == 0


@pytest.mark.parametrize("spiffe", ["", "spiffe://carrel.internal/stranger", "spiffe://elsewhere/gateway"])
async def test_a_certificate_of_our_ca_that_names_no_service_may_call_nothing(tmp_path: Path, spiffe: str) -> None:
    certificate = certificate_for(tmp_path / "caller", "gateway", spiffe=spiffe)
    assert certificate.cert
    assert certificate.key
    assert certificate.ca
    credentials = grpc.ssl_channel_credentials(
        certificate.ca.read_bytes(), certificate.key.read_bytes(), certificate.cert.read_bytes()
    )
    async with serving_bridge(certificate_for(tmp_path / "bridge", "bridge")) as (server, bridge):
        options = (("grpc.ssl_target_name_override", "bridge." + DOMAIN),)
        async with aio.secure_channel(server.address, credentials, options=options) as channel:
            with pytest.raises(aio.AioRpcError) as refused:
                await ask(channel)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert server.callers is not None
            assert server.callers.refused == {("unknown", "/carrel.v1.BridgeService/GetState"): 1}
            # Health is open to whoever has a certificate.
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=15)).status
        assert bridge.calls == 0


@pytest.mark.parametrize("how", ["list", "dns", "unix"])
async def test_the_name_insisted_on_is_the_services_whatever_was_dialled(tmp_path: Path, how: str) -> None:
    gateway = tls_of(certificate_for(tmp_path / "gateway", "gateway"))
    listen = f"unix:{tmp_path}/b.sock" if how == "unix" else "127.0.0.1:0"
    tls = certificate_for(tmp_path / "bridge", "bridge")
    async with serving_bridge(tls, listen) as (first, bridge), serving_bridge(tls) as (second, other):
        port = first.address.rpartition(":")[2]
        target = {
            "list": f"{first.address},{second.address}",
            "dns": f"dns:///localhost:{port}",
            "unix": first.address,
        }[how]
        async with open_channel(target, tls=gateway.to("bridge")) as channel:
            for _ in range(6):
                await ask(channel)
        assert bridge.calls + other.calls == 6
        async with Copies(target, "bridge", tls=gateway) as copies:
            for copy in await copies.wait_ready(5):
                await ask(copy.channel)


async def test_another_ca_comes_and_the_old_one_goes_while_calls_flow(tmp_path: Path, eventually: Eventually) -> None:
    old, new = Authority.new("old CA"), Authority.new("new CA")
    server_tls = certificate_for(tmp_path / "bridge", "bridge", signed_by=old)
    client_tls = certificate_for(tmp_path / "gateway", "gateway", signed_by=old)
    gateway = tls_of(client_tls)
    done, stop = 0, asyncio.Event()

    async def call_on(channel: aio.Channel) -> None:
        nonlocal done
        while not stop.is_set():
            await ask(channel)
            done += 1
            await asyncio.sleep(0.002)

    async def fresh(server: RpcServer) -> None:
        """A connection of its own for each call: whoever has the new files must get through to who has the old."""
        while not stop.is_set():
            async with open_channel(server.address, tls=gateway.to("bridge")) as channel:
                await ask(channel)

    async def several_calls() -> None:
        before = done
        await eventually(lambda: done > before + 20)
        await asyncio.sleep(1.1)  # the files are looked at once a second

    async with serving_bridge(server_tls) as (server, bridge):
        async with open_channel(server.address, tls=gateway.to("bridge")) as channel, asyncio.TaskGroup() as tasks:
            assert isinstance(channel, TlsChannel)
            former = channel.former
            stub: Any = bridge_pb2_grpc.BridgeServiceStub(channel)
            stream = aiter(responses(stub.ReadEvents(bridge_pb2.ReadEventsRequest(context=session_context()))))
            await anext(stream)
            for work in (call_on(channel), call_on(channel), fresh(server)):
                tasks.create_task(work)
            await several_calls()
            for folder in ("bridge", "gateway"):
                write_bundle(tmp_path / folder, [old.pem, new.pem])
                await several_calls()
            for folder in ("gateway", "bridge"):
                write_certificate(tmp_path / folder, *new.issue(folder, DOMAIN))
                await several_calls()
            for folder in ("bridge", "gateway"):
                write_bundle(tmp_path / folder, [new.pem])
                await several_calls()
            bridge.go_on.set()
            # The stream of before the change is still there, on the connection that it began on.
            await anext(stream)
            stop.set()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            # And with its last call gone, so is the old connection.
            await eventually(lambda: len(former) == 0)
        stranger = tls_of(certificate_for(tmp_path / "late", "gateway", signed_by=old, trusts=(old, new)))
        async with open_channel(server.address, tls=stranger.to("bridge")) as channel:
            with pytest.raises(UnavailableError):
                await ask(channel)


async def test_an_expired_certificate_is_refused_until_its_file_is_replaced(
    tmp_path: Path, eventually: Eventually
) -> None:
    gateway = tls_of(certificate_for(tmp_path / "gateway", "gateway"))
    tls = certificate_for(tmp_path / "bridge", "bridge", life=timedelta(seconds=3))
    async with serving_bridge(tls) as (server, _), open_channel(server.address, tls=gateway.to("bridge")) as first:
        await ask(first)
        await asyncio.sleep(3.1)
        await ask(first)  # a connection that is there goes on
        async with open_channel(server.address, tls=gateway.to("bridge")) as second:
            with pytest.raises(UnavailableError):
                await ask(second)
            _ = certificate_for(tmp_path / "bridge", "bridge")

            async def through() -> bool:
                try:
                    await ask(second)
                except CarrelError as error:
                    if error.status not in {Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED}:
                        raise
                    return False
                return True

            await eventually(through, within=15)


async def test_probes_without_tls_get_health_and_nothing_else(tmp_path: Path, free_port: Any) -> None:
    tls = certificate_for(tmp_path / "bridge", "bridge")
    probes = f"127.0.0.1:{free_port()}"
    async with serving_bridge(tls.model_copy(update={"health_listen": probes})) as (_, bridge):
        async with aio.insecure_channel(probes) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            for name in (LIVENESS, READINESS):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=15)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(aio.AioRpcError) as refused:
                await ask(channel)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert bridge.calls == 0


async def test_a_service_that_may_not_call_a_method_is_told_so(tmp_path: Path) -> None:
    agent_instance = tls_of(certificate_for(tmp_path / "agent", "agent_instance"))
    async with serving_bridge(certificate_for(tmp_path / "bridge", "bridge")) as (server, bridge):
        async with open_channel(server.address, tls=agent_instance.to("bridge")) as channel:
            with pytest.raises(PermissionDeniedError, match="agent_instance may not call GetState"):
                await ask(channel)
        assert bridge.calls == 0
