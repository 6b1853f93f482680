"""Every RPC of the contract, taken from its descriptors, refuses every kind of wrong ticket with the right status.

Streams of items (Emit, Publish, RunInstance, Attach) verify in their handlers and are held to this in their own tests.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import message_factory

from carrel.errors import CarrelError, Status
from carrel.v1 import (
    agent_instance_pb2,
    agent_instance_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    context_pb2,
    emitter_pb2,
    emitter_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
)
from servicekit.identity import tickets
from servicekit.identity.keys import generate_key
from servicekit.identity.principals import AUDIT_WRITE, OPERATOR_READ, OPERATOR_REVOKE, Scope
from servicekit.identity.scopes import METHOD_SCOPES
from servicekit.identity.tickets import TicketMinter
from servicekit.rpc.channel import responses
from servicekit.rpc.server import Service
from tests.support.identity import run_context, service_context, session_context
from tests.support.rpc import serving

MODULES: list[tuple[Any, Any]] = [
    (execution_pb2, execution_pb2_grpc),
    (agent_instance_pb2, agent_instance_pb2_grpc),
    (emitter_pb2, emitter_pb2_grpc),
    (bridge_pb2, bridge_pb2_grpc),
]
MAKE: dict[Scope, Callable[[], context_pb2.UserExecutionContext]] = {
    Scope.RUN: run_context,
    Scope.SESSION: session_context,
    Scope.SERVICE: lambda: service_context(permissions=(OPERATOR_READ, OPERATOR_REVOKE, AUDIT_WRITE)),
}


def _methods() -> list[Any]:
    found = []
    for module, grpc_module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            found += [
                pytest.param(service, method, grpc_module, id=f"{service.name}.{method.name}")
                for method in service.methods
                if not method.client_streaming
            ]
    return found


class Reached:
    """A servicer for any service that notes when a call gets through to it."""

    def __init__(self, service: Any) -> None:
        self.calls = 0
        for method in service.methods:
            setattr(self, method.name, self._stream if method.server_streaming else self._unary(method))

    def _unary(self, method: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            self.calls += 1
            return message_factory.GetMessageClass(method.output_type)()

        return handle

    async def _stream(self, request: Any, context: Any) -> Any:
        self.calls += 1
        for answer in list[Any]():
            yield answer


async def _call(stub: Any, method: Any, context: context_pb2.UserExecutionContext | None) -> Status:
    request = message_factory.GetMessageClass(method.input_type)(context=context)
    call = getattr(stub, method.name)(request, timeout=5)
    try:
        if method.server_streaming:
            _ = [answer async for answer in responses(call)]
        else:
            await call
    except CarrelError as error:
        return error.status
    return Status.OK


def _expired() -> context_pb2.UserExecutionContext:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tickets, "_now", lambda: time.time() - 3600)
        return session_context()


def _with(context: context_pb2.UserExecutionContext, **changes: Any) -> context_pb2.UserExecutionContext:
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def _forged(context: context_pb2.UserExecutionContext) -> context_pb2.UserExecutionContext:
    stranger = TicketMinter(generate_key("gateway-1"), "gateway")
    context.ticket = stranger.mint_session(context.user_id or "gateway")
    return context


@pytest.mark.parametrize(("service", "method", "grpc_module"), _methods())
async def test_wrong_tickets_are_refused_at(service: Any, method: Any, grpc_module: Any) -> None:
    servicer = Reached(service)
    add = getattr(grpc_module, f"add_{service.name}Servicer_to_server")
    services: list[Service] = [(add, servicer, service.full_name)]
    allowed = METHOD_SCOPES[f"/{service.full_name}/{method.name}"]
    async with serving(services) as rpc:
        stub = getattr(grpc_module, f"{service.name}Stub")(rpc.channel)
        for unknown in (
            None,
            context_pb2.UserExecutionContext(user_id="alice"),
            _with(session_context(), ticket="a.b.c"),
            _forged(session_context()),
            _expired(),
        ):
            assert await _call(stub, method, unknown) is Status.UNAUTHENTICATED
        for scope, make in MAKE.items():
            if scope not in allowed:
                assert await _call(stub, method, make()) is Status.PERMISSION_DENIED
                continue
            assert await _call(stub, method, _with(make(), user_id="mallory")) is Status.PERMISSION_DENIED
            assert await _call(stub, method, _with(make(), run_id="run-of-another")) is Status.PERMISSION_DENIED
            swapped = _with(make(), ticket=run_context("bob", run="run-9").ticket)
            assert await _call(stub, method, swapped) is Status.PERMISSION_DENIED
        assert servicer.calls == 0
        for scope in allowed:
            # An empty request breaks some RPCs' rules, which are looked at after the ticket only.
            assert await _call(stub, method, MAKE[scope]()) in {Status.OK, Status.INVALID_ARGUMENT}
