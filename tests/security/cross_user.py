"""Two users for the tests of each other's ids: alice, who has one of everything, and bob, who knows its name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from grpc import aio

from carrel.ids import new_id
from carrel.v1 import agent_instance_pb2, bridge_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.support.stack import RunningStack

ALICE: Final = "alice"
BOB: Final = "bob"
EXECUTION: Final = "carrel.v1.ExecutionService"
INSTANCE: Final = "carrel.v1.AgentInstanceService"
BRIDGE: Final = "carrel.v1.BridgeService"


@dataclass(frozen=True)
class Ids:
    """What belongs to one user: an ended run with an artifact, one that holds, one that waits, and their like."""

    run: str
    thread: str
    held: str
    held_thread: str
    artifact: str
    engine: str
    instance: str
    waiting: str
    input: str
    client_ref: str
    epoch: str
    event: str


def nowhere(ids: Ids) -> Ids:
    """Ids of the same form that nobody has."""
    changes = {name: new_id(name.replace("_", "")) for name in (field.name for field in fields(ids))}
    return replace(ids, **changes | {"epoch": "0123456789abcdef", "artifact": "nothing.txt"})


def normal(answer: Any, ids: Ids) -> Any:
    """An answer with the ids that were asked for taken out."""
    text = json.dumps(answer, sort_keys=True)
    for field in fields(ids):
        text = text.replace(getattr(ids, field.name), f"<{field.name}>")
    return json.loads(text)


@asynccontextmanager
async def belongings_of_alice(stack: RunningStack) -> AsyncIterator[Ids]:
    """What alice has: made anew, unended for the length of the block, and still all hers at its end."""
    async with channel_to(stack, "execution") as execution, channel_to(stack, "agent_instance") as agents:
        stub = ExecutionServiceStub(execution)
        kept = await _execute(stub, stack, ALICE, "keeper", client_ref=(ref := new_id("ref")))
        watch = stub.WatchRun(
            execution_pb2.WatchRunRequest(context=stack.session_context(ALICE), run_id=kept.run_id), timeout=20
        )
        last = [answer.run async for answer in watch][-1]
        assert [artifact.name for artifact in last.artifacts] == ["note.txt"]
        held = await _execute(stub, stack, ALICE, "hold")
        waiting = await _execute(stub, stack, ALICE, "waiter")
        question = await _question(stub, stack, waiting.run_id)
        engine = await stub.CreateEngine(
            execution_pb2.CreateEngineRequest(context=stack.session_context(ALICE)), timeout=5
        )
        context = stack.run_context(
            ALICE, thread=new_id("thread"), run=new_id("run"), request=new_id("req"), admitted=True
        )
        instance = await AgentInstanceServiceStub(agents).CreateInstance(
            agent_instance_pb2.CreateInstanceRequest(context=context, agent_name="echo"), timeout=5
        )
        epoch, event = await _position(stack, ALICE)
        yield Ids(
            run=kept.run_id,
            thread=kept.thread_id,
            held=held.run_id,
            held_thread=held.thread_id,
            artifact="note.txt",
            engine=engine.engine.engine_id,
            instance=instance.instance_id,
            waiting=waiting.run_id,
            input=question.input_id,
            client_ref=ref,
            epoch=epoch,
            event=event,
        )
        # Everything is still hers.
        run = await stub.GetRun(
            execution_pb2.GetRunRequest(context=stack.session_context(ALICE), run_id=held.run_id), timeout=5
        )
        assert run.run.state == execution_pb2.RUN_STATE_RUNNING
        run = await stub.GetRun(
            execution_pb2.GetRunRequest(context=stack.session_context(ALICE), run_id=waiting.run_id), timeout=5
        )
        assert (run.run.state, run.run.waiting_for) == (execution_pb2.RUN_STATE_WAITING, question)
        thread = await stub.GetThread(
            execution_pb2.GetThreadRequest(context=stack.session_context(ALICE), thread_id=kept.thread_id), timeout=5
        )
        assert [message.role for message in thread.messages] == ["user", "assistant"]
        cleaned = await stub.CleanupEngine(
            execution_pb2.CleanupEngineRequest(context=stack.session_context(ALICE), engine_id=engine.engine.engine_id),
            timeout=5,
        )
        assert cleaned.cleaned
        released = await AgentInstanceServiceStub(agents).ReleaseInstance(
            agent_instance_pb2.ReleaseInstanceRequest(context=context, instance_id=instance.instance_id), timeout=5
        )
        assert released.released
        for left in (held, waiting):
            await stub.CancelRun(
                execution_pb2.CancelRunRequest(context=stack.session_context(ALICE), run_id=left.run_id), timeout=10
            )


def channel_to(stack: RunningStack, service: str) -> aio.Channel:
    return aio.insecure_channel(stack.address(service))


async def _execute(
    stub: ExecutionServiceStub, stack: RunningStack, user: str, agent: str, **more: Any
) -> execution_pb2.Run:
    context = stack.run_context(user, thread=new_id("thread"), run=new_id("run"), request=new_id("req"))
    request = execution_pb2.ExecutePipelineRequest(context=context, message=f"of {user}", pipeline=[agent], **more)
    response: execution_pb2.ExecutePipelineResponse = await stub.ExecutePipeline(request, timeout=10)
    return response.run


async def _question(stub: ExecutionServiceStub, stack: RunningStack, run_id: str) -> agent_instance_pb2.InputRequired:
    """What the run waits for, once it waits."""
    request = execution_pb2.WatchRunRequest(context=stack.session_context(ALICE), run_id=run_id)
    watch = stub.WatchRun(request, timeout=20)
    async for answer in watch:
        if answer.run.state == execution_pb2.RUN_STATE_WAITING:
            watch.cancel()
            return answer.run.waiting_for
    raise AssertionError("the run has ended")


async def _position(stack: RunningStack, user: str) -> tuple[str, str]:
    """The epoch of the user's log and the id of its first event."""
    async with channel_to(stack, "bridge") as channel:
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user), limit=1)
        async for answer in BridgeServiceStub(channel).ReadEvents(request, timeout=5):
            if answer.HasField("entries"):
                return answer.entries.epoch, answer.entries.entries[0].event_id
    raise AssertionError(f"{user} has no events")
