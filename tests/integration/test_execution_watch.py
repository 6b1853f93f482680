"""WatchRun with events, over a scripted bridge: two sources in one stream, which ends once, and outlives breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import InvalidRequestError, StoreUnavailableError, TicketError, UnavailableError, UnknownRunError
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from carrel.v1 import execution_pb2 as pb
from servicekit.rpc.channel import responses
from servicekit.rpc.context import current_principal
from tests.conftest import Eventually
from tests.support.execution import Attempt, Up, World, result, running_execution
from tests.support.identity import session_context
from tests.support.rpc import serving

Answer = bridge_pb2.ReadEventsResponse
Reads = Callable[[bridge_pb2.ReadEventsRequest], AsyncIterator[Answer]]


# RPCs that execution does not call.
_never: Any = None


@dataclass
class ScriptedBridge(bridge_pb2_grpc.BridgeServiceServicer):
    """Answers each ReadEvents by the next script; the last one again and again."""

    Publish = Attach = ResolveRun = GetState = _never

    async def Revoke(
        self, request: bridge_pb2.BridgeServiceRevokeRequest, context: Any
    ) -> bridge_pb2.BridgeServiceRevokeResponse:
        return bridge_pb2.BridgeServiceRevokeResponse()

    scripts: list[Reads] = field(default_factory=list)
    asked: list[bridge_pb2.ReadEventsRequest] = field(default_factory=list)
    users: list[str] = field(default_factory=list)

    async def ReadEvents(self, request: bridge_pb2.ReadEventsRequest, context: Any) -> AsyncIterator[Answer]:
        self.asked.append(request)
        self.users.append(current_principal().user_id)  # type: ignore[union-attr]  # a user's principal
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        async for answer in script(request):
            yield answer


def page(first: int, last: int, *, ends: bool = False) -> Answer:
    """Entries with these offsets; with ``ends`` the last is the terminal event."""
    made = bridge_pb2.UserEntries(user_id="alice", epoch="e1")
    for offset in range(first, last + 1):
        kind = "run_completed" if ends and offset == last else "agent_thinking"
        made.entries.add(offset=offset, event_id=f"evt-{offset}", event_type=kind)
    return Answer(entries=made)


def through(offset: int) -> Answer:
    return Answer(through=position(offset))


def position(offset: int, epoch: str = "e1") -> events_pb2.Position:
    return events_pb2.Position(epoch=epoch, offset=offset, event_id=f"evt-{offset}" if offset else "")


def says(*answers: Answer | Exception, then: asyncio.Event | None = None) -> Reads:
    """A script: these answers, then ``then`` is waited for."""

    async def script(request: bridge_pb2.ReadEventsRequest) -> AsyncIterator[Answer]:
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer
        if then is not None:
            await then.wait()

    return script


@dataclass
class Watched:
    """An execution with a run that ends when a test says so, and the bridge that it reads from."""

    world: World
    bridge: ScriptedBridge
    go: asyncio.Event

    async def start(self) -> str:
        return (await self.world.execute()).run.run_id

    async def watch(self, run_id: str, user: str = "alice", **fields: Any) -> list[pb.WatchRunResponse]:
        request = pb.WatchRunRequest(context=session_context(user), run_id=run_id, events=True, **fields)
        return [response async for response in responses(self.world.stub.WatchRun(request, timeout=20))]


@asynccontextmanager
async def watched(folder: Path, *scripts: Reads, **changes: Any) -> AsyncIterator[Watched]:
    bridge, go = ScriptedBridge(list(scripts)), asyncio.Event()

    async def waiting(attempt: Attempt) -> AsyncIterator[Up]:
        await go.wait()
        yield result({})

    served = [(bridge_pb2_grpc.add_BridgeServiceServicer_to_server, bridge, "carrel.v1.BridgeService")]
    async with serving(served) as rpc, running_execution(folder, bridge=rpc.address, **changes) as world:
        world.agents.scripts["data"] = waiting
        yield Watched(world, bridge, go)
        go.set()


def told(heard: list[pb.WatchRunResponse]) -> list[Any]:
    """States by name, events by offset, resets and positions by kind."""
    found: list[Any] = []
    for response in heard:
        match response.WhichOneof("log"):
            case "entries":
                found += [entry.offset for entry in response.entries.entries]
            case None:
                found.append(pb.RunState.Name(response.run.state).removeprefix("RUN_STATE_"))
            case kind:
                found.append(kind)
    return found


async def test_the_terminal_state_follows_the_terminal_event(tmp_path: Path, eventually: Eventually) -> None:
    late = asyncio.Event()

    async def script(request: bridge_pb2.ReadEventsRequest) -> AsyncIterator[Answer]:
        yield page(1, 3)
        await late.wait()
        yield page(4, 5, ends=True)
        yield through(5)

    async with watched(tmp_path, script) as w:
        run_id = await w.start()
        watching = asyncio.create_task(w.watch(run_id))
        await eventually(lambda: w.bridge.asked)
        w.go.set()
        assert (await w.world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert not watching.done()
        late.set()
        answers = await watching
    heard = told(answers)
    assert heard[0] == "RUNNING"
    assert [item for item in heard if isinstance(item, int)] == [1, 2, 3, 4, 5]
    assert heard[-1] == "SUCCEEDED"
    assert heard.index("SUCCEEDED") == len(heard) - 1 > heard.index(5)
    (asked,) = w.bridge.asked
    assert (asked.run_id, asked.follow, asked.HasField("position"), w.bridge.users) == (run_id, True, False, ["alice"])


async def test_a_bridge_that_breaks_is_read_again_from_the_last_event(tmp_path: Path) -> None:
    moved = events_pb2.Reset(reason=events_pb2.RESET_REASON_EPOCH_CHANGED, position=position(0, "e2"))
    scripts = (
        says(page(1, 3), StoreUnavailableError("away")),
        says(UnavailableError("still")),
        says(Answer(reset=moved), UnavailableError("again")),
        says(page(4, 6, ends=True), through(6)),
    )
    async with watched(tmp_path, *scripts) as w:
        run_id = await w.start()
        w.go.set()
        answers = await w.watch(run_id, position=position(0))
    assert [item for item in told(answers) if isinstance(item, int) or item == "reset"] == [1, 2, 3, "reset", 4, 5, 6]
    assert [asked.position for asked in w.bridge.asked[:3]] == [position(0), position(3), position(3)]
    assert not w.bridge.asked[3].HasField("position")


async def test_a_run_that_is_not_in_the_log_yet_is_waited_for(tmp_path: Path) -> None:
    unknown = says(UnknownRunError("the log has nothing of this run"))
    async with watched(tmp_path, unknown, unknown, says(page(1, 2, ends=True))) as w:
        run_id = await w.start()
        asyncio.get_running_loop().call_later(0.5, w.go.set)
        answers = await w.watch(run_id)
    assert [item for item in told(answers) if isinstance(item, int)] == [1, 2]


@pytest.mark.parametrize(
    "after", [says(page(3, 4), through(4)), says(UnknownRunError("the log has nothing of this run"))]
)
async def test_a_log_that_lost_the_end_of_a_run_does_not_keep_its_watchers(tmp_path: Path, after: Reads) -> None:
    never = asyncio.Event()
    async with watched(tmp_path, says(page(1, 2), through(2), then=never), after) as w:
        run_id = await w.start()
        w.go.set()
        async with asyncio.timeout(10):
            heard = told(await w.watch(run_id))
    assert heard[-1] == "SUCCEEDED"
    assert [asked.follow for asked in w.bridge.asked] == [True, False]
    assert w.bridge.asked[1].position == position(2)


async def test_a_run_that_has_ended_is_read_to_the_top_and_told_last(tmp_path: Path) -> None:
    async with watched(tmp_path, says(page(7, 9, ends=True), through(9))) as w:
        run_id = await w.start()
        w.go.set()
        _ = await w.world.ended(run_id)
        heard = told(await w.watch(run_id, position=position(6)))
    assert heard == [7, 8, 9, "through", "SUCCEEDED"]
    assert (w.bridge.asked[0].position, w.bridge.asked[0].follow) == (position(6), False)


async def test_what_is_not_the_caller_s_is_not_asked_of_the_log(tmp_path: Path) -> None:
    async with watched(tmp_path, says(page(1, 1))) as w:
        run_id = await w.start()
        for user, asked in (("bob", run_id), ("alice", "run-of-nobody")):
            with pytest.raises(UnknownRunError):
                await w.watch(asked, user)
        request = pb.WatchRunRequest(context=session_context(), run_id=run_id, position=position(3))
        with pytest.raises(InvalidRequestError, match="position"):
            _ = [response async for response in responses(w.world.stub.WatchRun(request, timeout=5))]
        assert not w.bridge.asked


async def test_a_refusal_of_the_log_s_ends_the_watch(tmp_path: Path) -> None:
    async with watched(tmp_path, says(page(1, 1), TicketError("the ticket has ended"))) as w:
        with pytest.raises(TicketError):
            await w.watch(await w.start())
