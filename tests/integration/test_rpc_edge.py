"""The edge of a gRPC server, over a real connection: errors, deadlines, rules, admission, drain."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from carrel.errors import (
    CancelledRunError,
    CarrelError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    LimitExceededError,
    NotImplementedYetError,
    QuotaError,
    ScopeError,
    StartupError,
    Status,
    ThreadBusyError,
    TicketError,
    UnknownRunError,
)
from carrel.v1 import bridge_pb2 as pb
from carrel.v1 import bridge_pb2_grpc, emitter_pb2, emitter_pb2_grpc, events_pb2
from servicekit.identity.principals import ServicePrincipal
from servicekit.rpc.channel import open_channel, responses
from servicekit.rpc.context import current_principal, remaining_deadline_s
from servicekit.rpc.server import RpcServer, Service
from tests.conftest import Eventually
from tests.support.identity import identity, run_context, service_context, session_context
from tests.support.rpc import serving, shared_settings


class Bridge(bridge_pb2_grpc.BridgeServiceServicer):
    """Does what the test says: `act` is awaited in every call."""

    def __init__(self, act: Any = None) -> None:
        self._act = act
        self.seen: list[Any] = []
        self.draining: asyncio.Event | None = None
        self.closed = 0

    async def Revoke(self, request: pb.BridgeServiceRevokeRequest, context: Any) -> pb.BridgeServiceRevokeResponse:
        return pb.BridgeServiceRevokeResponse()

    async def ResolveRun(self, request: pb.ResolveRunRequest, context: Any) -> pb.ResolveRunResponse:
        self.seen.append((current_principal(), remaining_deadline_s()))
        if self._act is not None:
            await self._act()
        return pb.ResolveRunResponse(run_id=request.run_id)

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.GetStateResponse:
        return pb.GetStateResponse()

    async def ReadEvents(self, request: pb.ReadEventsRequest, context: Any) -> AsyncIterator[pb.ReadEventsResponse]:
        self.seen.append(current_principal())
        try:
            for offset in range(1, 4):
                yield pb.ReadEventsResponse(through=events_pb2.Position(offset=offset))
            if self._act is not None:
                await self._act()
        finally:
            self.closed += 1

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Any
    ) -> AsyncIterator[pb.AttachResponse]:
        async for _ in request_iterator:
            yield pb.AttachResponse()
            if self._act is not None:
                await self._act()
            if self.draining is not None:
                await self.draining.wait()
                yield pb.AttachResponse(items=[pb.AttachItem(bye=pb.AttachBye(reason="drain"))])
                return

    async def Publish(
        self, request_iterator: AsyncIterator[pb.PublishRequest], context: Any
    ) -> AsyncIterator[pb.PublishResponse]:
        async for request in request_iterator:
            yield pb.PublishResponse(acks=[events_pb2.ProducerAck(through=len(request.items))])


def bridge(act: Any = None) -> tuple[Bridge, list[Service]]:
    servicer = Bridge(act)
    return servicer, [(bridge_pb2_grpc.add_BridgeServiceServicer_to_server, servicer, "carrel.v1.BridgeService")]


def resolve(run: str = "run-1") -> pb.ResolveRunRequest:
    return pb.ResolveRunRequest(context=session_context(), run_id=run)


def raising(error: BaseException) -> Any:
    async def act() -> None:
        raise error

    return act


async def once(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def test_handler_sees_its_verified_caller_and_the_time_left() -> None:
    servicer, services = bridge()
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        assert (await stub.ResolveRun(resolve(), timeout=30)).run_id == "run-1"
    ((principal, remaining),) = servicer.seen
    assert principal.user_id == "alice"
    assert remaining == pytest.approx(30, abs=5)


@pytest.mark.parametrize(
    "error",
    [
        UnknownRunError("the user has no such run", advice="list the runs"),
        ThreadBusyError("the thread has a run", retry_after_s=2.0),
        QuotaError("no space", limit="artifact_bytes", limit_value=10, use=11),
        CancelledRunError("cancelled"),
        InvalidRequestError("wrong", fields={"run_id": "is odd"}),
    ],
)
async def test_error_of_the_tree_arrives_as_the_same_error(error: CarrelError) -> None:
    _, services = bridge(raising(error))
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        with pytest.raises(type(error)) as unary:
            await stub.ResolveRun(resolve())
        with pytest.raises(type(error)) as stream:
            async for _ in responses(stub.ReadEvents(pb.ReadEventsRequest(context=session_context()))):
                pass
        with pytest.raises(type(error)) as bidi:
            async for _ in responses(stub.Attach(once(pb.AttachRequest(context=session_context())))):
                pass
    for caught in (unary, stream, bidi):
        assert caught.value.to_dict() == error.to_dict()


async def test_plain_grpc_clients_get_status_and_details() -> None:
    _, services = bridge(raising(UnknownRunError("no such run")))
    async with serving(services) as rpc, aio.insecure_channel(rpc.address) as plain:
        with pytest.raises(aio.AioRpcError) as caught:
            await bridge_pb2_grpc.BridgeServiceStub(plain).ResolveRun(resolve(), timeout=15)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no such run"
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata())


async def test_unexpected_exception_is_logged_with_an_id_and_leaks_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, services = bridge(raising(ZeroDivisionError("secret of the house")))
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        with pytest.raises(InternalError) as unary:
            await stub.ResolveRun(resolve())
        with pytest.raises(InternalError) as stream:
            async for _ in responses(stub.ReadEvents(pb.ReadEventsRequest(context=session_context()))):
                pass
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 2
    for caught, record in zip((unary, stream), logged, strict=True):
        assert "secret" not in str(caught.value.to_dict())
        assert record.fields["error_id"] == caught.value.details["error_id"]  # type: ignore[attr-defined]  # ours
        assert record.exc_info is not None


async def test_rpc_that_is_not_written_yet_says_so() -> None:
    class Empty(emitter_pb2_grpc.EmitterServiceServicer):
        pass

    services = [
        (emitter_pb2_grpc.add_EmitterServiceServicer_to_server, Empty(), "carrel.v1.EmitterService"),  # type: ignore[abstract]  # the point
    ]
    async with serving(services) as rpc:
        stub = emitter_pb2_grpc.EmitterServiceStub(rpc.channel)
        with pytest.raises(NotImplementedYetError):
            await stub.GetEmitterStatistics(emitter_pb2.GetEmitterStatisticsRequest(context=service_context()))


async def test_unary_call_without_deadline_is_refused_with_advice() -> None:
    _, services = bridge()
    async with serving(services) as rpc, aio.insecure_channel(rpc.address) as plain:
        stub = bridge_pb2_grpc.BridgeServiceStub(plain)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ResolveRun(resolve())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # Streams may be long.
        answers = [r async for r in stub.ReadEvents(pb.ReadEventsRequest(context=session_context()))]
    assert len(answers) == 3


async def test_rules_of_the_contract_are_held_and_each_broken_one_named() -> None:
    servicer, services = bridge()
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        with pytest.raises(InvalidRequestError) as caught:
            await stub.ResolveRun(resolve("a b"))
        assert list(caught.value.fields) == ["run_id"]
        request = pb.ReadEventsRequest(context=session_context(), position=events_pb2.Position(epoch="e" * 65))
        request.context.websocket_client_id = "a b"
        with pytest.raises(InvalidRequestError) as both:
            async for _ in responses(stub.ReadEvents(request)):
                pass
        assert set(both.value.fields) == {"context.websocket_client_id", "position.epoch"}
        hello = pb.AttachRequest(context=service_context(), hello=pb.AttachHello(gateway_id=""))
        with pytest.raises(InvalidRequestError):
            async for _ in responses(stub.Attach(once(hello))):
                pass
    assert servicer.seen == []


async def test_only_the_first_message_of_a_shared_stream_can_break_it() -> None:
    _, services = bridge()
    good = pb.AttachRequest(context=service_context(), hello=pb.AttachHello(gateway_id="g"))
    bad = pb.AttachRequest(subscribe=pb.Subscribe(generation=0))
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        answers = [answer async for answer in responses(stub.Attach(once(good, bad, good)))]
    assert len(answers) == 3


async def test_event_streams_are_left_to_their_handlers() -> None:
    _, services = bridge()
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        bad = pb.PublishRequest(items=[events_pb2.ProducerEvents(producer_id="")])
        answers = [answer async for answer in responses(stub.Publish(once(bad)))]
    assert answers[0].acks[0].through == 1


async def test_missing_and_wrong_identities_are_told_apart() -> None:
    servicer, services = bridge()
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        with pytest.raises(TicketError, match="no context") as nothing:
            await stub.ResolveRun(pb.ResolveRunRequest(run_id="run-1"))
        with pytest.raises(ScopeError) as wrong:
            await stub.GetState(pb.GetStateRequest(context=session_context()))
        with pytest.raises(CarrelError) as powerless:
            await stub.GetState(pb.GetStateRequest(context=service_context(permissions=["other"])))
        await stub.GetState(pb.GetStateRequest(context=service_context()))
    assert nothing.value.status is Status.UNAUTHENTICATED
    assert wrong.value.status is Status.PERMISSION_DENIED
    assert powerless.value.code == "PERMISSION_DENIED"
    assert servicer.seen == []


async def test_stream_items_have_no_caller_but_the_one_that_the_handler_verifies() -> None:
    async def act() -> None:
        with pytest.raises(CarrelError, match="no caller"):
            current_principal()

    _, services = bridge(act)
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        call = stub.Attach(once(pb.AttachRequest(context=service_context())))
        assert len([answer async for answer in responses(call)]) == 1


async def test_full_server_refuses_more_and_still_answers_health(eventually: Eventually) -> None:
    release = asyncio.Event()
    servicer, services = bridge(release.wait)
    async with serving(services, settings=shared_settings(max_concurrent_calls=2)) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        open_calls = [asyncio.ensure_future(stub.ResolveRun(resolve(), timeout=10)) for _ in range(2)]
        await eventually(lambda: rpc.server.gate.active == 2)
        request = pb.ReadEventsRequest(context=session_context())
        with pytest.raises(LimitExceededError) as caught:
            async for _ in responses(stub.ReadEvents(request)):
                pass
        assert caught.value.limit == "max_concurrent_calls"
        assert await health(rpc.channel) == "SERVING"
        release.set()
        await asyncio.gather(*open_calls)
        await eventually(lambda: rpc.server.gate.active == 0)
        await stub.ResolveRun(resolve())
        assert rpc.server.gate.refused == 1
    assert len(servicer.seen) == 3


async def test_client_that_leaves_ends_its_stream_at_once(eventually: Eventually) -> None:
    servicer, services = bridge(asyncio.Event().wait)
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        call = stub.ReadEvents(pb.ReadEventsRequest(context=session_context()))
        await call.read()
        call.cancel()
        await eventually(lambda: servicer.closed == 1)
        await eventually(lambda: rpc.server.gate.active == 0)


async def test_drain_lets_streams_end_with_a_position_and_calls_finish(eventually: Eventually) -> None:
    release = asyncio.Event()
    servicer, services = bridge()
    async with serving(services, settings=shared_settings(drain_seconds=20)) as rpc:
        servicer.draining = rpc.server.draining
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        stream = responses(stub.Attach(once(pb.AttachRequest(context=service_context()))))
        await anext(stream)
        servicer._act = release.wait
        call = asyncio.ensure_future(stub.ResolveRun(resolve(), timeout=10))
        await eventually(lambda: rpc.server.gate.active == 2)
        began = asyncio.get_running_loop().time()
        drain = asyncio.ensure_future(rpc.server.drain())
        last = [answer async for answer in stream]
        assert last[-1].items[0].bye.reason == "drain"
        release.set()
        assert (await call).run_id == "run-1"
        await drain
        # The whole grace is not burnt on what has ended.
        assert asyncio.get_running_loop().time() - began < 5
        await rpc.server.drain()


async def test_drain_cuts_off_what_does_not_end_when_it_is_hastened(eventually: Eventually) -> None:
    _, services = bridge(asyncio.Event().wait)
    async with serving(services, settings=shared_settings(drain_seconds=60)) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        call = asyncio.ensure_future(stub.ResolveRun(resolve(), timeout=50))
        await eventually(lambda: rpc.server.gate.active == 1)
        drain = asyncio.ensure_future(rpc.server.drain())
        await eventually(rpc.server.draining.is_set)
        rpc.server.hasten()
        await asyncio.wait_for(drain, 5)
        with pytest.raises(CarrelError):
            await call


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _starting() -> RpcServer:
    """One whose start takes until its readiness check is given up, while it serves already."""
    server = RpcServer("127.0.0.1:0", bridge()[1], identity().verifier(), shared_settings())
    server.readiness.add("what never comes", asyncio.Event().wait)
    return server


async def test_a_start_that_is_cancelled_leaves_nothing_that_listens(eventually: Eventually) -> None:
    server = _starting()
    start = asyncio.create_task(server.start())
    await eventually(lambda: server.port and _listens(server.port))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not _listens(server.port)
    await server.drain()


async def test_a_drain_during_the_start_ends_the_server(eventually: Eventually) -> None:
    server = _starting()
    start = asyncio.create_task(server.start())
    await eventually(lambda: server.port)
    await server.drain()
    await start
    assert not _listens(server.port)
    assert not server.readiness.ready


async def test_a_health_port_that_is_taken_leaves_the_servers_own_address_free(free_port: Callable[[], int]) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = shared_settings(tls={"health_listen": f"127.0.0.1:{taken.getsockname()[1]}"})
        with pytest.raises(StartupError, match="health checks"):
            await RpcServer(f"127.0.0.1:{port}", bridge()[1], identity().verifier(), settings).start()
    async with RpcServer(f"127.0.0.1:{port}", bridge()[1], identity().verifier(), shared_settings()):
        assert _listens(port)


async def test_new_stream_on_a_draining_server_is_sent_elsewhere() -> None:
    _, services = bridge()
    async with serving(services) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        rpc.server.draining.set()
        with pytest.raises(DrainingError):
            async for _ in responses(stub.ReadEvents(pb.ReadEventsRequest(context=session_context()))):
                pass
        await stub.ResolveRun(resolve())


async def test_drain_before_the_start_is_legal() -> None:
    _, services = bridge()
    async with serving(services) as rpc:
        other = type(rpc.server)("127.0.0.1:0", services, rpc.server.verifier, shared_settings())
        await other.drain()
        await other.drain()


async def test_address_in_use_is_a_start_error_that_names_it() -> None:
    _, services = bridge()
    async with serving(services) as rpc:
        with pytest.raises(StartupError) as caught:
            async with serving(services, listen=rpc.address):
                pass
    assert rpc.address in caught.value.message
    assert "ss -ltnp" in caught.value.advice


async def test_unix_socket_serves_too(tmp_path: Path) -> None:
    _, services = bridge()
    async with serving(services, listen=f"unix:{tmp_path}/s") as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        assert (await stub.ResolveRun(resolve())).run_id == "run-1"


async def test_message_over_the_bound_is_refused() -> None:
    _, services = bridge()
    async with serving(services, settings=shared_settings(max_message_bytes=65536)) as rpc:
        big = resolve()
        big.context.agent_context.update({"x": "y" * 70_000})
        with pytest.raises(LimitExceededError):
            await bridge_pb2_grpc.BridgeServiceStub(rpc.channel).ResolveRun(big)


async def test_telemetry_sees_every_call_with_its_status(eventually: Eventually) -> None:
    seen: list[tuple[str, Status]] = []

    class Record:
        def call_started(self, method: str) -> None: ...

        def call_ended(self, method: str, status: Status, seconds: float) -> None:
            assert seconds >= 0
            seen.append((method.rpartition("/")[2], status))

    _, services = bridge()
    async with serving(services, telemetry=Record()) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)
        await stub.ResolveRun(resolve())
        with pytest.raises(TicketError):
            await stub.ResolveRun(pb.ResolveRunRequest())
        _ = [r async for r in stub.ReadEvents(pb.ReadEventsRequest(context=run_context()))]
        await eventually(lambda: len(seen) == 3)
    assert seen == [
        ("ResolveRun", Status.OK),
        ("ResolveRun", Status.UNAUTHENTICATED),
        ("ReadEvents", Status.OK),
    ]


async def test_reflection_lists_the_services_outside_production_only() -> None:
    _, services = bridge()
    async with serving(services) as rpc:
        assert "carrel.v1.BridgeService" in await reflected(rpc.channel)
    async with serving(services, settings=shared_settings(environment="production", tls={"mode": "mesh"})) as rpc:
        with pytest.raises(aio.AioRpcError) as caught:
            await reflected(rpc.channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_principal_of_a_service_reaches_the_handler() -> None:
    class State(Bridge):
        async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.GetStateResponse:
            principal = current_principal()
            assert isinstance(principal, ServicePrincipal)
            return pb.GetStateResponse(last_error=principal.service)

    services: list[Service] = [
        (bridge_pb2_grpc.add_BridgeServiceServicer_to_server, State(), "carrel.v1.BridgeService")
    ]
    async with serving(services) as rpc, open_channel(rpc.address) as channel:
        answer = await bridge_pb2_grpc.BridgeServiceStub(channel).GetState(
            pb.GetStateRequest(context=service_context("gateway"))
        )
    assert answer.last_error == "gateway"


async def health(channel: aio.Channel, name: str = "readiness") -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=15)
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return status


async def reflected(channel: aio.Channel) -> list[str]:
    from grpc_reflection.v1alpha import (
        reflection_pb2,
        reflection_pb2_grpc,
    )

    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(once(request), timeout=15)
    return [s.name for answer in [a async for a in call] for s in answer.list_services_response.service]
