"""The run store's contract: strategies for a busy thread, the queue, rates and totals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from carrel.errors import (
    ActiveRunsError,
    CarrelError,
    EnginesLimitError,
    IdempotencyConflictError,
    RateLimitError,
    UnendedRunsError,
    UnknownEngineError,
)
from services.execution import store_sql_leases as leases
from services.execution.domain.errors import RunNotEndedError
from services.execution.models import RunState, StageState, ThreadStrategy, UserKey
from services.execution.models_steps import Admission, Admitted, Checkpoint
from services.execution.store import RunStore
from services.execution.store_sql import SqlRunStore
from tests.contract.run_backends import Backend
from tests.contract.run_support import (
    ALICE,
    BOB,
    CANCEL,
    QUESTION,
    SECOND,
    Clock,
    admission,
    ids,
    need,
    said,
    success,
)

ENQUEUE = ThreadStrategy.ENQUEUE
ENDING = [ThreadStrategy.INTERRUPT, ThreadStrategy.ROLLBACK]


def message(run: str, strategy: ThreadStrategy = ENQUEUE, **changes: Any) -> Admission:
    """A message of the thread `t` that says the run's name."""
    return admission(run, **{"thread": "t", "message": f"ask {run}", "strategy": strategy, **changes})


async def everything(store: RunStore) -> list[Any]:
    """What a refusal must leave as it was, of two users."""
    found: list[Any] = []
    for user in (ALICE, BOB):
        runs = [run.identity.run_id for run in (await store.list_runs(user, "", frozenset(), 1000, None)).items]
        found += [await store.get_run(user, run) for run in runs]
        found += [await store.outbox(user, run) for run in runs]
        found += [await store.list_threads(user, 1000, None), await store.messages(user, "t", 1000, None)]
    return [*found, await store.list_engines(None, 1000, None)]


# Enqueue


async def test_message_on_a_busy_thread_waits_its_turn_and_the_history_is_in_order(store: RunStore) -> None:
    first = (await store.admit(message("run-1"))).run
    queued = await store.admit(message("run-2"))
    assert queued.run.state is RunState.QUEUED
    assert (queued.run.engine_id, queued.run.deadline_at, queued.run.started_at) == ("", 0, None)
    assert [(stage.state, stage.attempt) for stage in queued.run.stages] == [(StageState.PENDING, 0)] * 2
    assert queued.events[0].data["status"] == "QUEUED"
    assert await store.get_run(ALICE, "run-2") == queued.run
    assert await said(store, "t") == [("user", "ask run-1")]
    assert await store.promote(10) == ()
    assert len((await store.list_engines(ALICE, 10, None)).items) == 1

    finished = await store.finish(first.ref, success(reply="answer 1"))
    assert finished is not None
    assert finished.queued
    (step,) = await store.promote(10)
    assert step.events == ()
    assert step.run == await store.get_run(ALICE, "run-2")
    assert (step.run.state, step.run.fence) == (RunState.RUNNING, queued.run.fence + 1)
    assert [(stage.state, stage.attempt) for stage in step.run.stages] == [
        (StageState.RUNNING, 1),
        (StageState.PENDING, 0),
    ]
    engine = await store.get_engine(ALICE, step.run.engine_id)
    assert engine is not None
    assert engine.run_id == "run-2"
    assert await store.finish(queued.run.ref, success()) is None  # the fence from before it began
    finished = await store.finish(step.run.ref, success(reply="answer 2"))
    assert finished is not None
    assert not finished.queued
    assert await said(store, "t") == [
        ("user", "ask run-1"),
        ("assistant", "answer 1"),
        ("user", "ask run-2"),
        ("assistant", "answer 2"),
    ]


async def test_a_run_that_begins_late_gets_its_whole_time_and_not_its_own_message_as_history(
    store: RunStore, clock: Clock
) -> None:
    first = (await store.admit(message("run-1"))).run
    await store.admit(message("run-2"))
    clock.forward(200)
    await store.finish(first.ref, success(reply="answer 1"))
    (step,) = await store.promote(10)
    assert step.run.started_at == clock()
    assert step.run.created_at == clock() - 200 * SECOND
    assert step.run.deadline_at == clock() + 300 * SECOND
    history = await store.history(ALICE, "t", "run-2", 10)
    assert [(m.role, m.text) for m in history] == [("user", "ask run-1"), ("assistant", "answer 1")]
    clock.forward(299)
    assert (await store.sweep()).overdue == ()


async def test_runs_of_a_thread_begin_in_the_order_of_their_admission_though_all_came_at_one_moment(
    store: RunStore,
) -> None:
    order = ["run-5", "run-1", "run-4", "run-2"]
    running = (await store.admit(message(order[0]))).run
    for run in order[1:]:
        await store.admit(message(run))
    for expected in order[1:]:
        await store.finish(running.ref, success(reply=f"answer {running.identity.run_id}"))
        (step,) = await store.promote(10)
        assert step.run.identity.run_id == expected
        running = step.run
    await store.finish(running.ref, success(reply=f"answer {running.identity.run_id}"))
    assert await said(store, "t") == [
        (role, f"{word} {run}") for run in order for role, word in (("user", "ask"), ("assistant", "answer"))
    ]


async def test_enqueued_run_waits_for_an_engine_and_for_whoever_waits_in_its_thread(store: RunStore) -> None:
    running = [(await store.admit(admission(f"run-{n}"))).run for n in range(2)]
    with pytest.raises(EnginesLimitError):
        await store.admit(admission("run-2"))
    waiting = await store.admit(message("run-3"))
    assert waiting.run.state is RunState.QUEUED
    assert not waiting.thread_existed
    thread = await store.get_thread(ALICE, "t")
    assert thread is not None
    assert (thread.message_count, thread.unended_run_id) == (0, "run-3")
    await store.finish(running[0].ref, CANCEL)
    behind = await store.admit(message("run-4"))  # an engine is free, but its thread is not
    assert behind.run.state is RunState.QUEUED
    assert behind.thread_existed
    assert ids(await store.promote(10)) == ["run-3"]
    await store.finish(running[1].ref, CANCEL)
    assert await store.promote(10) == ()


async def test_enqueue_on_a_free_thread_with_a_free_engine_begins_at_once(store: RunStore) -> None:
    admitted = await store.admit(message("run-1"))
    assert admitted.run.state is RunState.RUNNING
    assert "status" not in admitted.events[0].data


async def test_fifty_messages_at_once_run_one_after_the_other_and_none_is_lost(store: RunStore) -> None:
    names = [f"run-{n:02}" for n in range(50)]
    results = await asyncio.gather(*(store.admit(message(name, max_unended=50)) for name in names))
    assert [result.run.state for result in results].count(RunState.RUNNING) == 1
    done: list[str] = []
    running = next(result.run for result in results if result.run.state is RunState.RUNNING)
    while True:
        await store.finish(running.ref, success())
        await store.close_run(running.ref)
        done.append(running.identity.run_id)
        steps = await store.promote(50)
        if not steps:
            break
        (step,) = steps
        running = step.run
    assert sorted(done) == names
    spoken = await said(store, "t")
    assert [text for role, text in spoken if role == "user"] == [f"ask {name}" for name in done]
    assert [role for role, _ in spoken] == ["user", "assistant"] * 50


async def test_a_cancelled_queued_run_leaves_no_word_in_its_thread(store: RunStore) -> None:
    await store.admit(message("run-1"))
    queued = (await store.admit(message("run-2"))).run
    with pytest.raises(RunNotEndedError):
        await store.delete_thread(ALICE, "t")
    finished = await store.finish(queued.ref, CANCEL)
    assert finished is not None
    assert [event.event_type for event in finished.events] == ["run_completed"]  # nothing of it had begun
    run = await need(store, "run-2")
    assert [stage.state for stage in run.stages] == [StageState.SKIPPED] * 2
    assert await store.promote(10) == ()
    assert await said(store, "t") == [("user", "ask run-1")]
    assert len((await store.list_engines(ALICE, 10, None)).items) == 1


async def test_a_reservation_is_consumed_by_a_run_that_has_to_wait(store: RunStore) -> None:
    await store.admit(message("run-1"))
    await store.reserve_engine(ALICE, "eng-a", 2)
    queued = await store.admit(message("run-2", engine_id="eng-a"))
    assert queued.run.state is RunState.QUEUED
    assert await store.get_engine(ALICE, "eng-a") is None
    with pytest.raises(UnknownEngineError):
        await store.admit(message("run-3", engine_id="eng-a"))
    await store.reserve_engine(ALICE, "eng-b", 2)
    begun = await store.admit(admission("run-4", engine_id="eng-b", strategy=ENQUEUE))
    assert (begun.run.state, begun.run.engine_id) == (RunState.RUNNING, "eng-b")


# Interrupt and rollback


async def talked(store: RunStore) -> list[str]:
    """A finished exchange, a run under way that has said nothing yet, and one that waits behind it."""
    first = (await store.admit(message("run-1"))).run
    await store.finish(first.ref, success(reply="answer run-1"))
    await store.close_run(first.ref)
    second = (await store.admit(message("run-2"))).run
    await store.checkpoint(second.ref, Checkpoint(0, b"{}", "data"))
    await store.admit(message("run-3"))
    return ["run-2", "run-3"]


@pytest.mark.parametrize("strategy", ENDING)
async def test_newer_message_ends_the_threads_runs_and_begins_in_their_place(
    store: RunStore, strategy: ThreadStrategy
) -> None:
    former = await talked(store)
    await store.admit(message("run-2", user=BOB))  # the same names, another user's
    await store.admit(admission("other", max_engines=3, thread="another"))
    admitted = await store.admit(message("run-4", strategy))
    assert admitted.run.state is RunState.RUNNING
    assert ids([run for run, _ in admitted.ended]) == former
    for run, finished in admitted.ended:
        assert run == await store.get_run(ALICE, run.identity.run_id)
        assert (run.state, run.outcome, run.engine_id) == (RunState.FINISHING, RunState.CANCELLED, "")
        assert run.error is not None
        assert run.error["code"] == "CANCELLED_RUN"
        assert strategy.value in run.error["message"]
        last = (await store.outbox(ALICE, run.identity.run_id))[-len(finished.events) :]
        assert last == finished.events
        assert last[-1].event_type == "run_completed"
        assert await store.close_run(run.ref)
    assert [event.event_type for event in admitted.ended[0][1].events] == ["agent_error", "run_completed"]
    assert [event.event_type for event in admitted.ended[1][1].events] == ["run_completed"]
    assert (await need(store, "run-2", BOB)).state is RunState.RUNNING
    assert (await need(store, "other")).state is RunState.RUNNING
    assert sorted(engine.run_id for engine in (await store.list_engines(ALICE, 10, None)).items) == ["other", "run-4"]


async def test_interrupted_runs_keep_their_messages(store: RunStore) -> None:
    await talked(store)
    admitted = await store.admit(message("run-4", ThreadStrategy.INTERRUPT))
    await store.finish(admitted.run.ref, success(reply="answer run-4"))
    assert await said(store, "t") == [
        ("user", "ask run-1"),
        ("assistant", "answer run-1"),
        ("user", "ask run-2"),
        ("user", "ask run-4"),
        ("assistant", "answer run-4"),
    ]


async def test_rollback_takes_back_the_messages_of_what_it_ended_and_no_others(store: RunStore) -> None:
    await talked(store)
    bobs = await store.admit(message("run-2", user=BOB))
    page = await store.messages(ALICE, "t", 3, None)
    seen = await store.messages(ALICE, "t", 2, None)
    assert len(page.items) == 3
    admitted = await store.admit(message("run-4", ThreadStrategy.ROLLBACK))
    await store.finish(admitted.run.ref, success(reply="answer run-4"))
    assert await said(store, "t") == [
        ("user", "ask run-1"),
        ("assistant", "answer run-1"),
        ("user", "ask run-4"),
        ("assistant", "answer run-4"),
    ]
    assert await said(store, "t", BOB) == [("user", "ask run-2")]
    assert (await need(store, "run-2", BOB)) == bobs.run
    thread = await store.get_thread(ALICE, "t")
    assert thread is not None
    assert thread.message_count == 4
    # A reader who knew the message that was taken back sees each of the later ones once.
    later = await store.messages(ALICE, "t", 10, seen.next)
    assert [message.text for message in later.items] == ["ask run-4", "answer run-4"]


async def test_numbers_of_messages_that_were_taken_back_are_not_given_again(store: RunStore) -> None:
    await store.admit(message("run-0", ThreadStrategy.ROLLBACK))
    for n in range(1, 5):
        admitted = await store.admit(message(f"run-{n}", ThreadStrategy.ROLLBACK))
        for run, _ in admitted.ended:
            await store.close_run(run.ref)
        assert await said(store, "t") == [("user", f"ask run-{n}")]
        first = await store.messages(ALICE, "t", 1, None)
        assert len(first.items) == 1
    await store.finish((await need(store, "run-4")).ref, success(reply="x"))
    first = await store.messages(ALICE, "t", 1, None)
    assert first.next is not None
    assert first.next[0] == 5


@pytest.mark.parametrize("strategy", ENDING)
async def test_places_of_what_is_ended_are_free_for_the_newer_run(store: RunStore, strategy: ThreadStrategy) -> None:
    await store.admit(message("run-1", max_engines=1, max_unended=1))
    totals: dict[str, Any] = {"max_engines": 1, "max_unended": 1, "max_active_total": 1, "max_unended_total": 1}
    admitted = await store.admit(message("run-2", strategy, **totals))
    assert admitted.run.state is RunState.RUNNING
    assert ids([run for run, _ in admitted.ended]) == ["run-1"]
    with pytest.raises(UnendedRunsError):  # the first is FINISHING: it is unended as long as its end is not in the log
        await store.admit(message("run-3", ThreadStrategy.REJECT, thread="t3", max_unended=2))


@pytest.mark.parametrize("strategy", ENDING)
async def test_a_run_that_waits_for_a_person_is_ended_too(store: RunStore, strategy: ThreadStrategy) -> None:
    run = (await store.admit(message("run-1"))).run
    assert await store.suspend(run.ref, QUESTION, 60)
    admitted = await store.admit(message("run-2", strategy))
    ((ended, finished),) = admitted.ended
    assert ended.waiting_for is None
    assert [stage.state for stage in ended.stages] == [StageState.FAILED, StageState.SKIPPED]
    assert [event.number for event in finished.events] == [3, 4]


@pytest.mark.parametrize(
    ("why", "error"),
    [
        ({"max_engines": 1}, EnginesLimitError),
        ({"max_unended": 1}, UnendedRunsError),
        ({"max_unended_total": 1}, ActiveRunsError),
        ({"max_active_total": 1}, ActiveRunsError),
        ({"engine_id": "eng-unknown"}, UnknownEngineError),
        ({"rate_per_minute": 60.0, "rate_burst": 1}, RateLimitError),
        ({"client_ref": "ref", "content_hash": "other"}, IdempotencyConflictError),
    ],
)
@pytest.mark.parametrize("strategy", ENDING)
async def test_a_refusal_changes_nothing_and_ends_nothing(
    store: RunStore, strategy: ThreadStrategy, why: dict[str, Any], error: type[CarrelError]
) -> None:
    await store.admit(admission("run-0", client_ref="ref", rate_per_minute=60.0, rate_burst=1))
    await store.admit(message("run-1"))
    await store.admit(message("run-2"))
    before = await everything(store)
    attempt = message("run-3", strategy, **why)
    with pytest.raises(error):
        await store.admit(attempt)
    assert await everything(store) == before
    # In a group with others, whose writes stand.
    alone, other = await asyncio.gather(
        store.admit(attempt), store.admit(admission("run-9", BOB)), return_exceptions=True
    )
    assert isinstance(alone, error)
    assert isinstance(other, Admitted)
    assert [run for run in await everything(store) if run in before][:3] == before[:3]


@pytest.mark.parametrize("strategy", [*ENDING, ENQUEUE])
async def test_asking_again_with_the_same_ref_ends_nothing(store: RunStore, strategy: ThreadStrategy) -> None:
    first = await store.admit(message("run-1", strategy, client_ref="ref"))
    again = await store.admit(message("run-2", strategy, client_ref="ref"))
    assert again.existing
    assert again.ended == ()
    assert again.run == first.run


@pytest.mark.parametrize("strategy", ENDING)
async def test_of_many_newer_messages_at_once_the_last_is_left(store: RunStore, strategy: ThreadStrategy) -> None:
    results = await asyncio.gather(*(store.admit(message(f"run-{n:02}", strategy, max_unended=100)) for n in range(30)))
    assert sum(len(result.ended) for result in results) == 29
    (left,) = ids((await store.list_runs(ALICE, "t", frozenset({RunState.RUNNING}), 100, None)).items)
    assert len((await store.list_engines(ALICE, 100, None)).items) == 1
    spoken = await said(store, "t")
    assert spoken[-1] == ("user", f"ask {left}")
    everybody = {("user", f"ask run-{n:02}") for n in range(30)}
    assert set(spoken) == (everybody if strategy is ThreadStrategy.INTERRUPT else {spoken[-1]})
    assert len(spoken) == len(set(spoken))


# Limits


async def test_rate_is_used_by_admitted_runs_only_and_refills(store: RunStore, clock: Clock) -> None:
    rate: dict[str, Any] = {"rate_per_minute": 60.0, "rate_burst": 3, "max_engines": 9, "max_unended": 99}
    for n in range(2):
        await store.admit(admission(f"run-{n}", client_ref=f"ref-{n}", **rate))
    for _ in range(5):  # refused for another reason, or told of what there is: none of these uses the rate
        with pytest.raises(EnginesLimitError):
            await store.admit(admission("run-9", **{**rate, "max_engines": 1}))
        assert (await store.admit(admission("run-9", client_ref="ref-0", **rate))).existing
    await store.admit(admission("run-2", **rate))
    with pytest.raises(RateLimitError) as raised:
        await store.admit(admission("run-3", **rate))
    assert (raised.value.limit, raised.value.limit_value) == ("runs_per_minute_per_user", 60)
    assert raised.value.retry_after_s == 1.0
    await store.admit(admission("run-3", BOB, **rate))
    await store.admit(admission("run-4", **{**rate, "rate_per_minute": 0.0}))  # no limit claimed
    clock.forward(1)
    await store.admit(admission("run-3", **rate))
    with pytest.raises(RateLimitError):
        await store.admit(admission("run-5", **rate))


async def test_rate_holds_against_admissions_at_once(store: RunStore) -> None:
    rate: dict[str, Any] = {"rate_per_minute": 600.0, "rate_burst": 7, "max_engines": 99, "max_unended": 99}
    results = await asyncio.gather(
        *(store.admit(admission(f"run-{n}", **rate)) for n in range(40)), return_exceptions=True
    )
    assert sum(isinstance(result, Admitted) for result in results) == 7
    assert sum(isinstance(result, RateLimitError) for result in results) == 33


async def test_engines_of_all_users_are_limited_and_named(store: RunStore) -> None:
    await store.reserve_engine(BOB, "eng-b", 2)
    await store.admit(admission("run-1", max_active_total=2))
    with pytest.raises(ActiveRunsError) as raised:
        await store.admit(admission("run-2", max_active_total=2))
    assert (raised.value.limit, raised.value.limit_value, raised.value.use) == ("max_active_runs", 2, 2)
    assert raised.value.retry_after_s
    admitted = await store.admit(admission("run-2", BOB, engine_id="eng-b", max_active_total=2))  # it counts already
    assert admitted.run.state is RunState.RUNNING
    queued = await store.admit(admission("run-3", BOB, strategy=ENQUEUE, max_active_total=2))
    assert queued.run.state is RunState.QUEUED
    assert await store.promote(10) == ()
    finished = await store.finish((await need(store, "run-1")).ref, success())
    assert finished is not None
    assert finished.queued  # of another user, where the deployment was full
    assert ids(await store.promote(10)) == ["run-3"]


async def test_unended_runs_of_all_users_are_limited_and_named(store: RunStore) -> None:
    first = await store.admit(admission("run-1", max_unended_total=2))
    await store.admit(admission("run-1", BOB, max_unended_total=2))
    for strategy in ThreadStrategy:
        with pytest.raises(ActiveRunsError) as raised:
            await store.admit(admission("run-2", strategy=strategy, max_unended_total=2))
        assert (raised.value.limit, raised.value.limit_value, raised.value.use) == ("max_unended_runs", 2, 2)
    await store.finish(first.run.ref, CANCEL)
    await store.close_run(first.run.ref)
    await store.admit(admission("run-2", max_unended_total=2))


async def test_queued_and_waiting_runs_count_as_unended(store: RunStore) -> None:
    first = await store.admit(message("run-1"))
    await store.suspend(first.run.ref, QUESTION, 60)
    for n in range(2, 6):
        await store.admit(message(f"run-{n}"))
    with pytest.raises(UnendedRunsError) as raised:
        await store.admit(message("run-6"))
    assert (raised.value.limit_value, raised.value.use) == (5, 5)


async def test_nobody_waits_when_no_run_of_the_user_is_queued(store: RunStore) -> None:
    await store.admit(message("run-1", user=BOB))
    await store.admit(message("run-2", user=BOB))
    admitted = await store.admit(admission("run-1", max_active_total=9))
    finished = await store.finish(admitted.run.ref, success())
    assert finished is not None
    assert not finished.queued  # Bob waits for his own thread, and the deployment was not full


# Turns


async def waiting_for_engines(store: RunStore, clock: Clock, users: list[str], runs: int, total: int) -> list[Any]:
    """``total`` runs of somebody else; of each of the users so many QUEUED ones, one user's before the next's."""
    limits: dict[str, Any] = {"max_engines": 99, "max_unended": 99, "max_active_total": total}
    running = [(await store.admit(admission(f"run-{n}", UserKey("eve"), **limits))).run for n in range(total)]
    for user in users:
        for n in range(runs):
            clock.forward(0.001)
            await store.admit(admission(f"{user}-{n}", UserKey(user), strategy=ENQUEUE, **limits))
    return running


async def test_users_take_turns_the_one_who_waited_longest_first(store: RunStore, clock: Clock) -> None:
    running = await waiting_for_engines(store, clock, ["carl", "alice", "bob"], 3, total=9)
    for run in running:
        await store.finish(run.ref, CANCEL)
    begun = ids(await store.promote(99))
    assert begun == [f"{user}-{n}" for n in range(3) for user in ("carl", "alice", "bob")]


async def test_turns_go_on_from_one_free_engine_to_the_next(store: RunStore, clock: Clock) -> None:
    running = await waiting_for_engines(store, clock, ["carl", "alice"], 4, total=1)
    begun: list[str] = []
    (run,) = running
    for _ in range(8):
        clock.forward(1)
        finished = await store.finish(run.ref, CANCEL)
        assert finished is not None
        assert finished.queued
        (step,) = await store.promote(99)
        run = step.run
        begun += ids([step])
    assert begun == [f"{user}-{n}" for n in range(4) for user in ("carl", "alice")]


async def test_a_user_who_comes_late_does_not_wait_for_a_longer_queue(store: RunStore, clock: Clock) -> None:
    (run,) = await waiting_for_engines(store, clock, ["carl"], 5, total=1)
    await store.finish(run.ref, CANCEL)
    (step,) = await store.promote(99)
    clock.forward(1)
    late = admission("late", BOB, strategy=ENQUEUE, max_active_total=1)
    await store.admit(late)
    begun: list[str] = []
    for _ in range(3):
        clock.forward(1)
        await store.finish(step.run.ref, CANCEL)
        (step,) = await store.promote(99)
        begun += ids([step])
    assert begun == ["carl-1", "late", "carl-2"]


async def test_a_user_without_room_holds_up_nobody(store: RunStore, clock: Clock) -> None:
    for n in range(2):
        await store.admit(admission(f"run-{n}"))
    for n in range(2, 5):
        await store.admit(admission(f"run-{n}", strategy=ENQUEUE))
    bobs = [await store.admit(admission(f"run-{n}", BOB)) for n in range(2)]
    await store.admit(admission("run-2", BOB, strategy=ENQUEUE))
    await store.finish(bobs[0].run.ref, CANCEL)
    (step,) = await store.promote(1)
    assert (step.run.identity.user, step.run.identity.run_id) == (BOB, "run-2")


async def test_at_most_so_many_begin_at_once_and_no_more_than_there_is_room_for(store: RunStore, clock: Clock) -> None:
    running = await waiting_for_engines(store, clock, ["alice", "bob"], 5, total=6)
    for run in running:
        await store.finish(run.ref, CANCEL)
    assert await store.promote(0) == ()
    assert len(await store.promote(4)) == 4
    assert len(await store.promote(99)) == 2
    assert await store.promote(99) == ()
    assert len((await store.list_engines(None, 99, None)).items) == 6


async def test_reservations_leave_no_room(store: RunStore) -> None:
    await store.admit(admission("run-1"))
    await store.admit(admission("run-2"))
    await store.admit(admission("run-3", strategy=ENQUEUE))
    await store.finish((await need(store, "run-1")).ref, CANCEL)
    await store.reserve_engine(ALICE, "eng-a", 2)
    assert await store.promote(10) == ()
    await store.release_engine(ALICE, "eng-a")
    assert ids(await store.promote(10)) == ["run-3"]


# Several processes; those that meet in one moment are in `test_run_store_replicas`


@asynccontextmanager
async def processes(backend: Backend, *owners: str) -> AsyncIterator[list[SqlRunStore]]:
    """Replicas over the same tables."""
    async with AsyncExitStack() as stack:
        found = []
        for owner in owners:
            store = await backend.process(owner)
            stack.push_async_callback(store.close)
            await store.renew_leases()
            found.append(store)
        yield found


async def test_a_process_begins_only_runs_that_it_holds(backend: Backend, clock: Clock) -> None:
    async with processes(backend, "one", "two") as (one, two):
        first = await one.admit(message("run-1"))
        await two.admit(message("run-2"))
        finished = await one.finish(first.run.ref, success())
        assert finished is not None
        assert finished.queued
        assert await one.promote(10) == ()
        assert ids(await two.promote(10)) == ["run-2"]
        # Nor do the runs of others, who have waited longer, use up its turns.
        for process, user in ((one, "ann"), (two, "ben")):
            for n in range(2):
                await process.admit(admission(f"{user}-{n}", UserKey(user), thread="t", strategy=ENQUEUE))
            clock.forward(1)
        for process, user in ((one, "ann"), (two, "ben")):
            await process.finish((await need(process, f"{user}-0", UserKey(user))).ref, CANCEL)
        assert ids(await two.promote(1)) == ["ben-1"]


async def test_queued_and_waiting_runs_are_taken_over_and_go_on(backend: Backend, clock: Clock) -> None:
    async with processes(backend, "one", "two") as (one, two):
        first = await one.admit(message("run-1"))
        await one.suspend(first.run.ref, QUESTION, 60)
        queued = await one.admit(message("run-2"))
        assert await two.take_over() == ()
        clock.forward(60)
        assert ids(await one.expired_inputs()) == ["run-1"]
        assert await two.expired_inputs() == ()
        clock.forward(-60)
        await one.release_leases()
        taken = await two.take_over()
        assert [(run.identity.run_id, run.state, run.fence) for run in taken] == [
            ("run-1", RunState.WAITING, 2),
            ("run-2", RunState.QUEUED, 2),
        ]
        assert taken[0].waiting_for is not None
        assert await one.finish(queued.run.ref, CANCEL) is None
        assert await one.provide_input(ALICE, "run-1", "inp-1", b"true")
        assert await one.promote(10) == ()
        assert ids(await two.promote(10)) == ["run-1"]


async def test_another_process_ends_runs_and_their_holder_learns_of_it(backend: Backend, clock: Clock) -> None:
    async with processes(backend, "one", "two") as (one, two):
        mine = await one.admit(message("run-1"))
        mine_too = await one.admit(message("run-2"))
        await one.admit(message("run-1", user=BOB))
        held = [(ALICE, "run-1"), (ALICE, "run-2"), (BOB, "run-1"), (BOB, "gone")]
        assert await one.decided(held) == {(BOB, "gone")}
        assert await one.decided([]) == frozenset()
        await two.finish(mine_too.run.ref, CANCEL)
        assert await one.decided(held) == {(BOB, "gone"), (ALICE, "run-2")}
        await two.admit(message("run-3", ThreadStrategy.INTERRUPT))
        assert await one.decided(held) == {(BOB, "gone"), (ALICE, "run-2"), (ALICE, "run-1")}
        assert await one.checkpoint(mine.run.ref, Checkpoint(0, b"{}", "data")) is None
        many = [(BOB, f"none-{n}") for n in range(1000)]
        assert await one.decided([*held, *many]) == {(ALICE, "run-2"), (ALICE, "run-1"), (BOB, "gone"), *many}


async def test_more_orphans_than_are_taken_at_once_are_all_taken(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TAKEN_AT_ONCE", 50)
    monkeypatch.setattr(leases, "_ORPHANS", leases._ORPHANS.limit(50))
    async with processes(backend, "one") as (one,):
        limits: dict[str, Any] = {"max_engines": 2000, "max_unended": 2000}
        await asyncio.gather(*(one.admit(admission(f"run-{n:04}", stages=("data",), **limits)) for n in range(110)))
    async with processes(backend, "one") as (again,):
        taken = await again.take_over()
        assert len({run.identity.run_id for run in taken}) == len(taken) == 110
        assert await again.take_over() == ()


async def test_a_bound_run_is_kept_by_processes_that_live(backend: Backend) -> None:
    async with processes(backend, "one", "two") as (one, two):
        bound = await one.admit(admission("run-1", bound=True))
        await one.admit(admission("run-2"))
        assert not await one.keep(ALICE, "run-2")
        assert not await one.keep(BOB, "run-1")
        assert not await two.is_kept(ALICE, "run-1")
        for _ in range(2):
            assert await one.keep(ALICE, "run-1")
            assert await two.keep(ALICE, "run-1")
        assert not await one.let_go(ALICE, "run-1")
        assert not await one.let_go(ALICE, "run-1")
        await two.release_leases()
        assert not await one.is_kept(ALICE, "run-1")
        await two.renew_leases()
        assert await one.is_kept(ALICE, "run-1")
        both = await asyncio.gather(one.keep(ALICE, "run-1"), two.keep(ALICE, "run-1"))
        assert list(both) == [True, True]
        last = await asyncio.gather(one.let_go(ALICE, "run-1"), two.let_go(ALICE, "run-1"))
        assert sorted(last) == [False, True]
        await two.keep(ALICE, "run-1")
        await one.finish(bound.run.ref, CANCEL)
        assert not await two.let_go(ALICE, "run-1")
        assert not await two.keep(ALICE, "run-1")
