"""The worker's side of an attempt against a scripted host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from carrel import Agent, AgentContext, Plan, Request, tool
from carrel.agent_messages import (
    CHUNK_BYTES,
    AgentReply,
    ArtifactStored,
    Ask,
    CallTool,
    Cancel,
    CancelCall,
    CancelToolBody,
    ChildOpened,
    CloseChild,
    EmitEvent,
    EventAccepted,
    Heartbeat,
    InputReply,
    OpenChild,
    PutArtifact,
    Refused,
    Result,
    RunAgent,
    RunToolBody,
    ToolBodyResult,
    ToolReply,
)
from carrel.context import UserExecutionContext
from carrel.errors import (
    CarrelError,
    InvalidContextError,
    InvalidEventError,
    InvalidInputError,
    InvalidRequestError,
    ProtocolError,
    QuotaError,
    TooLargeError,
    ToolArgumentsError,
    ToolError,
    ToolFailedError,
    ToolPermissionError,
    WorkerLostError,
)

RUN = UserExecutionContext(user_id="alice", thread_id="t1", run_id="run-1", request_id="req-1", ticket="secret")
CHILD = RUN.create_child_context("validation")
Hire = Callable[..., Any]


def agent_of(body: Callable[..., Any], *tools: Any, **attributes: Any) -> type[Agent]:
    async def run(self: Agent, ctx: AgentContext, request: Request) -> Any:
        return await body(ctx, request)

    return type("TestAgent", (Agent,), {"name": "test", "tools": tools, "run": run, **attributes})


async def test_an_agent_runs_and_its_result_is_the_last_word(hire: Hire) -> None:
    seen: list[Any] = []

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        seen.append((ctx.context, ctx.attempt, ctx.tools, request))
        await ctx.thinking("Looking", progress=0.5)
        number = await ctx.message("Hello")
        assert await ctx.message(delta=" you", message_id=number) == number
        return {"total": (1, 2), "big": 2**60}

    host = hire(agent_of(body))
    host.start(message="hi", params={"a": 1}, attempt=2, tools=("x",))
    assert await host.end() == {"total": [1, 2], "big": 2**60}
    context, attempt, tools, request = seen[0]
    assert (context.user_id, context.request_id, context.ticket) == ("alice", "req-1", "")
    assert (attempt, tools, request.message, request.params) == (2, ("x",), "hi", {"a": 1})
    assert [event.event_type for event in host.events] == ["agent_thinking", "agent_message", "agent_message"]
    assert host.events[0].data == {"text": "Looking", "progress": 0.5}
    assert host.events[2].data["delta"] == " you"


async def test_an_event_waits_until_the_host_has_a_place_for_it(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("one")
        return {}

    host = hire(agent_of(body))
    host.start()
    event = await host.hear(EmitEvent)
    await asyncio.sleep(0)
    assert host.silent()
    host.say(EventAccepted(event.call_id))
    assert await host.end() == {}


async def test_a_refused_event_raises_the_hosts_own_error(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(TooLargeError) as caught:
            await ctx.thinking("x")
        return {"limit": caught.value.limit, "advice": caught.value.advice}

    host = hire(agent_of(body))
    host.start()
    event = await host.hear(EmitEvent)
    host.say(Refused(event.call_id, TooLargeError("m", limit="l", advice="use an artifact").to_dict()))
    assert await host.end() == {"limit": "l", "advice": "use an artifact"}


async def test_wrong_events_and_arguments_never_leave_the_worker(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(InvalidEventError):
            await ctx.message()
        with pytest.raises(InvalidEventError):
            await ctx.message("a", delta="b")
        with pytest.raises(InvalidRequestError):
            await ctx.thinking("a", when=object())
        with pytest.raises(ToolArgumentsError, match=r"arguments\.x is a object"):
            await ctx.call_tool("t", x=object())
        with pytest.raises(InvalidRequestError):
            await ctx.artifacts.put("../x", b"", "text/plain")
        with pytest.raises(InvalidRequestError):
            await ctx.artifacts.put("x", b"", "plain")
        with pytest.raises(TooLargeError):
            await ctx.artifacts.put("x", bytes(8 * 1024 * 1024 + 1), "text/plain")
        with pytest.raises(InvalidContextError):
            async with ctx.child("a b"):
                pass
        with pytest.raises(InvalidRequestError):
            async with ctx.child("a", tools="load"):
                pass
        return {}

    host = hire(agent_of(body))
    host.start()
    assert await host.end() == {}
    assert host.events == []


class Limits(BaseModel):
    amount: float
    days: int = 7


async def test_a_question_goes_up_with_a_schema_and_its_answer_comes_back_as_asked(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        name = await ctx.ask("Your name?")
        plan = await ctx.ask("Which?", choices=["quick", "thorough"])
        limits = await ctx.ask("How much?", Limits)
        count = await ctx.ask("How many?", {"type": "integer"})
        with pytest.raises(InvalidInputError):
            await ctx.ask("Sure?", bool)
        with pytest.raises(InvalidRequestError):
            await ctx.ask("?", choices="ab")
        return {"name": name, "plan": plan, "days": limits.days, "count": count}

    host = hire(agent_of(body))
    host.start()
    answers = ["Ada", "quick", {"amount": 2.5}, 3, "neither"]
    schemas = []
    for answer in answers:
        call = await host.hear(Ask)
        schemas.append(call.schema)
        host.say(InputReply(call.call_id, answer))
    assert await host.end() == {"name": "Ada", "plan": "quick", "days": 7, "count": 3}
    assert schemas[:2] == [{"type": "string"}, {"type": "string", "enum": ["quick", "thorough"]}]
    assert schemas[2]["required"] == ["amount"]
    assert schemas[3:] == [{"type": "integer"}, {"type": "boolean"}]


async def test_running_an_agent_is_a_call_with_limits_and_a_result(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(InvalidRequestError):
            await ctx.run_agent("x", tools="load")
        with pytest.raises(InvalidRequestError):
            await ctx.run_agent("x", timeout_s=0)
        first = await ctx.run_agent("x", "go", params={"n": 1}, tools=["a"], timeout_s=3, model_tokens=10)
        with pytest.raises(WorkerLostError):
            await ctx.run_agent("x")
        return {"first": dict(first)}

    host = hire(agent_of(body))
    host.start()
    call = await host.hear(RunAgent)
    assert call == RunAgent(call.call_id, 0, "x", "go", {"n": 1}, ("a",), 3.0, 10)
    host.say(AgentReply(call.call_id, {"ok": True}))
    second = await host.hear(RunAgent)
    assert (second.tools, second.timeout_s, second.model_tokens) == (None, None, None)
    host.say(Refused(second.call_id, WorkerLostError("gone").to_dict()))
    assert await host.end() == {"first": {"ok": True}}


async def test_message_ids_are_the_same_in_each_attempt_and_differ_within_one(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"ids": [await ctx.message("a"), await ctx.message("b"), await ctx.message("c", message_id="own")]}

    seen = []
    for attempt in (1, 2):
        host = hire(agent_of(body))
        host.start(attempt=attempt)
        seen.append((await host.end())["ids"])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3


async def test_concurrent_tool_calls_get_each_their_own_answer(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"all": await asyncio.gather(*(ctx.call_tool("square", x=x) for x in range(5)))}

    host = hire(agent_of(body))
    host.start()
    calls = [await host.hear(CallTool) for _ in range(5)]
    for call in reversed(calls):
        host.say(ToolReply(call.call_id, call.arguments["x"] ** 2))
    assert await host.end() == {"all": [0, 1, 4, 9, 16]}


async def test_a_refused_tool_raises_typed_and_the_other_calls_go_on(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        first, second = await asyncio.gather(ctx.call_tool("a"), ctx.call_tool("b", n=None), return_exceptions=True)
        assert isinstance(first, ToolPermissionError)
        assert isinstance(first, ToolError)
        return {"permission": first.details["permission"], "second": second}

    host = hire(agent_of(body))
    host.start()
    a, b = await host.hear(CallTool), await host.hear(CallTool)
    host.say(Refused(a.call_id, ToolPermissionError("no", permission="trace:read").to_dict()))
    host.say(ToolReply(b.call_id, "done"))
    assert await host.end() == {"permission": "trace:read", "second": "done"}


async def test_an_answer_of_another_type_is_a_protocol_error(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"x": await ctx.call_tool("a")}

    host = hire(agent_of(body))
    host.start()
    host.say(EventAccepted((await host.hear(CallTool)).call_id))
    assert (await host.failure())["code"] == "PROTOCOL"


async def test_a_caller_that_leaves_tells_the_host_and_its_late_answer_is_dropped(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.call_tool("slow"), 0.01)
        return {"next": await ctx.call_tool("quick")}

    host = hire(agent_of(body))
    host.start()
    slow = await host.hear(CallTool)
    assert (await host.hear(CancelCall)).call_id == slow.call_id
    quick = await host.hear(CallTool)
    host.say(ToolReply(slow.call_id, "late"))
    host.say(ToolReply(quick.call_id, "on time"))
    assert await host.end() == {"next": "on time"}


async def test_a_child_context_has_its_own_handle_and_dies_with_its_block(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        async with ctx.child("validation", tools=["check"]) as child:
            await child.thinking("inside")
            assert (child.context.request_id, child.context.parent_request_id) == ("req-1_validation", "req-1")
            assert child.tools == ("check",)
        with pytest.raises(InvalidContextError, match="closed"):
            await child.thinking("outside")
        with pytest.raises(InvalidContextError, match="closed"):
            await child.call_tool("check")
        await ctx.thinking("parent lives on")
        return {}

    host = hire(agent_of(body))
    host.start()
    opening = await host.hear(OpenChild)
    assert (opening.handle, opening.operation_name, opening.tools) == (0, "validation", ("check",))
    host.say(ChildOpened(opening.call_id, 7, CHILD.to_dict(), ("check",)))
    assert (await host.hear(CloseChild)).handle == 7
    await host.end()
    assert [event.handle for event in host.events] == [7, 0]


async def test_a_child_is_closed_when_its_block_raises(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(ZeroDivisionError):
            async with ctx.child("validation"):
                raise ZeroDivisionError
        return {}

    host = hire(agent_of(body))
    host.start()
    opening = await host.hear(OpenChild)
    assert opening.tools is None
    host.say(ChildOpened(opening.call_id, 3, CHILD.to_dict()))
    assert (await host.hear(CloseChild)).handle == 3
    assert await host.end() == {}


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, CHUNK_BYTES * 2 + 1])
async def test_an_artifact_travels_in_pieces(hire: Hire, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        return (await ctx.artifacts.put("load.bin", content, "application/octet-stream")).to_dict()

    host = hire(agent_of(body))
    host.start()
    got, pieces = b"", 0
    while True:
        piece = await host.hear(PutArtifact)
        assert (piece.name, piece.total_size) == ("load.bin", size)
        got, pieces = got + piece.data, pieces + 1
        if piece.last:
            break
    assert got == content
    assert pieces == max(1, -(-size // CHUNK_BYTES))
    ref = {
        "name": "load.bin",
        "media_type": piece.media_type,
        "size": size,
        "sha256": hashlib.sha256(content).hexdigest(),
        "url": "/api/runs/run-1/artifacts/load.bin",
    }
    host.say(ArtifactStored(piece.call_id, ref))
    assert await host.end() == ref


async def test_text_is_stored_as_utf8_and_a_changed_artifact_is_noticed(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.artifacts.put("a.txt", "é", "text/plain; charset=utf-8")
        return {}

    host = hire(agent_of(body))
    host.start()
    piece = await host.hear(PutArtifact)
    assert piece.data == "é".encode()
    ref = {"name": "a.txt", "media_type": "text/plain", "size": 2, "sha256": "0" * 64, "url": "/"}
    host.say(ArtifactStored(piece.call_id, ref))
    assert (await host.failure())["code"] == "PROTOCOL"


async def test_an_artifact_over_quota_raises(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        with pytest.raises(QuotaError):
            await ctx.artifacts.put("a.txt", "x", "text/plain")
        return {}

    host = hire(agent_of(body))
    host.start()
    host.say(Refused((await host.hear(PutArtifact)).call_id, QuotaError("full").to_dict()))
    assert await host.end() == {}


@tool(timeout_s=1)
async def shout(ctx: AgentContext, text: str, times: int = 1) -> str:
    """Make it loud."""
    await ctx.thinking(f"shouting as {ctx.tool_call_id}")
    if text == "platform":
        raise QuotaError("no space", advice="delete something", retry_after_s=2)
    if text == "typed":
        raise ToolFailedError("the price table is missing")
    if text == "boom":
        raise ValueError("alice's private words")
    if text == "odd":
        return object()  # type: ignore[return-value]  # what a careless author does
    if text == "wait":
        await asyncio.Event().wait()
    return text.upper() * times


@tool
async def plain(x: int) -> int:
    return x + 1


@tool(host=True)
async def guarded() -> int:
    return 1


async def wait_forever(ctx: AgentContext, request: Request) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


def run_shout(text: str, call_id: str = "call-1", **arguments: Any) -> RunToolBody:
    return RunToolBody(call_id, "shout", {"text": text, **arguments}, 7, CHILD.to_dict(), ("shout",))


async def test_a_tools_body_runs_on_the_hosts_word_in_the_context_it_names(hire: Hire) -> None:
    host = hire(agent_of(wait_forever, shout, plain))
    host.start()
    host.say(run_shout("hey", times=2))
    assert await host.hear(ToolBodyResult) == ToolBodyResult("call-1", "HEYHEY")
    assert (host.events[0].handle, host.events[0].data) == (7, {"text": "shouting as call-1"})
    host.say(RunToolBody("call-2", "plain", {"x": "2"}, 0, RUN.to_dict()))
    assert await host.hear(ToolBodyResult) == ToolBodyResult("call-2", 3)


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (run_shout("typed"), "TOOL_FAILED", "the price table is missing"),
        (run_shout("platform"), "TOOL_FAILED", "tool shout: no space"),
        (run_shout("boom"), "TOOL_FAILED", "tool shout failed: ValueError at test_agent_runtime.py:"),
        (run_shout("odd"), "TOOL_FAILED", "tool shout: result is a object"),
        (run_shout("x", times="many"), "TOOL_ARGUMENTS", "shout: times: "),
        (RunToolBody("call-1", "nothing", {}, 0, RUN.to_dict()), "UNKNOWN_TOOL", "nothing"),
        (RunToolBody("call-1", "guarded", {}, 0, RUN.to_dict()), "UNKNOWN_TOOL", "guarded"),
    ],
)
async def test_a_failing_body_answers_with_a_tool_error(hire: Hire, message: RunToolBody, code: str, text: str) -> None:
    host = hire(agent_of(wait_forever, shout, guarded))
    host.start()
    host.say(message)
    answer = await host.hear(ToolBodyResult)
    assert answer.error["code"] == code
    assert text in answer.error["message"]
    assert "private" not in str(answer)


async def test_a_cancelled_body_still_answers_once(hire: Hire) -> None:
    host = hire(agent_of(wait_forever, shout))
    host.start()
    host.say(run_shout("wait"))
    host.say(run_shout("other", "call-2"))
    assert (await host.hear(ToolBodyResult)).tool_call_id == "call-2"
    host.say(CancelToolBody("call-1"))
    answer = await host.hear(ToolBodyResult)
    assert (answer.tool_call_id, answer.error["code"]) == ("call-1", "CANCELLED_RUN")
    host.say(CancelToolBody("call-1"))
    host.say(Cancel("user"))
    assert (await host.failure())["code"] == "CANCELLED_RUN"


async def test_cancel_ends_agent_tools_and_every_later_call(hire: Hire) -> None:
    ended: list[str] = []

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await asyncio.gather(ctx.call_tool("shout", text="wait"), ctx.thinking("never accepted"))
        except asyncio.CancelledError:
            ended.append("call")
        with pytest.raises(asyncio.CancelledError):
            await ctx.thinking("later")
        ended.append("later")
        return {"I": "went on"}

    host = hire(agent_of(body, shout))
    host.accept_events = False
    host.start()
    await host.hear(CallTool)
    await host.hear(EmitEvent)
    host.say(run_shout("wait"))
    await host.hear(EmitEvent)
    host.say(Cancel("the user asked"))
    error = await host.failure()
    assert (error["code"], error["message"]) == ("CANCELLED_RUN", "the run was cancelled: the user asked")
    assert ended == ["call", "later"]


async def test_a_task_that_the_agent_left_behind_can_reach_nothing_any_more(hire: Hire) -> None:
    left: list[asyncio.Task[Any]] = []

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        left.append(asyncio.create_task(ctx.call_tool("shout", text="wait")))
        await ctx.thinking("the call is on its way")
        return {}

    host = hire(agent_of(body, shout))
    host.start()
    await host.hear(CallTool)
    assert await host.end() == {}
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(left[0], 5)


async def test_a_body_that_clings_to_life_ends_before_the_last_word(hire: Hire) -> None:
    @tool
    async def cling() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "still here"

    go = asyncio.Event()

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        await go.wait()
        return {}

    host = hire(agent_of(body, cling, plain))
    host.start()
    host.say(RunToolBody("call-1", "cling", {}, 0, RUN.to_dict()))
    host.say(RunToolBody("call-2", "plain", {"x": 1}, 0, RUN.to_dict()))
    assert (await host.hear(ToolBodyResult)).tool_call_id == "call-2"
    go.set()
    assert (await host.hear(ToolBodyResult)).result == "still here"
    assert await host.end() == {}


async def test_an_agent_cancelled_by_its_own_hand_has_failed(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise asyncio.CancelledError

    host = hire(agent_of(body))
    host.start()
    assert (await host.failure())["code"] == "AGENT_FAILED"


async def test_a_raising_agent_tells_where_and_not_what(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        empty: dict[str, int] = {}
        return {"x": empty["alice's private words"]}

    host = hire(agent_of(body))
    host.start()
    error = await host.failure()
    assert error["code"] == "AGENT_FAILED"
    assert error["message"].startswith("agent test failed: KeyError at test_agent_runtime.py:")
    assert "private" not in str(error)


async def test_an_agents_own_carrel_error_passes_as_it_is(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise CarrelError("my reason", advice="do this", part="x")

    host = hire(agent_of(body))
    host.start()
    error = await host.failure()
    assert (error["code"], error["advice"], error["details"]) == ("CARREL", "do this", {"part": "x"})


class OddError(BaseException):
    """What no `except Exception` sees."""


UNUSUAL = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), OddError(), BaseExceptionGroup("g", [SystemExit(1)])]


@pytest.mark.parametrize("raised", UNUSUAL, ids=repr)
async def test_nothing_that_an_agent_raises_leaves_its_attempt(hire: Hire, raised: BaseException) -> None:
    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise raised

    host = hire(agent_of(body))
    host.start()
    error = await host.failure()
    assert (error["code"], error["details"]["cause"]) == ("AGENT_FAILED", type(raised).__name__)


@pytest.mark.parametrize("raised", UNUSUAL, ids=repr)
async def test_nothing_that_a_tools_body_raises_leaves_its_call(hire: Hire, raised: BaseException) -> None:
    @tool(description="raises")
    async def burst() -> int:
        raise raised

    host = hire(agent_of(wait_forever, burst))
    host.start()
    host.say(RunToolBody("call-1", "burst", {}, 0, RUN.to_dict()))
    answer = await host.hear(ToolBodyResult)
    assert (answer.error["code"], answer.error["details"]["cause"]) == ("TOOL_FAILED", type(raised).__name__)
    assert not host.serving.done()


@pytest.mark.parametrize("result", [None, "text", [1], {"x": object()}, {1: 2}])
async def test_a_result_that_is_no_json_object_is_refused(hire: Hire, result: object) -> None:
    async def body(ctx: AgentContext, request: Request) -> Any:
        return result

    host = hire(agent_of(body))
    host.start()
    assert (await host.failure())["code"] == "INVALID_RESULT"


async def test_plans_come_from_planners_only(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Any:
        return Plan(("data", "report"), {"a": 1}, "because")

    planner = hire(agent_of(body, plans=True))
    planner.start()
    result = await planner.hear(Result)
    assert result.plan
    assert Plan.from_dict(result.result) == Plan(("data", "report"), {"a": 1}, "because")
    other = hire(agent_of(body))
    other.start()
    assert (await other.failure())["code"] == "INVALID_RESULT"


async def test_an_unknown_agent_or_a_broken_start_is_a_failure(hire: Hire) -> None:
    host = hire(agent_of(wait_forever))
    host.start(name="nobody")
    assert (await host.failure())["code"] == "UNKNOWN_AGENT"


async def test_the_host_going_away_ends_everything_silently(hire: Hire) -> None:
    cancelled = asyncio.Event()

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await ctx.call_tool("shout", text="wait")
        finally:
            cancelled.set()
        return {}

    host = hire(agent_of(body, shout))
    host.start()
    await host.hear(CallTool)
    host.leave()
    await host.ended()
    assert cancelled.is_set()
    idle = hire(agent_of(wait_forever))
    idle.leave()
    await idle.ended()


@pytest.mark.parametrize(
    "nonsense", [ToolReply(4711, 1), run_shout("wait"), "start"], ids=["answer nobody asked for", "body twice", "start"]
)
async def test_a_host_that_breaks_the_protocol_ends_the_attempt(hire: Hire, nonsense: Any) -> None:
    host = hire(agent_of(wait_forever, shout))
    host.start()
    host.say(run_shout("wait"))
    host.start() if nonsense == "start" else host.say(nonsense)
    with pytest.raises(ProtocolError):
        await asyncio.wait_for(asyncio.shield(host.serving), 5)


async def test_the_first_message_must_be_start(hire: Hire) -> None:
    host = hire(agent_of(wait_forever))
    host.say(Cancel())
    with pytest.raises(ProtocolError):
        await asyncio.wait_for(asyncio.shield(host.serving), 5)


async def test_heartbeats_show_that_the_loop_is_alive(hire: Hire) -> None:
    host = hire(agent_of(wait_forever), heartbeat_s=0.001)
    host.start()
    assert [(await host.hear(Heartbeat)).sequence for _ in range(3)] == [1, 2, 3]


async def test_killing_the_session_ends_the_agent_too(hire: Hire) -> None:
    cancelled = asyncio.Event()

    async def body(ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await ctx.thinking("x")
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    host = hire(agent_of(body))
    host.start()
    await host.hear(EmitEvent)
    await host.aclose()
    assert cancelled.is_set()
