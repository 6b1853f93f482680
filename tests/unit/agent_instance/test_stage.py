"""A stage from its first event to its result: order, children, results, failures, time limits, cancel."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from carrel import Agent, AgentContext, Plan, Request, tool
from carrel.errors import CancelledRunError, PlanError, SealedLogError, StaleFenceError, StoreUnavailableError
from services.agent_instance.models import Caller
from tests.conftest import Eventually
from tests.unit.agent_instance.support import Bench, root_context


@tool(permission="trace:read")
async def double(ctx: AgentContext, value: int) -> int:
    """Doubles."""
    await ctx.thinking("doubling")
    return value * 2


class Echo(Agent):
    name = "echo"
    description = "Says it back."
    tools = (double,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("listening")
        value = await ctx.call_tool("double", value=21)
        await ctx.message(request.message)
        return {"value": value, "message": request.message}


async def test_events_come_in_order_first_started_last_completed() -> None:
    stage = await Bench(Echo).run("echo")
    assert stage.kinds == [
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "agent_thinking",
        "tool_completed",
        "agent_message",
        "agent_completed",
    ]
    assert stage.result == {"value": 42, "message": "hello"}
    assert stage.events[0].data == {
        "agent_name": "echo",
        "description": "Says it back.",
        "stage": 0,
        "attempt": 1,
    }
    assert stage.events[-1].data["result"] == stage.result
    assert {event.agent for event in stage.events} == {"echo"}
    assert stage.outcome is not None
    assert stage.outcome.answered_by == "echo"
    assert stage.outcome.events_through == 7
    assert stage.producer.closed


class Family(Agent):
    name = "family"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        ids = []
        for _ in range(2):
            async with ctx.child("check") as child:
                await child.thinking("looking")
                async with child.child("deep") as grandchild:
                    await grandchild.thinking("deeper")
                    ids.append(grandchild.context.request_id)
                ids.append(child.context.request_id)
                assert child.context.parent_request_id == ctx.context.request_id
        await ctx.thinking("back")
        return {"ids": ids}


async def test_childrens_events_carry_their_request_and_repeated_names_are_numbered() -> None:
    stage = await Bench(Family).run("family")
    root = stage.caller.context.request_id
    thinking = [event.request_id for event in stage.of("agent_thinking")]
    assert thinking == [
        f"{root}_check",
        f"{root}_check_deep",
        f"{root}_check_2",
        f"{root}_check_2_deep",
        root,
    ]
    assert stage.result["ids"] == [f"{root}_check_deep", f"{root}_check", f"{root}_check_2_deep", f"{root}_check_2"]
    assert stage.events[0].request_id == stage.events[-1].request_id == root


class Planner(Agent):
    name = "planner"
    plans = True

    async def run(self, ctx: AgentContext, request: Request) -> Plan:
        return Plan(("data", "report"), {"depth": 2}, "as asked")


async def test_a_planners_plan_travels_as_a_plan() -> None:
    stage = await Bench(Planner).run("planner")
    assert stage.outcome is not None
    assert stage.outcome.plan == Plan(("data", "report"), {"depth": 2}, "as asked")
    assert stage.outcome.result is None
    assert stage.events[-1].data["result"]["stages"] == ["data", "report"]


async def test_a_plan_too_large_to_travel_says_so() -> None:
    class Verbose(Agent):
        name = "verbose"
        plans = True

        async def run(self, ctx: AgentContext, request: Request) -> Plan:
            return Plan(("data",), {"text": "y" * 256 * 1024})

    stage = await Bench(Verbose).run("verbose")
    assert stage.outcome is not None
    assert stage.outcome.plan is None
    assert isinstance(stage.outcome.error, PlanError)
    assert stage.outcome.error.details["limit"] == "plan_bytes"


async def test_the_result_waits_for_the_log_and_the_wait_is_not_the_agents_time(eventually: Eventually) -> None:
    stage = await Bench(Echo).stage("echo")
    stage.producer.open.clear()
    began = time.monotonic()
    task = asyncio.create_task(stage.run())
    await eventually(lambda: "agent_completed" in stage.kinds)
    done, _ = await asyncio.wait({task}, timeout=0.15)
    assert not done
    stage.producer.open.set()
    outcome = await task
    assert outcome.log_wait_s >= 0.1
    assert outcome.agent_time_s + outcome.log_wait_s <= time.monotonic() - began
    assert outcome.error is None


async def test_a_log_that_never_answers_gives_an_error_and_no_result() -> None:
    stage = await Bench(Echo, log_wait_s=0.05).stage("echo")
    stage.producer.open.clear()
    outcome = await stage.run()
    assert outcome.result is None
    assert isinstance(outcome.error, StoreUnavailableError)
    assert outcome.events_through == 0


class Large(Agent):
    name = "large"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"text": "x" * request.params["size"]}


async def test_a_large_result_becomes_an_artifact_and_a_reference() -> None:
    stage = await Bench(Large).run("large", params={"size": 70_000})
    reference = stage.result["artifact"]
    assert reference["url"] == f"/api/runs/{stage.caller.run_id}/artifacts/result-0-1-large.json"
    assert len(stage.uplink.stored["result-0-1-large.json"]) > 70_000
    assert stage.events[-1].data["result"] == {"artifact": reference}


async def test_a_result_below_the_bound_stays_whole() -> None:
    stage = await Bench(Large).run("large", params={"size": 64_000})
    assert len(stage.result["text"]) == 64_000
    assert not stage.uplink.stored


async def test_a_result_over_every_bound_is_an_error_that_says_so() -> None:
    stage = await Bench(Large).run("large", params={"size": 9_000_000})
    assert stage.error.code == "TOO_LARGE"
    assert stage.kinds[-1] == "agent_error"


class Loud(Agent):
    name = "loud"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("y" * 50_000, detail=list(range(2000)))
        message_id = await ctx.message("z" * 100_000)
        return {"id": message_id}


async def test_an_event_over_its_bound_carries_a_reference_and_its_beginning() -> None:
    stage = await Bench(Loud).run("loud")
    thinking = stage.of("agent_thinking")[0].data
    assert thinking["text"].startswith("yyy")
    assert len(thinking["text"]) < 2000
    assert thinking["artifact"]["name"] in stage.uplink.stored
    message = stage.of("agent_message")[0].data
    assert message["message_id"] == stage.result["id"]
    assert message["artifact"]["size"] > 100_000
    assert stage.kinds[-1] == "agent_completed"


async def test_an_oversize_event_still_goes_out_when_storage_refuses() -> None:
    stage = await Bench(Loud).stage("loud")
    stage.uplink.refuse = StoreUnavailableError("no space")
    await stage.run()
    assert stage.of("agent_message")[0].data["artifact"]["error"] == "STORE_UNAVAILABLE"
    assert stage.kinds[-1] == "agent_completed"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": float("nan")}, "result.a is not a finite number"),
        ({"a": {"b": {1, 2}}}, "result.a.b is a set"),
        ([1], "returned list"),
        (None, "returned NoneType"),
        (Plan(("x",)), "returned a Plan"),
    ],
)
async def test_a_result_that_is_no_json_object_names_what_is_wrong(value: object, says: str) -> None:
    class Odd(Agent):
        name = "odd"

        async def run(self, ctx: AgentContext, request: Request) -> Any:
            return value

    stage = await Bench(Odd).run("odd")
    assert stage.error.code == "INVALID_RESULT"
    assert says in stage.error.message
    assert stage.kinds == ["agent_started", "agent_error"]


class Failing(Agent):
    name = "failing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise ValueError("boom")


async def test_a_failure_ends_in_one_agent_error_with_advice() -> None:
    stage = await Bench(Failing).run("failing")
    assert stage.kinds == ["agent_started", "agent_error"]
    data = stage.events[-1].data
    assert data["code"] == "AGENT_FAILED"
    assert "ValueError" in data["message"]
    assert data["recovered"] is False
    assert data["retryable"] is False
    assert stage.error.code == "AGENT_FAILED"
    assert stage.bench.core.counts.failed == 1


class Wavering(Failing):
    name = "wavering"
    fallback = "echo"


async def test_a_fallback_answers_in_the_same_stage() -> None:
    bench = Bench(Wavering, Echo)
    stage = await bench.run("wavering")
    assert stage.kinds[:3] == ["agent_started", "agent_error", "agent_started"]
    assert stage.kinds[-1] == "agent_completed"
    assert stage.events[1].data["fallback"] == "echo"
    assert stage.events[1].data["recovered"] is True
    assert stage.events[1].agent == "wavering"
    assert stage.events[2].agent == "echo"
    assert stage.outcome is not None
    assert stage.outcome.answered_by == "echo"
    assert stage.result["value"] == 42
    assert bench.core.counts.fallbacks == 1
    assert bench.services.fallbacks.active == 0


class Doubtful(Failing):
    name = "doubtful"
    fallback = "wavering"


async def test_a_fallback_that_fails_has_no_second_one() -> None:
    stage = await Bench(Doubtful, Wavering, Echo).run("doubtful")
    assert stage.kinds == ["agent_started", "agent_error", "agent_started", "agent_error"]
    assert stage.error.code == "AGENT_FAILED"
    assert "fallback" not in stage.events[-1].data


async def test_fallbacks_beyond_their_bound_are_not_tried() -> None:
    stage = await Bench(Wavering, Echo, max_fallbacks=0).run("wavering")
    assert stage.kinds == ["agent_started", "agent_error"]


class Silent(Agent):
    name = "silent"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await asyncio.sleep(request.params.get("s", 30))
        return {}


async def test_a_silent_agent_is_ended_after_its_idle_time() -> None:
    began = time.monotonic()
    stage = await Bench(Silent, idle_s=0.2).run("silent")
    assert stage.error.code == "AGENT_IDLE_TIMEOUT"
    assert stage.kinds == ["agent_started", "agent_error"]
    assert stage.outcome is not None
    assert 0.15 < stage.outcome.agent_time_s <= time.monotonic() - began


async def test_periodic_updates_show_life_and_are_no_activity() -> None:
    stage = await Bench(Silent, idle_s=1.0, periodic_s=0.1).run("silent")
    updates = stage.of("agent_thinking")
    assert 2 <= len(updates) <= 10
    assert updates[0].data["heartbeat"] is True
    assert updates[0].data["status"] == "working"
    assert stage.error.code == "AGENT_IDLE_TIMEOUT"
    assert stage.bench.services.periodic.active == 0


class Patient(Silent):
    name = "patient"
    idle_timeout_s = 2.0


class Quick(Silent):
    name = "quick"
    timeout_s = 0.2


async def test_a_class_may_ask_for_its_own_limits() -> None:
    assert (await Bench(Patient, idle_s=0.1).run("patient", params={"s": 0.3})).result == {}
    assert (await Bench(Quick).run("quick")).error.code == "ENGINE_TIMEOUT"


class Lasting(Silent):
    name = "lasting"
    fallback = "echo"


async def test_the_engines_deadline_ends_the_stage_without_a_fallback() -> None:
    bench = Bench(Lasting, Echo)
    stage = await bench.run("lasting", deadline=time.time() + 0.2)
    assert stage.error.code == "ENGINE_TIMEOUT"
    assert stage.kinds == ["agent_started", "agent_error"]


async def test_an_idle_agent_is_answered_by_its_fallback() -> None:
    stage = await Bench(Lasting, Echo, idle_s=0.2).run("lasting")
    assert stage.events[1].data["code"] == "AGENT_IDLE_TIMEOUT"
    assert stage.result["value"] == 42


class Flood(Agent):
    name = "flood"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for index in range(50):
            await ctx.message(f"{index}")
        return {}


async def test_a_log_that_is_behind_slows_its_own_agent_and_costs_it_no_idle_time(eventually: Eventually) -> None:
    bench = Bench(Flood, Echo, idle_s=0.8)
    stage = await bench.stage("flood")
    stage.producer.limit = 10
    stage.producer.open.clear()
    task = asyncio.create_task(stage.run())
    await eventually(lambda: len(stage.events) == 10)
    assert (await bench.run("echo")).result["value"] == 42
    done, _ = await asyncio.wait({task}, timeout=1.0)
    assert not done
    stage.producer.open.set()
    assert (await task).error is None
    assert len(stage.of("agent_message")) == 50


class Tidy(Agent):
    name = "tidy"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await asyncio.sleep(30)
        finally:
            request_params_seen.append(dict(request.params))
        return {}


request_params_seen: list[dict[str, Any]] = []


async def test_a_cancelled_agent_is_asked_and_says_nothing_more(eventually: Eventually) -> None:
    request_params_seen.clear()
    stage = await Bench(Tidy).stage("tidy", params={"n": 1})
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.kinds == ["agent_started"])
    await asyncio.sleep(0.01)
    stage.attempt.cancel("the user asked")
    outcome = await task
    assert isinstance(outcome.error, CancelledRunError)
    assert "the user asked" in outcome.error.message
    assert stage.kinds == ["agent_started"]
    assert request_params_seen == [{"n": 1}]
    assert stage.bench.core.counts.killed == 0


class Stubborn(Agent):
    name = "stubborn"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return {}


async def test_an_agent_that_ignores_cancel_is_killed_after_its_grace(
    eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    stage = await Bench(Stubborn).stage("stubborn")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.kinds == ["agent_started"])
    stage.attempt.cancel("enough", 0.1)
    outcome = await task
    assert outcome.error is not None
    assert outcome.error.code == "CANCELLED_RUN"
    assert stage.bench.core.counts.killed == 1
    assert any("abandoned" in record.getMessage() for record in caplog.records)
    # The abandoned task ends by itself here; the process executor will not have to wait for that.
    await eventually(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith(("agent", "reader"))])


async def test_a_cancel_before_the_agent_began_counts() -> None:
    stage = await Bench(Silent).stage("silent")
    stage.attempt.cancel("at once")
    assert (await stage.run()).error is not None
    assert stage.error.code == "CANCELLED_RUN"
    assert "agent_error" not in stage.kinds


@pytest.mark.parametrize("error", [StaleFenceError("somebody newer"), SealedLogError("over")])
async def test_a_dead_producer_kills_the_attempt(error: Any, eventually: Eventually) -> None:
    stage = await Bench(Lasting, Echo).stage("lasting")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.kinds == ["agent_started"])
    stage.producer.dead.set_result(error)
    outcome = await asyncio.wait_for(task, 10)
    assert outcome.error is error
    assert stage.kinds == ["agent_started"]
    assert stage.bench.core.counts.fallbacks == 0


async def test_cancelling_the_attempt_releases_everything(eventually: Eventually) -> None:
    stage = await Bench(Silent).stage("silent")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.kinds == ["agent_started"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.producer.closed


async def test_a_fresh_ticket_reaches_producer_and_permissions(eventually: Eventually) -> None:
    stage = await Bench(Silent).stage("silent", params={"s": 0.1})
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.kinds == ["agent_started"])
    fresh = Caller(stage.caller.context.with_ticket("fresher"), frozenset())
    stage.attempt.refresh(fresh)
    await task
    assert [context.ticket for context in stage.producer.contexts] == ["fresher"]


class Leaky(Agent):
    name = "leaky"
    seen: list[Any] = []  # noqa: RUF012 -- the fault that the test is about

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        Leaky.seen.append((ctx, request, self))
        await asyncio.sleep(0.02)
        return {"user": ctx.context.user_id, "ticket": ctx.context.ticket, "params": request.to_dict()["params"]}


async def test_two_users_runs_share_no_object_but_what_the_class_itself_shares() -> None:
    Leaky.seen.clear()
    bench = Bench(Leaky)
    shared = {"list": [1, 2], "deep": {"x": [3]}}
    alice = await bench.stage("leaky", user="alice", params=shared)
    bob = await bench.stage("leaky", user="bob", params=shared)
    await asyncio.gather(alice.run(), bob.run())
    assert alice.result["user"] == "alice"
    assert bob.result["user"] == "bob"
    (ctx_a, request_a, self_a), (ctx_b, request_b, self_b) = Leaky.seen
    assert self_a is not self_b
    assert ctx_a.context is not alice.caller.context
    assert request_a.params["deep"] is not request_b.params["deep"]
    ctx_a.context.verify_isolation(ctx_b.context)
    with pytest.raises(TypeError):
        request_a.params["deep"]["x"] = 1
    assert shared == {"list": [1, 2], "deep": {"x": [3]}}
    assert alice.result["ticket"] == ""


async def test_nothing_of_the_services_context_variables_reaches_the_agent() -> None:
    from servicekit.identity.principals import RunPrincipal
    from servicekit.rpc.context import current_principal, enter_call

    class Curious(Agent):
        name = "curious"

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            try:
                return {"found": current_principal().scope.value}
            except Exception as error:  # noqa: BLE001 -- what it is called is the point
                return {"found": type(error).__name__}

    enter_call(RunPrincipal("alice", "t", "r", "q", frozenset(), {}, 0.0), None)
    assert (await Bench(Curious).run("curious")).result == {"found": "UnauthenticatedError"}
    assert root_context().user_id == "alice"


async def test_a_cancel_while_the_result_waits_for_the_log_ends_the_wait(eventually: Eventually) -> None:
    stage = await Bench(Echo, log_wait_s=30).stage("echo")
    stage.producer.open.clear()
    task = asyncio.create_task(stage.run())
    await eventually(lambda: "agent_completed" in stage.kinds)
    stage.attempt.cancel("late")
    outcome = await asyncio.wait_for(task, 10)
    assert isinstance(outcome.error, CancelledRunError)
    assert outcome.result is None


async def test_a_cancel_while_the_last_event_waits_for_room_ends_the_wait(eventually: Eventually) -> None:
    stage = await Bench(Failing, log_wait_s=30).stage("failing")
    stage.producer.limit = 1
    stage.producer.open.clear()
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.bench.core.counts.failed == 1)
    stage.attempt.cancel("late")
    outcome = await asyncio.wait_for(task, 10)
    assert isinstance(outcome.error, CancelledRunError)
    assert stage.kinds == ["agent_started"]


async def test_a_result_over_the_frame_is_an_error_that_says_so() -> None:
    stage = await Bench(Large).run("large", params={"size": 17_000_000})
    assert stage.error.code == "TOO_LARGE"
