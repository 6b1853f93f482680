"""Every RPC of every service against every kind of wrong caller, over real processes. Enumerated from the descriptors.

Streams that many users share (Emit, Publish, Attach) and RunInstance are in ``test_every_stream``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import execution_pb2
from servicekit.identity.principals import Scope
from servicekit.identity.tickets import TicketMinter
from tests.security.forge import UNAUTHENTICATED, Attack, Forge, Who, attacks
from tests.security.rpc_table import (
    ROWS,
    SERVERS,
    call,
    context_field,
    items_field,
    methods,
    request_for,
    services,
    unary_rows,
)
from tests.support.stack import RunningStack

_STATISTICS = {
    "execution": "carrel.v1.ExecutionService.GetFactoryMetrics",
    "agent_instance": "carrel.v1.AgentInstanceService.GetPoolStatistics",
    "emitter": "carrel.v1.EmitterService.GetEmitterStatistics",
    "bridge": "carrel.v1.BridgeService.GetState",
}


@pytest.fixture
async def channels(stack: RunningStack) -> AsyncIterator[dict[str, aio.Channel]]:
    """Plain channels to the four services: nothing on this side adds a deadline or a ticket."""
    opened = {name: aio.insecure_channel(stack.address(name)) for name in SERVERS.values()}
    yield opened
    await asyncio.gather(*(channel.close() for channel in opened.values()))


def _server(name: str) -> str:
    return SERVERS[name.rpartition(".")[0]]


def test_every_rpc_has_a_row() -> None:
    assert set(ROWS) == set(methods())
    assert {service.full_name for service in services()} == set(SERVERS)


@pytest.mark.parametrize("name", sorted(methods()))
def test_field_1_of_every_request_and_item_is_the_context(name: str) -> None:
    message = methods()[name].input_type
    items = items_field(message)
    if items is not None:
        assert methods()[name].client_streaming, "only streams carry items of many contexts"
        assert items.message_type is not None
        message = items.message_type
    assert context_field(message) is not None, f"{message.full_name} has no context in field 1"


@pytest.mark.parametrize("server", sorted(SERVERS.values()))
async def test_a_server_serves_nothing_but_the_contract_health_and_reflection(
    server: str, channels: dict[str, aio.Channel]
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channels[server])
    asked = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    served = {item.name async for answer in asked for item in answer.list_services_response.service}
    mine = {name for name, process in SERVERS.items() if process == server}
    assert served == mine | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.mark.parametrize("server", sorted(SERVERS.values()))
async def test_health_asks_for_no_ticket(server: str, channels: dict[str, aio.Channel]) -> None:
    stub = health_pb2_grpc.HealthStub(channels[server])
    for service in ("", "liveness", "readiness"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", unary_rows())
async def test_a_good_caller_is_let_in(name: str, forge: Forge, channels: dict[str, aio.Channel]) -> None:
    # Otherwise a server that refuses everybody would pass every test below.
    row = ROWS[name]
    for scope in row.scopes:
        who = Who(scope, new_id("user"), new_id("thread"), request=new_id("req"))
        status, _, error = await call(channels[_server(name)], name, request_for(name, forge.good(who)))
        assert status is row.answer, f"{scope}: {error}"


@pytest.mark.parametrize("name", unary_rows())
async def test_a_wrong_caller_is_refused(name: str, forge: Forge, channels: dict[str, aio.Channel]) -> None:
    row, channel = ROWS[name], channels[_server(name)]
    wrong = list(attacks(forge, row.scopes, needs_operator=row.needs_operator))
    assert len(wrong) > 60

    async def attempt(attack: Attack) -> str:
        status, answers, error = await call(channel, name, request_for(name, attack.context))
        assert not answers, f"{attack.name}: answered"
        assert error is not None
        told = from_rpc_error(error)
        if status is not attack.status or told.status.name != attack.status.name:
            return f"{attack.name}: {status.name} ({told.code}: {told.message}), not {attack.status.name}"
        if not (told.message and told.advice):
            return f"{attack.name}: {told.code} does not say what to do"
        if (told.code == "TICKET_EXPIRED") is not attack.expired:
            return f"{attack.name}: {told.code} tells a caller wrongly whether a fresh ticket helps"
        ticket = attack.context.ticket if attack.context is not None else ""
        leaked = len(ticket) > 20 and ticket in f"{told.message} {told.advice} {told.details}"
        return f"{attack.name}: the error repeats the ticket" if leaked else ""

    problems = [problem for problem in await asyncio.gather(*map(attempt, wrong)) if problem]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", [name for name in unary_rows() if not methods()[name].server_streaming])
async def test_a_call_without_a_deadline_is_refused(name: str, forge: Forge, channels: dict[str, aio.Channel]) -> None:
    context = forge.good(Who(min(ROWS[name].scopes)))
    status, _, error = await call(channels[_server(name)], name, request_for(name, context), timeout=None)
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert error is not None
    assert from_rpc_error(error).code == "MISSING_DEADLINE"


@pytest.mark.parametrize("name", [name for name in unary_rows() if "run" in ROWS[name].scopes])
async def test_a_child_of_the_ticket_s_request_is_let_in(
    name: str, forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    child = {"request_id": "req-1_step_two", "parent_request_id": "req-1_step", "operation_depth": 2}
    status, _, error = await call(channels[_server(name)], name, request_for(name, forge.good(Who("run"), **child)))
    if name.endswith(".ExecutePipeline"):
        # Only the root request asks for a run; a child's context is a wrong argument, not a wrong identity.
        assert status is grpc.StatusCode.INVALID_ARGUMENT
    else:
        assert status is ROWS[name].answer, str(error)


@pytest.mark.parametrize("server", sorted(_STATISTICS))
async def test_a_context_that_differs_from_its_ticket_is_counted(
    server: str, forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    name = _STATISTICS[server]
    channel, good = channels[server], forge.good(Who("service"))

    async def count() -> int:
        _, (answer,), _ = await call(channel, name, request_for(name, good))
        total: int = answer.identity_mismatch_total
        return total

    before = await count()
    for _ in range(3):
        await call(channel, name, request_for(name, forge.good(Who("service"), user_id="alice")))
    await call(channel, name, request_for(name, None))
    assert await count() == before + 3


@pytest.mark.parametrize("server", sorted(SERVERS.values()))
async def test_a_method_that_does_not_exist_is_unimplemented(server: str, channels: dict[str, aio.Channel]) -> None:
    service = next(name for name, process in SERVERS.items() if process == server)
    stub: Any = channels[server].unary_unary(f"/{service}/DropEverything")
    with pytest.raises(aio.AioRpcError) as caught:
        await stub(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_execution_s_key_signs_run_tickets_and_nothing_else(
    forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    minter = TicketMinter(forge.execution, "execution")
    who = Who("run", user=new_id("user"))
    ticket = minter.mint_run(who.user, who.thread, who.run, who.request)
    name = "carrel.v1.ExecutionService.GetRun"
    status, _, _ = await call(channels["execution"], name, request_for(name, who.context(ticket)))
    assert status is grpc.StatusCode.NOT_FOUND, "its run tickets are good"
    with pytest.raises(ValueError, match="session"):
        minter.mint_session(who.user)
    with pytest.raises(ValueError, match="service"):
        minter.mint_service("execution")
    # What the minter refuses, signed past it.
    for scope, name in (
        ("session", "carrel.v1.ExecutionService.ListRuns"),
        ("service", "carrel.v1.ExecutionService.GetFactoryMetrics"),
    ):
        claims = Who(scope).claims(iss="execution")
        signed = forge.ticket(claims, forge.header(kid=forge.execution.kid), forge.execution.key.sign)
        status, _, error = await call(channels["execution"], name, request_for(name, Who(scope).context(signed)))
        assert status is UNAUTHENTICATED
        assert error is not None
        assert "key may not sign" in from_rpc_error(error).message


def test_the_public_key_file_says_what_each_key_may_sign(stack: RunningStack, forge: Forge) -> None:
    assert forge.execution.scopes == {Scope.RUN}
    assert '"carrel_scopes"' in stack.state.jwks.read_text()
    assert '"d"' not in stack.state.jwks.read_text(), "no private key in the public file"
    for private in (stack.state.gateway_key, stack.state.execution_key, stack.state.login_secret):
        assert private.stat().st_mode & 0o077 == 0, f"{private.name} is readable by others"


async def test_nothing_came_of_the_refused_calls(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    # Attacks are made in the name of alice and of bob, who have runs of other tests.
    name, listing = "carrel.v1.ExecutionService.ExecutePipeline", "carrel.v1.ExecutionService.ListRuns"

    async def runs(user: str) -> list[str]:
        context = forge.good(Who("session", user=user))
        _, (answer,), _ = await call(channels["execution"], listing, request_for(listing, context))
        assert isinstance(answer, execution_pb2.ListRunsResponse)
        return [run.run_id for run in answer.runs]

    before = [await runs(user) for user in ("alice", "bob")]
    for attack in attacks(forge, ROWS[name].scopes):
        await call(channels["execution"], name, request_for(name, attack.context))
    assert [await runs(user) for user in ("alice", "bob")] == before
    assert "run-1" not in str(before)
