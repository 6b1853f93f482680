"""A repeated attempt over the journal of those before; lost workers; what workers have printed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import CarrelError, ProtocolError, ToolError, ToolFailedError, WorkerLimitError
from services.agent_instance.domain.calls import CallLedger, hash_arguments
from services.agent_instance.domain.ports import BoundedJournal
from services.agent_instance.domain.told_errors import MAX_ERROR_BYTES, told_error
from services.agent_instance.models import JournalItem
from tests.unit.agent_instance.support import Bench, FakeUplink, Stage, call_id
from tests.unit.agent_instance.test_hostile_worker import Scripted

ran: list[Any] = []
names: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    names.clear()


@tool
async def draw(ctx: AgentContext, n: int) -> int:
    ran.append(n)
    names.append(ctx.tool_call_id)
    return n * 100 + len(ran)


@tool(host=True)
async def vault() -> int:
    ran.append("vault")
    return len(ran)


@tool
async def broken() -> None:
    ran.append("broken")
    raise ValueError("no")


@tool(timeout_s=0.05)
async def late() -> None:
    ran.append("late")
    await asyncio.sleep(5)


@tool
async def outer(ctx: AgentContext) -> Any:
    return await ctx.call_tool("draw", n=1)


@tool
async def blob(size: int) -> str:
    ran.append(size)
    return "x" * size


TOOLS = (draw, vault, broken, late, outer, blob)


class Worker(Agent):
    name = "worker"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        done = []
        for name, arguments in request.params["calls"]:
            try:
                done.append(await ctx.call_tool(name, **arguments))
            except ToolError as error:
                done.append([error.code, error.message])
        return {"done": done}


async def twice(*calls: Any) -> tuple[Stage, Stage]:
    params = {"calls": list(calls)}
    first = await Bench(Worker).run("worker", params=params)
    return first, await first.again(params=params)


async def test_a_completed_call_is_answered_from_the_journal_and_not_made_again() -> None:
    first, second = await twice(("draw", {"n": 1}), ("draw", {"n": 1}), ("vault", {}), ("draw", {"n": 2}))
    assert first.result == second.result
    assert len(ran) == 4
    assert not second.uplink.audited
    assert not second.uplink.journaled
    assert [event.kind for event in second.events] == [event.kind for event in first.events]
    for event in second.of("tool_executing") + second.of("tool_completed"):
        assert event.data["replayed"] is True
    ids = [event.data["tool_call_id"] for event in first.of("tool_executing")]
    assert ids == [event.data["tool_call_id"] for event in second.of("tool_executing")]
    assert ids[:2] == [call_id("draw", n=1), call_id("draw", 2, n=1)]


async def test_a_failure_of_a_body_is_replayed_as_the_same_error_and_others_are_tried_again() -> None:
    first, second = await twice(("broken", {}), ("late", {}))
    assert first.result == second.result
    assert ran == ["broken", "late", "late"]
    assert [event.data["status"] for event in second.of("tool_completed")] == ["error", "timeout"]


async def test_other_arguments_are_another_call() -> None:
    first = await Bench(Worker).run("worker", params={"calls": [("draw", {"n": 1})]})
    second = await first.again(params={"calls": [("draw", {"n": 2})]})
    assert ran == [1, 2]
    assert "replayed" not in second.of("tool_completed")[0].data


async def test_calls_within_a_replayed_one_do_not_shift_the_others() -> None:
    first, second = await twice(("outer", {}), ("draw", {"n": 1}))
    assert first.result == second.result == {"done": [101, 102]}
    assert ran == [1, 1]


async def test_a_journal_with_other_hashes_under_a_known_id_answers_nothing() -> None:
    digest = hash_arguments({"n": 1})
    forged = JournalItem(1, f"tool:draw:{digest[:16]}:1", "tool", "draw", digest[:16] + "0" * 48, b"666")
    stage = await Bench(Worker).run("worker", params={"calls": [("draw", {"n": 1})]}, attempt=2, journal=(forged,))
    assert stage.result == {"done": [101]}


class Racing(Agent):
    name = "racing"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        numbers = list(range(6)) * 2
        random.Random(request.attempt).shuffle(numbers)
        got = await asyncio.gather(*(ctx.call_tool("draw", n=n) for n in numbers))
        return {"got": sorted(got)}


async def test_the_order_of_concurrent_calls_does_not_matter() -> None:
    first = await Bench(Racing).run("racing")
    called = set(names)
    second = await first.again()
    assert second.result == first.result
    assert len(ran) == 12
    assert called == {event.data["tool_call_id"] for event in second.of("tool_completed")}


async def test_a_permission_that_is_gone_is_gone_for_a_journaled_call_too() -> None:
    @tool(permission="trace:read")
    async def guarded() -> int:
        return 1

    class Guarded(Agent):
        name = "guarded"
        tools = (guarded,)

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            return {"value": await ctx.call_tool("guarded")}

    first = await Bench(Guarded).run("guarded")
    assert first.result == {"value": 1}
    other = Bench(Guarded, permissions=frozenset())
    second = await other.run("guarded", attempt=2, journal=tuple(first.uplink.journaled))
    assert second.error.code == "TOOL_PERMISSION"


async def test_large_results_and_large_journals_are_not_kept_but_run_again() -> None:
    first, second = await twice(*(("blob", {"size": 700_000 + n}) for n in range(4)), ("blob", {"size": 1_100_000}))
    assert first.result.keys() == second.result.keys()
    assert [len(item.result) for item in first.uplink.journaled] == [700_002, 700_003]
    assert ran == [700_000, 700_001, 700_002, 700_003, 1_100_000, 700_002, 700_003, 1_100_000]


async def test_a_stages_journal_is_bounded_over_its_attempts() -> None:
    uplink = FakeUplink("run-1")
    ledger = CallLedger(0)
    items = [ledger.entry(f"tool:x:{n}", "tool", "x", "h", b"y" * 1000, None) for n in range(4)]
    journal = BoundedJournal(uplink, tuple(items[:2]), max_bytes=5000)
    for item in items[2:]:
        await journal.journal(item)
    assert uplink.journaled == [items[2]]


async def test_failures_of_calls_take_room_in_the_journal_too() -> None:
    uplink = FakeUplink("run-1")
    ledger = CallLedger(0)
    errors = [ToolFailedError("no", blob="y" * 1000) for _ in range(4)]
    journal = BoundedJournal(uplink, max_bytes=5000)
    receipts = [
        await journal.journal(ledger.entry(f"tool:x:{n}", "tool", "x", "h", b"", error))
        for n, error in enumerate(errors)
    ]
    assert [item.error for item in uplink.journaled] == errors[:2]
    assert [receipt is None for receipt in receipts] == [False, False, True, True]


@pytest.mark.parametrize("host", [False, True])
async def test_an_error_too_large_to_be_passed_on_loses_its_details(host: bool) -> None:
    @tool(host=host)
    async def shout() -> None:
        raise ToolFailedError("too loud", blob="y" * MAX_ERROR_BYTES)

    class Shouting(Agent):
        name = "shouting"
        tools = (shout,)

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            with pytest.raises(ToolFailedError) as heard:
                await ctx.call_tool("shout")
            raise ToolFailedError(heard.value.message, blob="y" * MAX_ERROR_BYTES, said=heard.value.details)

    stage = await Bench(Shouting).run("shouting")
    assert stage.outcome is not None
    assert stage.outcome.error is not None
    assert stage.outcome.error.message.endswith("too loud")
    told = [stage.outcome.error, stage.uplink.journaled[0].error]
    assert [list(error.details) for error in told if error is not None] == [["left_out"], ["left_out"]]


def test_a_code_without_end_is_cut() -> None:
    assert told_error({"code": "X" * 100_000, "message": "no"}).code == "X" * 64
    assert told_error({"code": "TOOL_FAILED", "message": "no"}).code == "TOOL_FAILED"


async def lost(why: CarrelError | None = None, *, printed: bytes = b"", **options: Any) -> Stage:
    class Fragile(Worker):
        name = "fragile"
        fallback = "worker"

    made: list[Scripted] = []

    def make() -> Any:
        worker = Scripted([])
        if why is not None:
            worker.why = why
        worker.printed = printed
        made.append(worker)
        return worker

    return await Bench(Fragile, Worker, make=make).run("fragile", **options)


async def test_a_lost_worker_is_executions_to_try_again_without_a_word_of_it() -> None:
    stage = await lost(last_attempt=False)
    assert stage.error.code == "WORKER_LOST"
    assert stage.kinds == ["agent_started"]
    assert stage.outcome is not None
    assert stage.outcome.events_through == 1
    assert stage.bench.core.counts.lost == 1
    assert stage.bench.core.counts.fallbacks == 0


async def test_a_worker_lost_on_the_last_attempt_is_a_failure_that_a_fallback_answers() -> None:
    stage = await lost(last_attempt=True)
    assert stage.kinds == ["agent_started", "agent_error", "agent_started", "agent_error"]
    assert stage.of("agent_error")[0].data["fallback"] == "worker"
    assert stage.error.code == "WORKER_LOST"


@pytest.mark.parametrize("last_attempt", [False, True])
async def test_a_worker_over_its_limit_and_a_garbled_one_are_failures_at_once(last_attempt: bool) -> None:
    for why in (WorkerLimitError("too much memory", limit="memory"), ProtocolError("no frame")):
        stage = await lost(why, last_attempt=last_attempt)
        assert stage.error.code == why.code
        assert stage.kinds[:3] == ["agent_started", "agent_error", "agent_started"]


async def test_what_a_worker_printed_is_kept_for_the_owner_also_when_it_was_lost() -> None:
    stage = await lost(printed=b"MemoryError\n", last_attempt=False)
    assert stage.uplink.stored == {"output-0-1-fragile.txt": b"MemoryError\n"}
    both = await lost(printed=b"twice", last_attempt=True)
    assert both.uplink.stored == {"output-0-1-fragile.txt": b"twice", "output-0-1-worker.txt": b"twice"}


async def test_output_that_cannot_be_stored_fails_nothing() -> None:
    made = Scripted([])
    made.printed = b"text"
    stage = await Bench(Worker, make=lambda: made).stage("worker", last_attempt=False)
    stage.uplink.refuse = ProtocolError("no room")
    await stage.run()
    assert stage.error.code == "WORKER_LOST"
    assert not stage.uplink.stored
