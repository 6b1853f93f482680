"""The run store's contract: attempts, questions to a person and their answers, model budgets, and what survives."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from carrel.errors import NotWaitingError
from carrel.events import check_event_size, validate_event
from services.execution.models import (
    ArtifactRecord,
    InputRecord,
    JournalItem,
    OutboxEvent,
    RunRecord,
    RunRef,
    RunState,
    StageState,
    ThreadStrategy,
)
from services.execution.models_steps import Admitted, Again, Checkpoint, Question, Step
from services.execution.store import RunStore
from tests.contract.run_backends import Backend
from tests.contract.run_support import (
    ALICE,
    BOB,
    CANCEL,
    QUESTION,
    SECOND,
    Clock,
    admission,
    finish_and_close,
    ids,
    need,
    said,
    success,
)

CALL = JournalItem(1, "tool:load:h:1", "tool", "load", "h", b"1")


def check(event: OutboxEvent) -> OutboxEvent:
    """The event, which the log will take."""
    validate_event(event.event_type, dict(event.data))
    check_event_size(event.event_type, len(orjson.dumps(dict(event.data))))
    return event


async def suspended(store: RunStore, question: Question = QUESTION, timeout_s: float = 60) -> Step:
    """A run that waits for an answer."""
    admitted = await store.admit(admission(thread="t"))
    step = await store.suspend(admitted.run.ref, question, timeout_s)
    assert step is not None
    return step


async def answered(store: RunStore, value: bytes = b"true", input_id: str = "inp-1") -> RunRecord:
    """The run, whose question has been answered."""
    run = await store.provide_input(ALICE, "run-1", input_id, value)
    assert run is not None
    return run


# Attempts


async def test_another_attempt_has_the_next_number_and_fence_and_an_event_that_says_why(store: RunStore) -> None:
    first = (await store.admit(admission())).run
    step = await store.begin_attempt(first.ref, 0, Again.WORKER_LOST, lost=True)
    assert step is not None
    assert step.run == await store.get_run(ALICE, "run-1")
    assert step.run.fence == first.fence + 1
    stage = step.run.stages[0]
    assert (stage.state, stage.attempt, stage.lost) == (StageState.RUNNING, 2, 1)
    (event,) = step.events
    assert check(event).event_type == "run_attempt"
    assert event.number == 2
    assert event.data == {"attempt": 2, "agent_name": "data", "stage": 0, "reason": "worker_lost"}
    assert (await store.outbox(ALICE, "run-1"))[1] == event
    step = await store.begin_attempt(step.run.ref, 0, Again.EXECUTION_RESTARTED, lost=False)
    assert step is not None
    assert (step.run.stages[0].attempt, step.run.stages[0].lost, step.run.fence) == (3, 1, 3)
    assert step.run.deadline_at == first.deadline_at


async def test_a_former_attempt_can_write_nothing(store: RunStore) -> None:
    old = (await store.admit(admission())).run.ref
    assert await store.begin_attempt(old, 0, Again.AGENT_INSTANCE_LOST, lost=True)
    before = (await need(store, "run-1"), await store.outbox(ALICE, "run-1"))
    assert not await store.save_journal(old, 0, [CALL])
    assert not await store.save_artifact(old, ArtifactRecord("run-1", "a", "text/plain", 1, "s", 0), 10, 200)
    assert await store.checkpoint(old, Checkpoint(0, b"{}", "data")) is None
    assert await store.begin_attempt(old, 0, Again.WORKER_LOST, lost=True) is None
    assert await store.suspend(old, QUESTION, 60) is None
    assert await store.finish(old, success()) is None
    assert not await store.close_run(old)
    assert (await need(store, "run-1"), await store.outbox(ALICE, "run-1")) == before
    assert await store.journal(ALICE, "run-1", 0) == ()


async def test_only_the_stage_that_runs_is_tried_again(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    assert await store.begin_attempt(ref, 1, Again.WORKER_LOST, lost=True) is None
    assert await store.begin_attempt(ref, 9, Again.WORKER_LOST, lost=True) is None
    assert await store.checkpoint(ref, Checkpoint(0, b"{}", "data"))
    assert await store.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True) is None
    assert (await need(store, "run-1")).fence == ref.fence
    step = await store.begin_attempt(ref, 1, Again.WORKER_LOST, lost=True)
    assert step is not None
    assert [(stage.attempt, stage.lost) for stage in step.run.stages] == [(1, 0), (2, 1)]
    assert await store.begin_attempt(RunRef(BOB, "run-1", step.run.fence), 1, Again.WORKER_LOST, lost=True) is None


async def test_of_racing_attempts_one_begins(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    results = await asyncio.gather(*(store.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True) for _ in range(10)))
    assert sum(result is not None for result in results) == 1
    assert (await need(store, "run-1")).stages[0].lost == 1


async def test_an_ended_run_is_not_tried_again(store: RunStore) -> None:
    admitted = await store.admit(admission())
    await store.finish(admitted.run.ref, CANCEL)
    assert await store.begin_attempt(admitted.run.ref, 0, Again.WORKER_LOST, lost=True) is None
    assert await store.suspend(admitted.run.ref, QUESTION, 60) is None


async def test_checkpoint_drops_the_calls_of_its_stage_and_no_others(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    other = (await store.admit(admission("run-2"))).run.ref
    for each in (ref, other):
        await store.save_journal(each, 0, [CALL])
    await store.save_journal(ref, 1, [replace(CALL, result=b"2")])
    assert await store.checkpoint(ref, Checkpoint(0, b"{}", "data"))
    assert await store.journal(ALICE, "run-1", 0) == ()
    assert await store.journal(ALICE, "run-1", 1) == (replace(CALL, result=b"2"),)
    assert await store.journal(ALICE, "run-2", 0) == (CALL,)


# Waiting for a person


async def test_a_question_frees_the_engine_and_stops_the_clock_and_the_answer_lets_the_run_go_on(
    store: RunStore, clock: Clock
) -> None:
    first = (await store.admit(admission(thread="t"))).run
    await store.save_journal(first.ref, 0, [CALL])
    clock.forward(100)
    approval = Question("inp-1", "delete it?", b'{"type":"boolean"}', "hash", "delete", b'{"path":"/x"}')
    step = await store.suspend(first.ref, approval, 24 * 3600)
    assert step is not None
    run = step.run
    assert run == await store.get_run(ALICE, "run-1")
    assert (run.state, run.engine_id, run.deadline_at, run.fence) == (RunState.WAITING, "", 0, first.fence)
    assert (run.stages[0].state, run.stages[0].attempt) == (StageState.WAITING, 1)
    assert run.waiting_for == InputRecord(
        "inp-1",
        0,
        "delete it?",
        b'{"type":"boolean"}',
        clock(),
        clock() + 24 * 3600 * SECOND,
        "hash",
        "delete",
        b'{"path":"/x"}',
    )
    assert (await store.list_engines(ALICE, 10, None)).items == ()
    (event,) = step.events
    assert check(event).event_type == "input_required"
    assert event.data == {
        "input_id": "inp-1",
        "prompt": "delete it?",
        "schema": {"type": "boolean"},
        "expires_at": "2023-11-15T22:15:00.000Z",
        "tool_name": "delete",
        "arguments": {"path": "/x"},
    }
    assert (await store.outbox(ALICE, "run-1"))[-1] == event
    listed = await store.list_runs(ALICE, "", frozenset({RunState.WAITING}), 10, None)
    assert listed.items[0].waiting_for == run.waiting_for
    assert await store.answers(ALICE, "run-1", 0) == ()

    clock.forward(20_000)
    queued = await answered(store)
    assert (queued.state, queued.waiting_for, queued.fence) == (RunState.QUEUED, None, first.fence)
    assert queued.stages[0].state is StageState.WAITING
    (answer,) = await store.answers(ALICE, "run-1", 0)
    assert run.waiting_for is not None
    assert answer == replace(run.waiting_for, value=b"true", answered_at=clock())
    assert await store.answers(BOB, "run-1", 0) == ()
    assert await store.answers(ALICE, "run-1", 1) == ()

    clock.forward(50)
    (step,) = await store.promote(10)
    assert (step.run.state, step.run.fence) == (RunState.RUNNING, first.fence + 1)
    assert (step.run.stages[0].state, step.run.stages[0].attempt) == (StageState.RUNNING, 2)
    assert step.run.stages[0].lost == 0
    assert step.run.deadline_at == clock() + 200 * SECOND
    assert step.run.started_at == first.started_at
    (event,) = step.events
    assert check(event).number == 3
    assert event.data == {"attempt": 2, "agent_name": "data", "stage": 0, "reason": "input_provided"}
    assert await store.journal(ALICE, "run-1", 0) == (CALL,)
    assert await said(store, "t") == [("user", "hello")]
    assert (await store.get_engine(ALICE, step.run.engine_id)) is not None


@pytest.mark.parametrize(("used", "lifetime", "left"), [(299, 300, 60), (10, 300, 290), (29, 30, 30), (400, 300, 60)])
async def test_an_answer_leaves_time_to_go_on(
    backend: Backend, clock: Clock, used: float, lifetime: float, left: float
) -> None:
    store = await backend.process("one", engine_timeout_s=lifetime)
    admitted = await store.admit(admission())
    clock.forward(used)
    await store.suspend(admitted.run.ref, QUESTION, 3600)
    clock.forward(1000)
    await answered(store)
    (step,) = await store.promote(10)
    assert step.run.deadline_at == clock() + left * SECOND
    await store.close()


async def test_the_same_answer_again_changes_nothing_and_another_is_refused(store: RunStore, clock: Clock) -> None:
    await suspended(store)
    queued = await answered(store)
    clock.forward(5)
    assert await answered(store) == queued
    with pytest.raises(NotWaitingError, match="otherwise"):
        await answered(store, b"false")
    (step,) = await store.promote(10)
    assert await answered(store) == step.run
    with pytest.raises(NotWaitingError, match="otherwise"):
        await answered(store, b"false")
    assert [answer.value for answer in await store.answers(ALICE, "run-1", 0)] == [b"true"]
    assert await need(store, "run-1") == step.run


async def test_a_question_that_was_not_asked_cannot_be_answered(store: RunStore) -> None:
    await suspended(store)
    before = await need(store, "run-1")
    with pytest.raises(NotWaitingError):
        await answered(store, input_id="inp-2")
    assert await store.provide_input(BOB, "run-1", "inp-1", b"true") is None
    assert await store.provide_input(ALICE, "run-9", "inp-1", b"true") is None
    assert await need(store, "run-1") == before
    await finish_and_close(store, Admitted(before, existing=False))
    with pytest.raises(NotWaitingError):
        await answered(store)


async def test_of_racing_answers_one_counts(store: RunStore) -> None:
    await suspended(store)
    results = await asyncio.gather(*(answered(store, b"%d" % n) for n in range(10)), return_exceptions=True)
    assert sum(isinstance(result, RunRecord) for result in results) == 1
    assert sum(isinstance(result, NotWaitingError) for result in results) == 9
    assert len(await store.answers(ALICE, "run-1", 0)) == 1


async def test_an_end_and_an_answer_that_race_leave_no_run_that_waits_for_nobody(store: RunStore) -> None:
    step = await suspended(store)
    await asyncio.gather(store.finish(step.run.ref, CANCEL), answered(store), return_exceptions=True)
    run = await need(store, "run-1")
    assert (run.state, run.waiting_for) == (RunState.FINISHING, None)
    assert await store.promote(10) == ()


async def test_questions_nobody_answered_in_time_are_told_until_their_run_has_ended(
    store: RunStore, clock: Clock
) -> None:
    step = await suspended(store, timeout_s=60)
    await store.suspend((await store.admit(admission("run-2"))).run.ref, QUESTION, 120)
    clock.forward(59.9)
    assert await store.expired_inputs() == ()
    clock.forward(0.1)
    assert await store.expired_inputs() == (step.run,)
    with pytest.raises(NotWaitingError, match="over"):  # else it could come between this and the run's end
        await answered(store)
    assert await store.expired_inputs() == (step.run,)
    assert await store.finish(step.run.ref, CANCEL)
    assert await store.expired_inputs() == ()
    clock.forward(60)
    assert ids(await store.expired_inputs()) == ["run-2"]


async def test_several_questions_of_a_stage_are_answered_one_after_the_other(store: RunStore) -> None:
    ref = (await suspended(store)).run.ref
    for n in range(2, 5):
        await answered(store, b"%d" % n, f"inp-{n - 1}")
        (step,) = await store.promote(10)
        ref = step.run.ref
        assert await store.suspend(ref, replace(QUESTION, input_id=f"inp-{n}"), 60)
    assert [(a.input_id, a.value) for a in await store.answers(ALICE, "run-1", 0)] == [
        ("inp-1", b"2"),
        ("inp-2", b"3"),
        ("inp-3", b"4"),
    ]
    with pytest.raises(NotWaitingError):
        await answered(store, b"9", "inp-1")


async def test_a_question_asked_anew_is_open_again(store: RunStore) -> None:
    await suspended(store)
    await answered(store)
    (step,) = await store.promote(10)
    again = await store.suspend(step.run.ref, QUESTION, 60)
    assert again is not None
    assert again.run.waiting_for is not None
    assert again.run.waiting_for.value is None
    assert await store.answers(ALICE, "run-1", 0) == ()
    assert (await answered(store, b"false")).state is RunState.QUEUED


async def test_what_is_too_large_for_the_event_stays_with_the_run(store: RunStore) -> None:
    big = Question("inp-1", "why?", b'{"type":"boolean"}', "h", "tool", orjson.dumps({"text": "x" * 100_000}))
    step = await suspended(store, big)
    assert "arguments" not in check(step.events[0]).data
    assert step.events[0].data["prompt"] == "why?"
    assert step.run.waiting_for is not None
    assert step.run.waiting_for.arguments == big.arguments


async def test_the_oldest_of_a_thread_goes_on_before_those_who_came_after(store: RunStore) -> None:
    await suspended(store)
    second = await store.admit(admission("run-2", thread="t", strategy=ThreadStrategy.ENQUEUE))
    assert second.run.state is RunState.QUEUED
    assert await store.promote(10) == ()  # the first waits for a person, and is unended
    await answered(store)
    (step,) = await store.promote(10)
    assert ids([step]) == ["run-1"]
    await store.finish(step.run.ref, success())
    assert ids(await store.promote(10)) == ["run-2"]


async def test_a_run_that_goes_on_needs_an_engine_like_any_other(store: RunStore) -> None:
    await suspended(store)
    for n in (2, 3):
        await store.admit(admission(f"run-{n}"))
    await answered(store)
    assert await store.promote(10) == ()
    finished = await store.finish((await need(store, "run-2")).ref, success())
    assert finished is not None
    assert finished.queued
    assert ids(await store.promote(10)) == ["run-1"]


async def test_closing_a_run_clears_its_questions_calls_and_events(store: RunStore) -> None:
    await suspended(store)
    await answered(store)
    (step,) = await store.promote(10)
    await store.save_journal(step.run.ref, 0, [CALL])
    await store.finish(step.run.ref, success())
    assert len(await store.answers(ALICE, "run-1", 0)) == 1
    assert await store.close_run(step.run.ref)
    assert await store.answers(ALICE, "run-1", 0) == ()
    assert await store.journal(ALICE, "run-1", 0) == ()
    assert await store.outbox(ALICE, "run-1") == ()


async def test_a_bound_run_says_so(store: RunStore) -> None:
    assert (await store.admit(admission("run-1", bound=True))).run.bound
    assert (await need(store, "run-1")).bound
    assert not (await store.admit(admission("run-2"))).run.bound
    assert [run.bound for run in (await store.list_runs(ALICE, "", frozenset(), 10, None)).items] == [False, True]


# Model budgets


async def test_budget_is_the_users_over_all_runs_and_counts_whatever_became_of_the_run(store: RunStore) -> None:
    first = (await store.admit(admission("run-1"))).run.ref
    second = (await store.admit(admission("run-2"))).run.ref
    whole = await store.budget(ALICE, 1000, 4, 1e9)
    assert (whole.tokens, whole.concurrency) == (1000, 4)
    assert (await store.use_budget(first, 300, 1000, 4, 1e9)).tokens == 700
    await store.finish(first, CANCEL)
    assert (await store.use_budget(first, 100, 1000, 4, 1e9)).tokens == 600
    assert (await store.use_budget(second, 500, 1000, 4, 1e9)).tokens == 100
    assert (await store.use_budget(second, 500, 1000, 4, 1e9)).tokens == 0
    assert (await store.use_budget(second, 0, 2000, 4, 1e9)).tokens == 600
    assert (await store.budget(ALICE, 2000, 9, 1e9)) == replace(whole, tokens=600, concurrency=9)
    assert (await store.budget(BOB, 1000, 4, 1e9)).tokens == 1000
    # A period of another length is another, though they begin at the same moment.
    await store.use_budget(second, 1, 1000, 4, 1.5e9)
    assert (await store.budget(ALICE, 1000, 4, 0.75e9)).tokens == 1000


async def test_uses_at_once_are_all_counted(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    await asyncio.gather(*(store.use_budget(ref, n, 10_000, 1, 1e9) for n in range(100)))
    assert (await store.budget(ALICE, 10_000, 1, 1e9)).tokens == 10_000 - 4950


async def test_a_new_period_has_the_whole_budget(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    period = 0.05
    used = await store.use_budget(ref, 10, 10, 1, period)
    assert used.tokens == 0
    assert used.renews_at % round(period * SECOND) == 0
    await asyncio.sleep(2 * period)
    later = await store.budget(ALICE, 10, 1, period)
    assert later.tokens == 10
    assert later.renews_at > used.renews_at
    await store.use_budget(ref, 3, 10, 1, 1e9)
    await store.sweep()
    assert (await store.budget(ALICE, 10, 1, 1e9)).tokens == 7


# What survives


async def test_everything_that_waits_is_there_after_a_restart_and_goes_on(backend: Backend) -> None:
    store = await backend.process("one")
    await store.take_over()
    rate: dict[str, Any] = {"rate_per_minute": 1.0, "rate_burst": 5}
    await store.admit(admission("run-1", thread="t", bound=True, **rate))
    step = await store.begin_attempt((await need(store, "run-1")).ref, 0, Again.WORKER_LOST, lost=True)
    assert step is not None
    await store.save_journal(step.run.ref, 0, [CALL])
    await store.suspend(step.run.ref, QUESTION, 60)
    await store.admit(admission("run-2", thread="t", strategy=ThreadStrategy.ENQUEUE, max_engines=1, **rate))
    await store.use_budget(step.run.ref, 7, 10, 1, 1e9)
    before = {run.identity.run_id: run for run in (await need(store, "run-1"), await need(store, "run-2"))}
    events = await store.outbox(ALICE, "run-1")
    await store.close()

    store = await backend.process("one")
    taken = await store.take_over()
    assert list(taken) == [replace(before[name], fence=before[name].fence + 1) for name in ("run-1", "run-2")]
    assert await store.outbox(ALICE, "run-1") == events
    assert await store.journal(ALICE, "run-1", 0) == (CALL,)
    assert (await store.budget(ALICE, 10, 1, 1e9)).tokens == 3
    await answered(store)
    assert len(await store.answers(ALICE, "run-1", 0)) == 1
    (step,) = await store.promote(10)
    assert (step.run.stages[0].attempt, step.run.stages[0].lost, step.run.bound) == (3, 1, True)
    await store.finish(step.run.ref, success())
    (step,) = await store.promote(10)
    assert ids([step]) == ["run-2"]
    await store.close()
