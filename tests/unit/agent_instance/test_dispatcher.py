"""Tool calls: who may, with what, how many at once, how long, and what user, audit trail and journal see of it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from carrel import Agent, AgentContext, Request, Tool, tool
from carrel.errors import CarrelError, ToolError, ToolTimeoutError
from services.agent_instance.domain.calls import hash_arguments, permits
from services.agent_instance.domain.dispatcher import DispatchStrategy
from services.agent_instance.models import AuditOutcome
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.unit.agent_instance.support import Bench, Stage, call_id

at_work: list[int] = []
most_at_work: list[int] = []


@tool(permission="trace:read")
async def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


@tool
async def blob(size: int) -> str:
    return "b" * size


@tool(timeout_s=0.1)
async def slow(ctx: AgentContext) -> str:
    await asyncio.sleep(5)
    return "late"


@tool
async def broken() -> None:
    raise KeyError("secret text")


@tool
async def busy() -> int:
    at_work.append(1)
    most_at_work.append(len(at_work))
    await asyncio.sleep(0.02)
    at_work.pop()
    return max(most_at_work)


@tool
async def outer(ctx: AgentContext, depth: int) -> int:
    if depth == 0:
        return 0
    async with ctx.child("inner") as child:
        return 1 + int(await child.call_tool("outer", depth=depth - 1))


@tool(host=True, permission="secrets:read")
async def vault(ctx: AgentContext, key: str) -> dict[str, Any]:
    """Runs in the service."""
    await ctx.thinking("opening the vault")
    async with ctx.child("audit") as child:
        await child.thinking("writing it down")
    return {"key": key, "call": ctx.tool_call_id, "total": await ctx.call_tool("add", a=1)}


@tool(host=True)
async def host_broken() -> None:
    raise RuntimeError("inside")


@tool(host=True, timeout_s=0.1)
async def host_slow() -> None:
    await asyncio.sleep(5)


@tool(host=True)
async def host_long() -> None:
    await asyncio.sleep(30)


TOOLS = (add, blob, slow, broken, busy, outer, vault, host_broken, host_slow, host_long)


class Caller(Agent):
    """Calls what the parameters say, and tells what came of it."""

    name = "caller"
    tools: ClassVar[tuple[Tool, ...]] = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            value = await ctx.call_tool(request.params["tool"], **request.params.get("arguments", {}))
        except ToolError as error:
            return {"error": error.code, "message": error.message}
        return {"value": value}


async def call(name: str, *, permissions: frozenset[str] = frozenset({"*"}), **arguments: Any) -> Stage:
    return await Bench(Caller).run("caller", permissions=permissions, params={"tool": name, "arguments": arguments})


async def test_a_call_is_told_audited_and_journaled() -> None:
    stage = await call("add", a=2, b=3)
    assert stage.result == {"value": 5}
    begun, done = stage.of("tool_executing")[0].data, stage.of("tool_completed")[0].data
    name = call_id("add", a=2, b=3)
    assert begun == {"tool_name": "add", "tool_call_id": name, "attempt": 1, "arguments": {"a": 2, "b": 3}}
    assert done["status"] == "ok"
    assert done["result"] == 5
    assert done["tool_call_id"] == begun["tool_call_id"]
    assert done["duration_ms"] >= 0
    (record,) = stage.uplink.audited
    assert (record.action, record.target, record.outcome) == ("tool.call", "add", AuditOutcome.SUCCEEDED)
    assert record.arguments_hash == hash_arguments({"b": 3, "a": 2})
    assert record.context.user_id == "alice"
    assert not hasattr(record, "arguments")
    (entry,) = stage.uplink.journaled
    assert (entry.number, entry.call_id, entry.kind, entry.result) == (
        1,
        f"tool:add:{hash_arguments({'a': 2, 'b': 3})[:16]}:1",
        "tool",
        b"5",
    )


async def test_a_journal_goes_on_after_what_earlier_attempts_wrote() -> None:
    stage = await Bench(Caller).run("caller", journaled=7, attempt=2, params={"tool": "add", "arguments": {"a": 1}})
    assert stage.uplink.journaled[0].number == 8
    assert stage.of("tool_executing")[0].data["attempt"] == 2
    assert stage.of("tool_executing")[0].data["tool_call_id"] == call_id("add", a=1)


@pytest.mark.parametrize(
    ("name", "arguments", "permissions", "code"),
    [
        ("nothing", {}, {"*"}, "UNKNOWN_TOOL"),
        ("add", {"a": 1}, set(), "TOOL_PERMISSION"),
        ("add", {"a": 1}, {"trace:write", "tracer:*"}, "TOOL_PERMISSION"),
        ("add", {"a": "one"}, {"*"}, "TOOL_ARGUMENTS"),
        ("add", {}, {"*"}, "TOOL_ARGUMENTS"),
        ("add", {"a": 1, "c": 2}, {"*"}, "TOOL_ARGUMENTS"),
        ("vault", {"key": "k"}, {"trace:*"}, "TOOL_PERMISSION"),
    ],
)
async def test_a_refused_call_never_begins(
    name: str, arguments: dict[str, Any], permissions: set[str], code: str
) -> None:
    stage = await call(name, permissions=frozenset(permissions), **arguments)
    assert stage.result["error"] == code
    assert not stage.of("tool_executing")
    (told,) = stage.of("tool_completed")
    assert told.data["status"] == "error"
    assert told.data["denied"] is True
    assert told.data["error"]["code"] == code
    (record,) = stage.uplink.audited
    assert (record.outcome, record.error_code) == (AuditOutcome.DENIED, code)
    assert not stage.uplink.journaled
    assert stage.kinds[-1] == "agent_completed"


@pytest.mark.parametrize("granted", ["trace:read", "trace:*", "*"])
async def test_permissions_are_hierarchical(granted: str) -> None:
    assert (await call("add", permissions=frozenset({granted}), a=1)).result == {"value": 2}


def test_permits_takes_parts_not_letters() -> None:
    assert permits(frozenset({"a:*"}), "a:b:c")
    assert permits(frozenset({"a:b:*"}), "a:b:c")
    assert not permits(frozenset({"a:b:*"}), "a:c:b")
    assert not permits(frozenset({"a*"}), "a:b")
    assert not permits(frozenset({"a"}), "a:b")
    assert permits(frozenset(), None)


async def test_a_tools_failure_is_typed_and_quotes_nothing() -> None:
    stage = await call("broken")
    assert stage.result["error"] == "TOOL_FAILED"
    told = stage.of("tool_completed")[0].data
    assert told["status"] == "error"
    assert "KeyError" in told["error"]["message"]
    assert stage.uplink.audited[0].outcome is AuditOutcome.FAILED
    assert stage.uplink.journaled[0].error is not None


async def test_a_tool_over_its_time_is_stopped() -> None:
    with Awake() as took:
        stage = await call("slow")
    assert took.seconds < 2
    assert stage.result["error"] == "TOOL_TIMEOUT"
    assert stage.of("tool_completed")[0].data["status"] == "timeout"
    assert not stage.uplink.journaled


async def test_a_large_result_goes_to_the_caller_whole_and_to_the_event_as_a_reference() -> None:
    stage = await call("blob", size=70_000)
    reference = stage.of("tool_completed")[0].data["result"]["artifact"]
    assert reference["name"] == call_id("blob", size=70_000) + "-1.json"
    assert len(stage.uplink.stored[reference["name"]]) == 70_002
    assert len(stage.uplink.stored["result-0-1-caller.json"]) > 70_000  # the agent returned it, so it had it
    assert len(stage.uplink.journaled[0].result) == 70_002


@pytest.mark.parametrize("strategy", DispatchStrategy)
async def test_nested_calls_work_under_either_strategy(strategy: DispatchStrategy) -> None:
    params = {"tool": "outer", "arguments": {"depth": 5}}
    stage = await Bench(Caller, strategy=strategy).run("caller", params=params)
    assert stage.result == {"value": 5}
    inner = stage.of("tool_executing")[-1]
    assert inner.request_id == stage.caller.context.request_id + "_inner" * 5


class Many(Agent):
    name = "many"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        values = await asyncio.gather(*(ctx.call_tool("busy") for _ in range(10)))
        return {"most": max(values)}


@pytest.mark.parametrize(
    ("strategy", "concurrency", "expected"),
    [(DispatchStrategy.SEQUENTIAL, 8, 1), (DispatchStrategy.CONCURRENT, 3, 3), (DispatchStrategy.CONCURRENT, 20, 10)],
)
async def test_the_strategy_bounds_how_many_run_at_once(
    strategy: DispatchStrategy, concurrency: int, expected: int
) -> None:
    most_at_work.clear()
    stage = await Bench(Many, strategy=strategy, concurrency=concurrency).run("many")
    assert stage.result == {"most": expected}
    assert [e.data["tool_call_id"] for e in stage.of("tool_executing")] == [call_id("busy", n) for n in range(1, 11)]


async def test_a_host_tool_runs_in_the_service_under_the_same_checks() -> None:
    stage = await call("vault", key="k")
    assert stage.result == {"value": {"key": "k", "call": call_id("vault", key="k"), "total": 2}}
    root = stage.caller.context.request_id
    assert [(e.data["text"], e.request_id) for e in stage.of("agent_thinking")] == [
        ("opening the vault", root),
        ("writing it down", f"{root}_audit"),
    ]
    assert [e.data["tool_name"] for e in stage.of("tool_completed")] == ["add", "vault"]
    denied = await call("vault", permissions=frozenset({"secrets:read"}), key="k")
    assert denied.result["error"] == "TOOL_PERMISSION"
    assert [e.data["status"] for e in denied.of("tool_completed")] == ["error", "error"]


async def test_a_host_tool_that_fails_or_hangs_hurts_its_call_only() -> None:
    assert (await call("host_broken")).result["error"] == "TOOL_FAILED"
    stage = await call("host_slow")
    assert stage.result["error"] == "TOOL_TIMEOUT"
    assert stage.kinds[-1] == "agent_completed"


class Leaver(Agent):
    """Leaves a call behind, in a child that it closes, or at its own end."""

    name = "leaver"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        if request.params["how"] == "timeout":
            try:
                async with asyncio.timeout(0.03):
                    await ctx.call_tool("host_long")
            except TimeoutError:
                await ctx.thinking("gave up")
        elif request.params["how"] == "end":
            self.task = asyncio.create_task(ctx.call_tool("host_long"))
            await asyncio.sleep(0.02)
        else:
            async with ctx.child("brief") as child:
                self.task = asyncio.create_task(child.call_tool("host_long"))
                await asyncio.sleep(0.02)
            with pytest.raises(ToolError):
                raise await self._outcome()
        return {}

    async def _outcome(self) -> BaseException:
        try:
            await self.task
        except BaseException as error:  # noqa: BLE001 -- which one it is, is the question
            return error if isinstance(error, ToolError) else ToolTimeoutError(type(error).__name__)
        return AssertionError("it went on")


@pytest.mark.parametrize("how", ["timeout", "end", "child"])
async def test_a_call_that_nobody_waits_for_is_stopped_and_told(how: str) -> None:
    stage = await Bench(Leaver).run("leaver", params={"how": how})
    assert stage.result == {}
    (told,) = stage.of("tool_completed")
    assert told.data["status"] == "cancelled"
    assert stage.kinds[-1] == "agent_completed"


class Narrow(Agent):
    name = "narrow"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        codes = []
        async with ctx.child("few", tools=["add"]) as few:
            assert few.tools == ("add",)
            for tools in (["busy"], ["nothing"]):
                try:
                    async with few.child("more", tools=tools):
                        codes.append("opened")
                except ToolError as error:
                    codes.append(error.code)
            try:
                await few.call_tool("busy")
            except ToolError as error:
                codes.append(error.code)
        return {"codes": codes}


async def test_a_childs_tools_only_shrink() -> None:
    stage = await Bench(Narrow).run("narrow")
    assert stage.result == {"codes": ["TOOL_PERMISSION", "UNKNOWN_TOOL", "UNKNOWN_TOOL"]}


class Deep(Agent):
    name = "deep"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        depth = 0

        async def descend(context: AgentContext) -> None:
            nonlocal depth
            depth = context.context.operation_depth
            async with context.child("d") as child:
                await descend(child)

        try:
            await descend(ctx)
        except Exception as error:  # noqa: BLE001 -- named in the result
            return {"depth": depth, "error": type(error).__name__}
        return {}


async def test_children_nest_to_a_bound() -> None:
    assert (await Bench(Deep).run("deep")).result == {"depth": 16, "error": "InvalidContextError"}


async def test_a_tool_in_progress_is_activity_up_to_its_own_limit(eventually: Eventually) -> None:
    stage = await Bench(Caller, idle_s=0.05).run("caller", params={"tool": "slow"})
    assert stage.result["error"] == "TOOL_TIMEOUT"


async def test_a_permission_withdrawn_by_a_fresh_ticket_is_gone(eventually: Eventually) -> None:
    class Twice(Agent):
        name = "twice"
        tools = TOOLS

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            first = await ctx.call_tool("add", a=1)
            await asyncio.sleep(0.05)
            try:
                await ctx.call_tool("add", a=1)
            except ToolError as error:
                return {"first": first, "then": error.code}
            return {}

    stage = await Bench(Twice).stage("twice")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.of("tool_completed"))
    stage.attempt.refresh(type(stage.caller)(stage.caller.context, frozenset()))
    await task
    assert stage.result == {"first": 2, "then": "TOOL_PERMISSION"}


async def test_a_cancel_says_nothing_of_the_calls_it_ends(eventually: Eventually) -> None:
    stage = await Bench(Caller).stage("caller", params={"tool": "host_long"})
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.of("tool_executing"))
    stage.attempt.cancel("enough")
    await task
    assert stage.error.code == "CANCELLED_RUN"
    assert stage.kinds == ["agent_started", "tool_executing"]
    assert [record.error_code for record in stage.uplink.audited] == ["CANCELLED_RUN"]


kept: list[AgentContext] = []


@tool
async def keeper(ctx: AgentContext) -> None:
    kept.append(ctx)


class Sly(Agent):
    """Tries what only the host may do."""

    name = "sly"
    tools = (keeper,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        codes = []
        for kind, data in (
            ("agent_completed", {"agent_name": "sly"}),
            ("tool_completed", {"tool_name": "keeper", "tool_call_id": "c", "status": "ok", "duration_ms": 1}),
            ("run_completed", {"status": "SUCCEEDED"}),
        ):
            try:
                await ctx._emit(kind, data)
            except CarrelError as error:
                codes.append(error.code)
        await ctx.call_tool("keeper")
        try:
            await kept.pop().thinking("still here?")
        except CarrelError as error:
            codes.append(error.code)
        return {"codes": codes}


async def test_an_agent_cannot_say_what_is_the_hosts_nor_use_a_tools_context_after_it() -> None:
    stage = await Bench(Sly).run("sly")
    assert stage.result == {"codes": ["INVALID_EVENT"] * 3 + ["INVALID_CONTEXT"]}
    assert stage.kinds == ["agent_started", "tool_executing", "tool_completed", "agent_completed"]


@tool(host=True)
async def host_blob(size: int) -> str:
    return "b" * size


class Frames(Caller):
    name = "frames"
    tools: ClassVar[tuple[Tool, ...]] = (blob, host_blob)


@pytest.mark.parametrize("name", ["blob", "host_blob"])
async def test_a_result_over_the_frame_fails_its_call_only(name: str) -> None:
    stage = await Bench(Frames).run("frames", params={"tool": name, "arguments": {"size": 17_000_000}})
    assert stage.result["error"] == "TOOL_FAILED"
    assert "at most" in stage.result["message"]
