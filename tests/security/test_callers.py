"""The table of callers: every method of the contract against every identity that a certificate may carry, over TLS."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from grpc import aio

from carrel.errors import CarrelError, Status
from carrel.v1 import (
    agent_instance_pb2,
    agent_instance_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    emitter_pb2,
    emitter_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
)
from servicekit.identity.callers import METHOD_CALLERS
from servicekit.identity.scopes import METHOD_SCOPES
from servicekit.rpc.channel import open_channel, responses
from servicekit.rpc.server import RpcServer
from servicekit.telemetry.calls import observe_serving
from servicekit.telemetry.meters import Meters
from servicekit.tls.settings import IDENTITIES
from tests.support.certificates import certificate_for, tls_of
from tests.support.identity import identity
from tests.support.rpc import shared_settings

SERVICES: dict[str, tuple[Any, Any]] = {
    "execution": (execution_pb2, execution_pb2_grpc),
    "agent_instance": (agent_instance_pb2, agent_instance_pb2_grpc),
    "emitter": (emitter_pb2, emitter_pb2_grpc),
    "bridge": (bridge_pb2, bridge_pb2_grpc),
}
# Every edge there is: who connects to whom. DESIGN's list, and those who are no services.
EDGES = {
    "gateway": {"execution", "agent_instance", "bridge"},
    "execution": {"agent_instance", "emitter", "bridge"},
    "agent_instance": {"emitter"},
    "emitter": {"bridge"},
    "bridge": set[str](),
    "operator": set(SERVICES),
    "doctor": set(SERVICES),
    "client": {"execution", "emitter", "bridge"},
}


def _service(module: Any) -> Any:
    (service,) = module.DESCRIPTOR.services_by_name.values()
    return service


def test_every_method_is_in_the_table_and_the_table_keeps_to_the_edges() -> None:
    assert set(METHOD_CALLERS) == set(METHOD_SCOPES)
    by_package = {f"/{_service(module).full_name}/": name for name, (module, _) in SERVICES.items()}
    found: dict[str, set[str]] = {name: set() for name in IDENTITIES}
    for method, callers in METHOD_CALLERS.items():
        assert callers <= set(IDENTITIES)
        target = by_package[method[: method.rindex("/") + 1]]
        assert target not in callers
        for caller in callers:
            found[caller].add(target)
    assert found == EDGES


def test_what_a_compromised_service_cannot_reach() -> None:
    def reach(service: str) -> set[str]:
        return {method.rpartition("/")[2] for method, callers in METHOD_CALLERS.items() if service in callers}

    assert reach("bridge") == set()
    assert reach("emitter") == {"Publish", "ResolveRun"}
    assert reach("agent_instance") == {"Emit"}
    assert "Attach" not in reach("execution") | reach("client") | reach("operator") | reach("doctor")
    # Nobody but execution starts instances, and nobody but an operator revokes.
    assert [c for m, c in METHOD_CALLERS.items() if m.endswith("RunInstance")] == [{"execution"}]
    assert [c for m, c in METHOD_CALLERS.items() if m.endswith("RevokeUser")] == [{"operator"}]


async def _call(channel: aio.Channel, service: Any, method: Any, stubs: Any) -> CarrelError | None:
    kind = message_factory.GetMessageClass(method.input_type)
    stub = getattr(getattr(stubs, f"{service.name}Stub")(channel), method.name)
    try:
        if method.client_streaming:
            # As the services do it: the library loses the status of a refusal where it consumes an iterator.
            call = stub(timeout=5)
            with suppress(aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(kind())
            async for _ in responses(call):
                pass
        elif method.server_streaming:
            async for _ in responses(stub(kind(), timeout=5)):
                pass
        else:
            await stub(kind(), timeout=5)
    except CarrelError as error:
        return error
    return None


@pytest.mark.parametrize("name", SERVICES)
async def test_every_method_for_every_identity(tmp_path: Path, name: str) -> None:
    module, stubs = SERVICES[name]
    service = _service(module)
    # A servicer that answers UNIMPLEMENTED: whatever is let through gets as far as its ticket, which is missing.
    servicer = getattr(stubs, f"{service.name}Servicer")()
    add = getattr(stubs, f"add_{service.name}Servicer_to_server")
    settings = shared_settings(tls=certificate_for(tmp_path / "server", name))
    refused = 0
    async with RpcServer(
        "127.0.0.1:0", [(add, servicer, service.full_name)], identity().verifier(), settings
    ) as server:
        for caller in IDENTITIES:
            tls = tls_of(certificate_for(tmp_path / caller, caller), caller)
            async with open_channel(server.address, tls=tls.to(name)) as channel:
                for method in service.methods:
                    full = f"/{service.full_name}/{method.name}"
                    error = await _call(channel, service, method, stubs)
                    may_not_call = error is not None and "may not call" in error.message
                    assert may_not_call == (caller not in METHOD_CALLERS[full]), (caller, full, error)
                    if may_not_call:
                        assert error is not None
                        assert error.status is Status.PERMISSION_DENIED
                        refused += 1
        assert server.callers is not None
        assert server.callers.refused.total() == refused
        meters = Meters(name)
        observe_serving(meters, server)
        told = {family.metric.name: family.numbers for family in (await meters.collect()).families}
        by_caller = told["carrel_callers_refused_total"]
        # Of every name from the beginning, so that the first refusal is seen as a rise.
        assert {caller for (caller,) in by_caller} == {*IDENTITIES, "unknown"}
        assert sum(by_caller.values()) == refused
        assert by_caller["unknown",] == 0
        let_through = sum(
            len(METHOD_CALLERS[f"/{service.full_name}/{m.name}"] & set(IDENTITIES)) for m in service.methods
        )
        assert 0 < told["carrel_tickets_refused_total"]["missing",] <= let_through
