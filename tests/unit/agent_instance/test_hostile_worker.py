"""A worker that the host cannot trust: garbage, lies, silence. It hurts its own run only; the host always answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.agent_codec import decode, encode
from carrel.agent_messages import (
    AgentReply,
    Ask,
    CallModel,
    CallTool,
    Cancel,
    CancelCall,
    CancelToolBody,
    ChildOpened,
    CloseChild,
    EmitEvent,
    EventAccepted,
    Failure,
    InputReply,
    ModelDelta,
    ModelReply,
    OpenChild,
    PutArtifact,
    Refused,
    Result,
    RunAgent,
    RunToolBody,
    Start,
    ToolBodyResult,
    ToolReply,
)
from carrel.agents import Isolation
from carrel.errors import CarrelError, StaleFenceError, WorkerLostError
from services.agent_instance.domain.calls import hash_arguments
from services.agent_instance.domain.executor import AgentExecutor
from services.agent_instance.domain.registry import AgentEntry
from tests.unit.agent_instance.support import Bench, Stage, call_id


@tool
async def work(n: int) -> int:
    return n


@tool(host=True)
async def guarded() -> str:
    return "kept"


class Target(Agent):
    name = "target"
    tools = (work, guarded)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {}


class Scripted:
    """An executor that sends what it is told to, then nothing, or its end. It keeps what the host sends."""

    def __init__(self, script: Sequence[Any], *, ends: bool = True, deaf: bool = False) -> None:
        self.script = list(script)
        self.ends = ends
        self.deaf = deaf
        self.heard: list[Any] = []
        self.why: CarrelError = WorkerLostError("the process that ran the agent is gone")
        self.printed = b""
        self.killed = asyncio.Event()

    async def start(self) -> None: ...

    async def initialize(self, entry: AgentEntry) -> None: ...

    async def send(self, message: bytes) -> None:
        if self.deaf and self.heard:
            await self.killed.wait()
        self.heard.append(decode(message))

    async def receive(self) -> bytes | None:
        await asyncio.sleep(0)
        if self.script and not self.killed.is_set():
            item = self.script.pop(0)
            return item if isinstance(item, bytes) else encode(item)
        if not self.ends:
            await self.killed.wait()
        return None

    isolation: ClassVar[Isolation] = "process"

    @property
    def loss(self) -> CarrelError:
        return self.why

    @property
    def output(self) -> bytes:
        return self.printed

    async def join(self) -> None: ...

    async def aclose(self, grace_s: float = 0.0) -> None:
        await self.kill()

    async def kill(self) -> None:
        self.killed.set()


async def play(*script: Any, agent: type[Agent] = Target, **options: Any) -> tuple[Stage, list[Any]]:
    """A stage whose worker follows the script, and what the host told that worker after Start."""
    ends, deaf = options.pop("ends", True), options.pop("deaf", False)
    made: list[Scripted] = []

    def make() -> AgentExecutor:
        made.append(Scripted(script, ends=ends, deaf=deaf))
        return made[-1]

    stage = await Bench(agent, make=make, **options).run(agent.name)
    assert isinstance(made[0].heard[0], Start)
    assert made[0].killed.is_set()
    return stage, made[0].heard[1:]


WORK = "call-0-work-" + hash_arguments({"n": 1})[:8] + "-1"
DONE = Result({"ok": True})


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\xff garbage",
        b"[]",
        b'{"type":"nothing"}',
        b'{"type":"emit_event","call_id":-1,"handle":0,"event_type":"agent_thinking","data":{}}',
        EventAccepted(1),
        RunToolBody("c", "work", {}, 0, {}),
        CloseChild(0),
        PutArtifact(1, 0, "a", "text/plain", 1, b"x" * (256 * 1024 + 1), True),
    ],
)
async def test_what_the_protocol_does_not_allow_ends_the_run_with_an_error(message: Any) -> None:
    stage, _ = await play(message, DONE)
    assert stage.error.code in {"PROTOCOL", "TOO_LARGE"}
    assert stage.kinds == ["agent_started", "agent_error"]


async def test_a_worker_that_dies_is_a_lost_worker() -> None:
    stage, _ = await play()
    assert stage.error.code == "WORKER_LOST"
    assert stage.error.retryable


async def test_a_worker_that_never_reads_is_ended_by_its_idle_time() -> None:
    floods = [EmitEvent(n, 0, "agent_message", {"message_id": "m", "text": "x"}) for n in range(1, 5)]
    stage, _ = await play(*floods, deaf=True, ends=False, idle_s=0.2, grace_s=0.1)
    assert stage.error.code == "AGENT_IDLE_TIMEOUT"
    assert stage.bench.core.counts.killed == 1


async def test_handles_that_are_not_open_are_refused_not_believed() -> None:
    stage, heard = await play(
        EmitEvent(1, 7, "agent_thinking", {"text": "x"}),
        CallTool(2, 7, "work", {"n": 1}),
        OpenChild(3, 7, "x"),
        PutArtifact(4, 7, "a", "text/plain", 1, b"x", True),
        CloseChild(7),
        DONE,
    )
    assert [message.error["code"] for message in heard if isinstance(message, Refused)] == ["INVALID_CONTEXT"] * 4
    assert stage.kinds == ["agent_started", "agent_completed"]
    assert not stage.uplink.stored


async def test_a_closed_child_is_closed_for_good() -> None:
    stage, heard = await play(
        OpenChild(1, 0, "a"),
        OpenChild(2, 1, "b"),
        CloseChild(1),
        EmitEvent(3, 2, "agent_thinking", {"text": "from a grandchild of a closed child"}),
        DONE,
    )
    assert [type(message) for message in heard] == [ChildOpened, ChildOpened, Refused]
    assert stage.kinds == ["agent_started", "agent_completed"]


async def test_a_worker_cannot_answer_for_a_host_tool() -> None:
    lie = ToolBodyResult(call_id("guarded"), result="stolen")
    stage, heard = await play(
        CallTool(1, 0, "guarded", {}), lie, lie, lie, OpenChild(2, 0, "x"), ends=False, idle_s=0.2
    )
    assert ToolReply(1, "kept") in heard
    assert stage.of("tool_completed")[0].data["result"] == "kept"


async def test_a_body_that_ends_twice_or_was_never_begun_counts_once_or_never() -> None:
    stage, heard = await play(
        ToolBodyResult(WORK, result=666),
        CallTool(1, 0, "work", {"n": 1}),
        ToolBodyResult(WORK, result=1),
        ToolBodyResult(WORK, result=2),
        DONE,
    )
    assert [message.result for message in heard if isinstance(message, ToolReply)] == [1]
    assert [event.data["result"] for event in stage.of("tool_completed")] == [1]


async def test_two_open_calls_of_one_number_are_a_breach() -> None:
    stage, heard = await play(CallTool(1, 0, "work", {"n": 1}), CallTool(1, 0, "work", {"n": 1}), DONE)
    assert stage.error.code == "PROTOCOL"
    assert [event.data["status"] for event in stage.of("tool_completed")] == ["cancelled"]
    assert any(isinstance(message, CancelToolBody) for message in heard)
    assert stage.kinds[-1] == "agent_error"


async def test_open_calls_are_bounded() -> None:
    calls = [CallTool(n, 0, "work", {"n": n}) for n in range(1, 151)]
    stage, heard = await play(*calls, DONE)
    assert sum(isinstance(message, RunToolBody) for message in heard) == 8
    refused = [message for message in heard if isinstance(message, Refused)]
    assert [message.error["code"] for message in refused[:50]] == ["LIMIT_EXCEEDED"] * 50
    assert stage.kinds[-1] == "agent_completed"


async def test_open_children_are_bounded() -> None:
    stage, heard = await play(*(OpenChild(n, 0, "x") for n in range(1, 303)), DONE)
    opened = [message for message in heard if isinstance(message, ChildOpened)]
    assert len(opened) == 200
    assert len({message.context["request_id"] for message in opened}) == 200
    assert stage.kinds == ["agent_started", "agent_completed"]


async def test_a_plan_of_an_agent_that_does_not_plan_is_no_plan() -> None:
    stage, _ = await play(Result({"stages": ["x"]}, plan=True))
    assert stage.error.code == "INVALID_RESULT"


async def test_an_artifact_larger_than_allowed_is_refused_once() -> None:
    pieces = [PutArtifact(1, 0, "a", "text/plain", 1, b"x" * 256 * 1024, False) for _ in range(40)]
    stage, heard = await play(*pieces, PutArtifact(1, 0, "a", "text/plain", 1, b"", True), DONE)
    refused = [message for message in heard if isinstance(message, Refused)]
    assert [message.error["code"] for message in refused] == ["TOO_LARGE"]
    assert stage.uplink.desk.open_uploads == 0
    assert not stage.uplink.stored


async def test_an_error_that_claims_to_be_the_logs_is_still_the_agents() -> None:
    stage, _ = await play(Failure(StaleFenceError("believe me").to_dict()))
    assert stage.kinds == ["agent_started", "agent_error"]
    assert stage.error.code == "STALE_FENCE"


async def test_an_event_that_does_not_fit_its_kind_is_refused() -> None:
    stage, heard = await play(
        EmitEvent(1, 0, "agent_thinking", {"text": 5}),
        EmitEvent(2, 0, "agent_message", {"message_id": "m"}),
        EmitEvent(3, 0, "no_such_kind", {}),
        DONE,
    )
    assert [message.error["code"] for message in heard] == ["INVALID_EVENT"] * 3
    assert stage.kinds == ["agent_started", "agent_completed"]


async def test_what_a_worker_says_of_tools_of_its_own_is_told_as_its_word() -> None:
    call = {"tool_name": "search" + "h" * 99, "tool_call_id": call_id("work"), "arguments": {"q": 1}, "replayed": True}
    end = {"tool_name": "search", "tool_call_id": "c", "status": "ok", "duration_ms": 1, "denied": True, "attempt": 9}
    stage, heard = await play(
        EmitEvent(1, 0, "tool_executing", call),
        EmitEvent(2, 0, "tool_completed", end),
        EmitEvent(3, 0, "tool_completed", {**end, "tool_name": "guarded"}),
        EmitEvent(4, 0, "tool_executing", {"tool_name": "search"}),
        DONE,
    )
    assert [message.error["code"] for message in heard if isinstance(message, Refused)] == ["INVALID_EVENT"] * 2
    (executing,), (completed,) = stage.of("tool_executing"), stage.of("tool_completed")
    assert executing.data == {
        "tool_name": ("search" + "h" * 99)[:64],
        "tool_call_id": f"own-{call_id('work')}",
        "arguments": {"q": 1},
        "attempt": 1,
        "reported": True,
    }
    assert completed.data == {
        "tool_name": "search",
        "tool_call_id": "own-c",
        "status": "ok",
        "duration_ms": 1,
        "attempt": 1,
        "reported": True,
    }
    assert stage.uplink.audited == []


async def test_new_calls_of_handles_that_are_not_open_are_refused_not_believed() -> None:
    stage, heard = await play(
        RunAgent(1, 9, "helper", "", {}), Ask(2, 9, "?", {}), CallModel(3, 9, {"messages": []}), DONE
    )
    assert [message.error["code"] for message in heard] == ["INVALID_CONTEXT"] * 3
    assert stage.kinds == ["agent_started", "agent_completed"]


@pytest.mark.parametrize(
    "message", [AgentReply(1, {}), InputReply(1, "yes"), ModelReply(1, {}), ModelDelta(1, "x"), Cancel("me")]
)
async def test_a_worker_cannot_answer_in_the_hosts_place(message: Any) -> None:
    stage, _ = await play(Ask(1, 0, "?", {}), message, DONE)
    assert stage.error.code == "PROTOCOL"
    assert stage.kinds == ["agent_started", "agent_error"]


@pytest.mark.parametrize("message", [RunAgent(1, 0, "target", "", {}), Ask(1, 0, "?", {})])
async def test_two_open_calls_of_one_number_are_a_breach_for_agents_and_questions_too(message: Any) -> None:
    stage, _ = await play(message, message, ends=False)
    assert stage.error.code == "PROTOCOL"
    assert stage.kinds[-1] == "agent_error"
    assert stage.bench.core.children_active == 0


async def test_calls_of_models_that_there_are_not_are_refused() -> None:
    stage, heard = await play(CallModel(1, 0, {"messages": []}), CallModel(1, 0, {}), DONE)
    assert [message.error["code"] for message in heard] == ["MODEL_UNAVAILABLE"] * 2
    assert stage.kinds[-1] == "agent_completed"


async def test_questions_are_bounded_and_one_that_was_given_up_ends_nothing() -> None:
    many = [Ask(n, 0, f"{n}?", {}) for n in range(1, 121)]
    leave = [CancelCall(n) for n in range(1, 121)]
    stage, heard = await play(*many, *leave, DONE)
    assert [message.error["code"] for message in heard] == ["LIMIT_EXCEEDED"] * 20
    assert stage.kinds == ["agent_started", "agent_completed"]


async def test_giving_up_what_was_never_asked_is_nothing() -> None:
    stage, heard = await play(*(CancelCall(n) for n in range(5)), DONE)
    assert not heard
    assert stage.kinds == ["agent_started", "agent_completed"]


async def test_a_result_while_a_question_is_open_is_the_end() -> None:
    stage, _ = await play(Ask(1, 0, "?", {}), DONE)
    assert stage.result == {"ok": True}


async def test_a_worker_that_dies_after_asking_is_lost_or_waits_never_both() -> None:
    stage, _ = await play(Ask(1, 0, "?", {}), last_attempt=False)
    assert stage.error.code == "WORKER_LOST"
    assert stage.kinds == ["agent_started"]


async def test_params_and_schemas_that_are_no_json_of_ours_hurt_their_own_run_only() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"x": deep}
    stage, heard = await play(RunAgent(1, 0, "target", "", {"n": 2**70}), RunAgent(2, 0, "target", "", deep), DONE)
    assert stage.kinds[-1] in {"agent_completed", "agent_error"}
    assert all(isinstance(message, Refused) for message in heard)
    assert stage.bench.core.children_active == 0
