"""One user's ids in another user's hands name nothing, by any RPC, and look like ids that exist nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc import aio

from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2, bridge_pb2, events_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.security.cross_user import (
    ALICE,
    BOB,
    BRIDGE,
    EXECUTION,
    INSTANCE,
    Ids,
    belongings_of_alice,
    channel_to,
    normal,
    nowhere,
)
from tests.security.rpc_table import SERVERS, call, methods, request_for
from tests.support.stack import RunningStack


@pytest.fixture
async def alice(stack: RunningStack) -> AsyncIterator[Ids]:
    """What alice has."""
    async with belongings_of_alice(stack) as ids:
        yield ids


def _session(stack: RunningStack) -> Any:
    return stack.session_context(BOB)


def _run(stack: RunningStack) -> Any:
    return stack.run_context(BOB, thread=new_id("thread"), run=new_id("run"), request=new_id("req"), admitted=True)


_Make = Callable[[RunningStack, Ids], Message]
_NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
_OK: Final = grpc.StatusCode.OK


def _asks(rpc: str, context: Callable[[RunningStack], Any], /, **what: str) -> _Make:
    """A request whose fields are ids of the name given."""
    return lambda stack, ids: request_for(
        rpc, context(stack), **{field: getattr(ids, attribute) for field, attribute in what.items()}
    )


_POSITION: Final[_Make] = lambda stack, ids: request_for(  # noqa: E731 -- one row of the table below
    f"{BRIDGE}.ReadEvents",
    _session(stack),
    run_id="",
    position=events_pb2.Position(epoch=ids.epoch, offset=1, event_id=ids.event),
)

# RPC and field → request and status. There is a row for every field that names something.
_RPCS: Final[Mapping[tuple[str, str], tuple[_Make, grpc.StatusCode]]] = {
    (f"{EXECUTION}.{method}", "run_id"): (_asks(f"{EXECUTION}.{method}", _session, run_id=which), _NOT_FOUND)
    for method, which in (("GetRun", "run"), ("WatchRun", "held"), ("CancelRun", "held"))
} | {
    (f"{EXECUTION}.ProvideInput", "run_id"): (
        _asks(f"{EXECUTION}.ProvideInput", _session, run_id="waiting"),
        _NOT_FOUND,
    ),
    (f"{EXECUTION}.ProvideInput", "input_id"): (
        _asks(f"{EXECUTION}.ProvideInput", _session, run_id="waiting", input_id="input"),
        _NOT_FOUND,
    ),
    (f"{EXECUTION}.GetArtifact", "run_id"): (
        _asks(f"{EXECUTION}.GetArtifact", _session, run_id="run", name="artifact"),
        _NOT_FOUND,
    ),
    (f"{EXECUTION}.ListRuns", "thread_id"): (_asks(f"{EXECUTION}.ListRuns", _session, thread_id="thread"), _OK),
    (f"{EXECUTION}.CleanupEngine", "engine_id"): (
        _asks(f"{EXECUTION}.CleanupEngine", _session, engine_id="engine"),
        _OK,
    ),
    (f"{EXECUTION}.ExecutePipeline", "engine_id"): (
        _asks(f"{EXECUTION}.ExecutePipeline", _run, engine_id="engine"),
        _NOT_FOUND,
    ),
    (f"{EXECUTION}.GetThread", "thread_id"): (
        _asks(f"{EXECUTION}.GetThread", _session, thread_id="thread"),
        _NOT_FOUND,
    ),
    (f"{EXECUTION}.DeleteThread", "thread_id"): (
        _asks(f"{EXECUTION}.DeleteThread", _session, thread_id="thread"),
        _OK,
    ),
    (f"{EXECUTION}.ListAuditRecords", "run_id"): (
        _asks(f"{EXECUTION}.ListAuditRecords", _session, run_id="run"),
        _OK,
    ),
    (f"{EXECUTION}.ListAuditRecords", "user_id"): (
        lambda stack, ids: request_for(f"{EXECUTION}.ListAuditRecords", _session(stack), run_id=ids.run, user_id=ALICE),
        _OK,
    ),
    # A user's session is no operator, whomever it names.
    (f"{EXECUTION}.RecordAudit", "user_id"): (
        lambda stack, ids: request_for(f"{EXECUTION}.RecordAudit", _session(stack), user_id=ALICE),
        grpc.StatusCode.PERMISSION_DENIED,
    ),
    (f"{EXECUTION}.RevokeUser", "user_id"): (
        lambda stack, ids: request_for(f"{EXECUTION}.RevokeUser", _session(stack), user_id=ALICE),
        grpc.StatusCode.PERMISSION_DENIED,
    ),
    (f"{INSTANCE}.ReleaseInstance", "instance_id"): (
        _asks(f"{INSTANCE}.ReleaseInstance", _run, instance_id="instance"),
        _OK,
    ),
    (f"{BRIDGE}.ResolveRun", "run_id"): (_asks(f"{BRIDGE}.ResolveRun", _session, run_id="run"), _NOT_FOUND),
    (f"{EXECUTION}.WatchRun", "position"): (
        lambda stack, ids: request_for(
            f"{EXECUTION}.WatchRun",
            _session(stack),
            run_id=ids.held,
            events=True,
            position=events_pb2.Position(epoch=ids.epoch, offset=1, event_id=ids.event),
        ),
        _NOT_FOUND,
    ),
    (f"{BRIDGE}.ReadEvents", "run_id"): (_asks(f"{BRIDGE}.ReadEvents", _session, run_id="run"), _NOT_FOUND),
    (f"{BRIDGE}.ReadEvents", "thread_id"): (
        lambda stack, ids: request_for(f"{BRIDGE}.ReadEvents", _session(stack), run_id="", thread_id=ids.thread),
        _OK,
    ),
    (f"{BRIDGE}.ReadEvents", "position"): (_POSITION, _OK),
}


def _naming_fields() -> Iterator[tuple[str, str]]:
    for name, method in methods().items():
        for field in method.input_type.fields:
            if field.name.endswith("_id") or field.name == "position":
                yield name, field.name


def test_every_field_that_names_something_has_a_row() -> None:
    assert set(_naming_fields()) == set(_RPCS)


def _told(status: grpc.StatusCode, answers: list[Any], error: grpc.RpcError | None) -> Any:
    if error is not None:
        return [status.name, from_rpc_error(error).to_dict()]
    return [status.name, *(json_format.MessageToDict(answer) for answer in answers)]


@pytest.mark.parametrize(("name", "field"), sorted(_RPCS))
async def test_by_rpc(name: str, field: str, stack: RunningStack, alice: Ids) -> None:
    make, expected = _RPCS[name, field]
    nobody_s = nowhere(alice)
    async with channel_to(stack, SERVERS[name.rpartition(".")[0]]) as channel:
        status, answers, error = await call(channel, name, make(stack, alice))
        assert status is expected, str(error)
        told = normal(_told(status, answers, error), alice)
        other = _told(*await call(channel, name, make(stack, nobody_s)))
    assert told == normal(other, nobody_s)
    for answer in answers:
        whole = json_format.MessageToDict(answer)
        assert not {"run", "runs", "thread", "records", "cleaned", "deleted", "released"} & whole.keys()
        # After a reset, a log is read from its beginning: his own.
        assert "entries" not in whole or (field, whole["entries"]["userId"]) == ("position", BOB)
        hers = [getattr(alice, known.name) for known in fields(alice) if known.name != "artifact"]
        assert not any(name in str(answer) for name in hers)


async def test_nobody_keeps_her_run_alive_or_ends_it_by_leaving(stack: RunningStack, alice: Ids) -> None:
    name = f"{EXECUTION}.WatchRun"
    async with channel_to(stack, "execution") as channel:
        for run_id in (alice.held, alice.waiting, nowhere(alice).held):
            request = request_for(name, _session(stack), run_id=run_id, keeps_alive=True)
            status, answers, _ = await call(channel, name, request)
            assert (status, answers) == (_NOT_FOUND, [])
    # That hers go on is looked at when the fixture ends.


async def test_a_run_ticket_with_her_run_s_id_names_one_s_own_run_only(stack: RunningStack, alice: Ids) -> None:
    context = stack.run_context(BOB, thread=alice.thread, run=alice.run, request=new_id("req"))
    for name, expected in (
        (f"{EXECUTION}.GetRun", _NOT_FOUND),
        (f"{EXECUTION}.WatchRun", _NOT_FOUND),
        (f"{EXECUTION}.CancelRun", _NOT_FOUND),
        (f"{EXECUTION}.ProvideInput", _NOT_FOUND),
        (f"{EXECUTION}.GetArtifact", _NOT_FOUND),
        (f"{BRIDGE}.ResolveRun", _NOT_FOUND),
        (f"{BRIDGE}.ReadEvents", _NOT_FOUND),
    ):
        changes = {"name": alice.artifact} if name.endswith("GetArtifact") else {}
        async with channel_to(stack, SERVERS[name.rpartition(".")[0]]) as channel:
            request = request_for(name, context, run_id=alice.run, **changes)
            status, answers, error = await call(channel, name, request)
        assert status is expected, f"{name}: {error}"
        assert not any("entries" in json_format.MessageToDict(answer) for answer in answers)


async def test_her_instance_runs_for_nobody_else(stack: RunningStack, alice: Ids) -> None:
    told = []
    async with channel_to(stack, "agent_instance") as channel:
        for ids in (alice, nowhere(alice)):
            start = agent_instance_pb2.StartStage(
                instance_id=ids.instance, agent_name="echo", attempt=1, fence=1, producer_id=new_id("prod")
            )
            running = AgentInstanceServiceStub(channel).RunInstance()
            await running.write(agent_instance_pb2.RunInstanceRequest(context=_run(stack), start=start))
            with pytest.raises(aio.AioRpcError) as caught:
                await running.read()
            told.append(from_rpc_error(caught.value).to_dict())
    assert told[0] == told[1]
    assert told[0]["code"] == "UNKNOWN_INSTANCE"


async def test_following_her_run_or_thread_hears_nothing_while_she_works(stack: RunningStack) -> None:
    thread, run, request = new_id("thread"), new_id("run"), new_id("req")
    heard: list[Any] = []

    async def follow(channel: aio.Channel, run_id: str = "", thread_id: str = "") -> None:
        asked = bridge_pb2.ReadEventsRequest(context=_session(stack), follow=True, run_id=run_id, thread_id=thread_id)
        async for answer in BridgeServiceStub(channel).ReadEvents(asked):
            heard.extend(answer.entries.entries)

    async with channel_to(stack, "bridge") as channel, channel_to(stack, "execution") as execution:
        followers = [
            asyncio.create_task(follow(channel, run_id=run)),
            asyncio.create_task(follow(channel, thread_id=thread)),
        ]
        context = stack.run_context(ALICE, thread=thread, run=run, request=request)
        stub = ExecutionServiceStub(execution)
        asked = execution_pb2.ExecutePipelineRequest(context=context, message="hello", pipeline=["keeper"])
        await stub.ExecutePipeline(asked, timeout=10)
        watch = execution_pb2.WatchRunRequest(context=context, run_id=run)
        states = [answer.run.state async for answer in stub.WatchRun(watch, timeout=20)]
        assert states[-1] == execution_pb2.RUN_STATE_SUCCEEDED
        for task in followers:
            task.cancel()
        results = await asyncio.gather(*followers, return_exceptions=True)
    # A run that the follower's own log has nothing of is not waited for for ever.
    assert all(isinstance(result, asyncio.CancelledError | aio.AioRpcError) for result in results), results
    assert not heard


async def test_an_operator_s_session_is_no_operator(stack: RunningStack, alice: Ids) -> None:
    # The permission counts under a service ticket; a user who holds it is still one user.
    context = stack.session_context(BOB, permissions=["operator:read", "act_as"])
    async with channel_to(stack, "execution") as channel:
        for name in (f"{EXECUTION}.ListEngines", f"{EXECUTION}.ListAuditRecords"):
            status, (answer,), _ = await call(channel, name, request_for(name, context))
            assert status is _OK
            assert alice.run not in str(answer)
            assert alice.engine not in str(answer)
            assert ALICE not in str(answer)
