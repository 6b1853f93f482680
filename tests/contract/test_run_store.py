"""The run store's contract, over every implementation that there is: what `services/execution/store.py` promises."""

import asyncio
from dataclasses import replace

import pytest

from carrel.errors import (
    AlreadyExistsError,
    EnginesLimitError,
    IdempotencyConflictError,
    QuotaError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownEngineError,
)
from services.execution.domain.errors import RunNotEndedError
from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    AuditOutcome,
    JournalItem,
    RunRef,
    RunState,
    StageState,
    UserKey,
)
from services.execution.models_steps import Admitted, Checkpoint, Finish, Span
from services.execution.store import RunStore
from tests.contract.run_support import ALICE, BOB, CANCEL, SECOND, Clock, admission, finish_and_close, success

# Admission


async def test_admitted_run_reads_back_with_its_first_stage_running_and_its_first_event_in_the_outbox(
    store: RunStore,
) -> None:
    admitted = await store.admit(admission())
    run = admitted.run
    assert not admitted.existing
    assert not admitted.thread_existed
    assert run.state is RunState.RUNNING
    assert [(s.agent_name, s.state, s.attempt) for s in run.stages] == [
        ("data", StageState.RUNNING, 1),
        ("report", StageState.PENDING, 0),
    ]
    assert run.deadline_at - run.created_at == 300 * SECOND
    assert await store.get_run(ALICE, "run-1") == run
    assert await store.outbox(ALICE, "run-1") == admitted.events
    (event,) = admitted.events
    assert event.number == 1
    assert event.event_type == "run_accepted"
    assert event.data == {
        "run_id": "run-1",
        "thread_id": "thread-run-1",
        "client_ref": "",
        "agent_name": "data",
        "stages": ["data", "report"],
    }


async def test_a_hundred_admissions_of_one_user_at_once_admit_exactly_two(store: RunStore) -> None:
    results = await asyncio.gather(*(store.admit(admission(f"run-{n}")) for n in range(100)), return_exceptions=True)
    admitted = [result for result in results if isinstance(result, Admitted)]
    refused = [result for result in results if isinstance(result, EnginesLimitError)]
    assert len(admitted) == 2
    assert len(refused) == 98
    assert refused[0].limit == "max_engines_per_user"
    assert refused[0].limit_value == 2
    assert refused[0].use == 2
    assert refused[0].retry_after_s is not None
    assert refused[0].retry_after_s > 0
    page = await store.list_runs(ALICE, "", frozenset(), 200, None)
    assert len(page.items) == 2
    assert len((await store.list_engines(ALICE, 100, None)).items) == 2


async def test_users_do_not_use_up_each_others_limits(store: RunStore) -> None:
    for user in (ALICE, BOB):
        for n in range(2):
            await store.admit(admission(f"run-{n}", user))
    with pytest.raises(EnginesLimitError):
        await store.admit(admission("run-3", BOB))


async def test_sixth_unended_run_is_refused_although_engines_are_free(store: RunStore) -> None:
    admitted = [await store.admit(admission(f"run-{n}", max_engines=100)) for n in range(5)]
    for each in admitted:
        assert await store.finish(each.run.ref, CANCEL)  # FINISHING: unended, without an engine
    assert (await store.list_engines(ALICE, 100, None)).items == ()
    with pytest.raises(UnendedRunsError) as raised:
        await store.admit(admission("run-5", max_engines=100))
    assert (raised.value.limit_value, raised.value.use) == (5, 5)
    assert await store.close_run(admitted[0].run.ref)
    await store.admit(admission("run-5", max_engines=100))


async def test_busy_thread_is_refused_and_free_once_its_run_is_finishing(store: RunStore) -> None:
    first = await store.admit(admission("run-1", thread="t"))
    with pytest.raises(ThreadBusyError) as raised:
        await store.admit(admission("run-2", thread="t"))
    assert raised.value.details["run_id"] == "run-1"
    await store.admit(admission("run-1", BOB, thread="t"))  # another user's thread of the same name
    await store.finish(first.run.ref, success())
    second = await store.admit(admission("run-2", thread="t"))
    assert second.thread_existed


async def test_same_client_ref_returns_the_same_run_for_a_day(store: RunStore, clock: Clock) -> None:
    first = await store.admit(admission("run-1", client_ref="ref"))
    again = await store.admit(admission("run-2", client_ref="ref"))
    assert again.existing
    assert again.run == first.run
    assert await store.get_run(ALICE, "run-2") is None
    with pytest.raises(IdempotencyConflictError):
        await store.admit(admission("run-2", client_ref="ref", content_hash="other"))
    assert not (await store.admit(admission("run-1", BOB, client_ref="ref", content_hash="other"))).existing
    clock.forward(24 * 3600 + 1)
    assert not (await store.admit(admission("run-3", client_ref="ref", content_hash="other"))).existing


async def test_concurrent_repeats_of_one_client_ref_admit_one_run(store: RunStore) -> None:
    results = await asyncio.gather(*(store.admit(admission(f"run-{n}", client_ref="ref")) for n in range(20)))
    assert len({result.run.identity.run_id for result in results}) == 1
    assert sum(not result.existing for result in results) == 1


async def test_taken_run_id_is_the_same_run_only_for_the_same_request(store: RunStore) -> None:
    await store.admit(admission("run-1", client_ref="a"))
    with pytest.raises(AlreadyExistsError):
        await store.admit(admission("run-1", client_ref="b"))
    with pytest.raises(AlreadyExistsError):
        await store.admit(admission("run-1"))
    await store.admit(admission("run-2"))
    assert (await store.admit(admission("run-2"))).existing


# Engines


async def test_reservation_counts_and_is_consumed_by_its_run(store: RunStore) -> None:
    engine = await store.reserve_engine(ALICE, "eng-a", 2)
    assert engine.run_id == ""
    await store.admit(admission("run-1"))
    with pytest.raises(EnginesLimitError):
        await store.admit(admission("run-2"))
    with pytest.raises(EnginesLimitError):
        await store.reserve_engine(ALICE, "eng-b", 2)
    admitted = await store.admit(admission("run-2", engine_id="eng-a"))
    assert admitted.run.engine_id == "eng-a"
    taken = await store.get_engine(ALICE, "eng-a")
    assert taken is not None
    assert taken.run_id == "run-2"
    with pytest.raises(UnknownEngineError):
        await store.admit(admission("run-3", engine_id="eng-a"))
    assert not await store.release_engine(ALICE, "eng-a")  # its run frees it


async def test_other_users_engine_is_unknown(store: RunStore) -> None:
    await store.reserve_engine(ALICE, "eng-a", 2)
    with pytest.raises(UnknownEngineError):
        await store.admit(admission("run-1", BOB, engine_id="eng-a"))
    assert await store.get_engine(BOB, "eng-a") is None
    assert not await store.release_engine(BOB, "eng-a")
    assert (await store.list_engines(BOB, 10, None)).items == ()
    assert await store.release_engine(ALICE, "eng-a")


async def test_lapsed_reservation_does_not_count_and_is_swept(store: RunStore, clock: Clock) -> None:
    await store.reserve_engine(ALICE, "eng-a", 2)
    await store.admit(admission("run-1", client_ref="old"))
    clock.forward(301)
    await store.reserve_engine(ALICE, "eng-b", 2)
    swept = await store.sweep()
    assert [engine.engine_id for engine in swept.engines] == ["eng-a"]
    clock.forward(24 * 3600)
    assert (await store.sweep()).client_refs == 1


async def test_engines_of_all_users_are_listed_by_page(store: RunStore) -> None:
    for user in (ALICE, BOB):
        for n in range(2):
            await store.reserve_engine(user, f"eng-{n}", 2)
    first = await store.list_engines(None, 3, None)
    second = await store.list_engines(None, 3, first.next)
    assert [(e.user, e.engine_id) for e in (*first.items, *second.items)] == [
        ("alice", "eng-0"),
        ("alice", "eng-1"),
        ("bob", "eng-0"),
        ("bob", "eng-1"),
    ]
    assert second.next is None


# A run's way


async def test_checkpoint_keeps_the_result_extends_the_plan_and_begins_the_next_stage(store: RunStore) -> None:
    admitted = await store.admit(admission(stages=("supervisor",), agent_name="supervisor"))
    step = Checkpoint(0, b'{"plan":["data"]}', "supervisor", added=("data", "report"), params=b'{"n":2}')
    run = await store.checkpoint(admitted.run.ref, step)
    assert run is not None
    assert run.params == b'{"n":2}'
    assert [(s.index, s.agent_name, s.state, s.attempt) for s in run.stages] == [
        (0, "supervisor", StageState.SUCCEEDED, 1),
        (1, "data", StageState.RUNNING, 1),
        (2, "report", StageState.PENDING, 0),
    ]
    assert run.stages[0].result == b'{"plan":["data"]}'
    assert await store.checkpoint(admitted.run.ref, step) is None  # done already


async def test_finish_ends_everything_of_the_run_in_one_step(store: RunStore) -> None:
    admitted = await store.admit(admission(thread="t"))
    ref = admitted.run.ref
    await store.checkpoint(ref, Checkpoint(0, b"{}", "data"))
    finished = await store.finish(ref, success())
    assert finished is not None
    (event,) = finished.events
    assert (event.number, event.event_type) == (2, "run_completed")
    assert event.data == {"status": "SUCCEEDED", "result": {"ok": True}}
    run = await store.get_run(ALICE, "run-1")
    assert run is not None
    assert (run.state, run.outcome) == (RunState.FINISHING, RunState.SUCCEEDED)
    assert [stage.state for stage in run.stages] == [StageState.SUCCEEDED] * 2
    assert run.engine_id == ""
    assert await store.get_engine(ALICE, admitted.run.engine_id) is None
    assert [(m.role, m.text) for m in (await store.messages(ALICE, "t", 10, None)).items] == [
        ("user", "hello"),
        ("assistant", "done"),
    ]
    assert len(await store.outbox(ALICE, "run-1")) == 2
    assert await store.close_run(ref)
    assert not await store.close_run(ref)
    run = await store.get_run(ALICE, "run-1")
    assert run is not None
    assert run.state is RunState.SUCCEEDED
    assert await store.outbox(ALICE, "run-1") == ()


async def test_interrupted_stage_gets_its_error_before_the_terminal_event(store: RunStore) -> None:
    admitted = await store.admit(admission())
    finished = await store.finish(admitted.run.ref, CANCEL)
    assert finished is not None
    assert [(e.number, e.event_type, e.agent_name) for e in finished.events] == [
        (2, "agent_error", "data"),
        (3, "run_completed", ""),
    ]
    assert finished.events[1].data["error"]["code"] == "CANCELLED_RUN"
    run = await store.get_run(ALICE, "run-1")
    assert run is not None
    assert [stage.state for stage in run.stages] == [StageState.FAILED, StageState.SKIPPED]


async def test_of_racing_ends_exactly_one_wins(store: RunStore) -> None:
    admitted = await store.admit(admission())
    results = await asyncio.gather(*(store.finish(admitted.run.ref, end) for end in [success(), CANCEL] * 10))
    assert sum(result is not None for result in results) == 1
    assert await store.checkpoint(admitted.run.ref, Checkpoint(0, b"{}", "data")) is None


async def test_close_needs_finishing_first(store: RunStore) -> None:
    admitted = await store.admit(admission())
    assert not await store.close_run(admitted.run.ref)


async def test_journal_is_kept_once_per_number(store: RunStore) -> None:
    admitted = await store.admit(admission())
    item = JournalItem(1, "c1", "tool", "load", "h", b"1")
    failed = JournalItem(2, "c2", "tool", "load", "h", b"null", {"code": "TOOL_FAILED"})
    assert await store.save_journal(admitted.run.ref, 0, [item, failed, item])
    assert await store.save_journal(admitted.run.ref, 0, [replace(item, result=b"2")])
    assert await store.journal(ALICE, "run-1", 0) == (item, failed)
    assert await store.journal(ALICE, "run-1", 1) == ()
    assert await store.journal(BOB, "run-1", 0) == ()


# Leases


async def test_stale_fence_writes_nothing(store: RunStore) -> None:
    admitted = await store.admit(admission())
    old = admitted.run.ref
    (taken,) = await store.take_over()  # the first take-over of a process is of what its former self held
    assert taken.fence == old.fence + 1
    assert await store.finish(old, success()) is None
    assert await store.checkpoint(old, Checkpoint(0, b"{}", "data")) is None
    assert not await store.save_journal(old, 0, [JournalItem(1, "c", "tool", "t", "h", b"1")])
    assert not await store.save_artifact(old, ArtifactRecord("run-1", "a", "text/plain", 1, "s", 0), 10, 200)
    assert await store.finish(taken.ref, success()) is not None
    assert not await store.close_run(old)
    assert await store.close_run(taken.ref)
    assert await store.take_over() == ()


async def test_live_leases_are_not_taken_over_again(store: RunStore) -> None:
    await store.take_over()
    await store.admit(admission())
    assert await store.take_over() == ()
    await store.renew_leases()
    await store.release_leases()
    assert await store.take_over() == ()  # released for others; this process goes on to its end


# Reading


async def test_other_users_ids_name_nothing(store: RunStore) -> None:
    admitted = await store.admit(admission(thread="t"))
    assert await store.get_run(BOB, "run-1") is None
    assert await store.get_thread(BOB, "t") is None
    assert (await store.messages(BOB, "t", 10, None)).items == ()
    assert await store.outbox(BOB, "run-1") == ()
    assert await store.delete_thread(BOB, "t") is None
    assert (await store.list_threads(BOB, 10, None)).items == ()
    assert await store.finish(RunRef(BOB, "run-1", admitted.run.fence), success()) is None
    assert await store.get_run(ALICE, "run-1") == admitted.run


async def test_runs_are_listed_newest_first_by_page_and_filter(store: RunStore, clock: Clock) -> None:
    for n in range(7):
        clock.forward(n % 2)  # some are of the same moment
        admitted = await store.admit(admission(f"run-{n}", max_engines=9, max_unended=9))
        if n < 3:
            await finish_and_close(store, admitted)
    found: list[str] = []
    after = None
    while True:
        page = await store.list_runs(ALICE, "", frozenset(), 3, after)
        found += [run.identity.run_id for run in page.items]
        assert all(run.result is None and len(run.stages) == 2 for run in page.items)
        if page.next is None:
            break
        after = page.next
    assert found == [f"run-{n}" for n in reversed(range(7))]
    ended = await store.list_runs(ALICE, "", frozenset({RunState.CANCELLED}), 10, None)
    assert [run.identity.run_id for run in ended.items] == ["run-2", "run-1", "run-0"]
    of_thread = await store.list_runs(ALICE, "thread-run-4", frozenset(), 10, None)
    assert [run.identity.run_id for run in of_thread.items] == ["run-4"]


async def test_pages_of_long_texts_end_early_and_nothing_is_left_out(store: RunStore) -> None:
    for n in range(20):
        admitted = await store.admit(admission(f"run-{n:02}", thread="t", message="x" * 250_000, max_engines=9))
        end = Finish(RunState.FAILED, error={"code": "X", "message": "y" * 250_000}, interrupts=True)
        await store.finish(admitted.run.ref, end)
        await store.close_run(admitted.run.ref)
    said: list[str] = []
    after = None
    while True:
        page = await store.messages(ALICE, "t", 100, after)
        assert page.items
        assert sum(len(message.text) for message in page.items) < 2 * 1024 * 1024
        said += [message.run_id for message in page.items if message.role == "user"]
        if (after := page.next) is None:
            break
    assert said == [f"run-{n:02}" for n in range(20)]
    found: list[str] = []
    while True:
        runs = await store.list_runs(ALICE, "", frozenset(), 100, after)
        assert runs.items
        assert len(runs.items) < 10
        found += [run.identity.run_id for run in runs.items]
        if (after := runs.next) is None:
            break
    assert sorted(found) == said


async def test_threads_are_listed_by_latest_activity_with_their_live_run(store: RunStore, clock: Clock) -> None:
    first = await store.admit(admission("run-1", thread="t1"))
    clock.forward(1)
    await store.admit(admission("run-2", thread="t2"))
    clock.forward(1)
    await store.finish(first.run.ref, success())
    page = await store.list_threads(ALICE, 1, None)
    assert [(t.thread_id, t.message_count, t.unended_run_id) for t in page.items] == [("t1", 2, "")]
    page = await store.list_threads(ALICE, 1, page.next)
    assert [(t.thread_id, t.message_count, t.unended_run_id) for t in page.items] == [("t2", 1, "run-2")]
    assert page.next is None


async def test_history_is_the_end_of_the_thread_without_the_asking_run(store: RunStore) -> None:
    for n in range(3):
        admitted = await store.admit(admission(f"run-{n}", thread="t"))
        await store.finish(admitted.run.ref, replace(success(), reply=f"answer {n}"))
    await store.admit(admission("run-3", thread="t"))
    history = await store.history(ALICE, "t", "run-3", 3)
    assert [(m.role, m.text) for m in history] == [
        ("assistant", "answer 1"),
        ("user", "hello"),
        ("assistant", "answer 2"),
    ]


async def test_thread_is_deleted_with_all_that_hangs_on_it(store: RunStore) -> None:
    admitted = await store.admit(admission("run-1", thread="t", client_ref="ref"))
    await store.save_artifact(admitted.run.ref, ArtifactRecord("run-1", "a", "text/plain", 1, "s", 0), 10, 200)
    with pytest.raises(RunNotEndedError):
        await store.delete_thread(ALICE, "t")
    await finish_and_close(store, admitted)
    assert await store.delete_thread(ALICE, "t") == ("run-1",)
    assert await store.delete_thread(ALICE, "t") is None
    assert await store.get_run(ALICE, "run-1") is None
    assert await store.get_artifact(ALICE, "run-1", "a") is None
    assert not (await store.admit(admission("run-1", thread="t", client_ref="ref", content_hash="h2"))).existing


# Artifacts and audit


async def test_a_run_has_so_many_artifacts_and_no_more(store: RunStore) -> None:
    ref = (await store.admit(admission("run-1"))).run.ref
    other = (await store.admit(admission("run-2", thread="t2"))).run.ref
    for name in ("a", "b", "a"):
        assert await store.save_artifact(ref, ArtifactRecord("run-1", name, "text/plain", 1, "s", 0), 10, 2)
    assert await store.save_artifact(other, ArtifactRecord("run-2", "a", "text/plain", 1, "s", 0), 10, 2)
    with pytest.raises(QuotaError) as raised:
        await store.save_artifact(ref, ArtifactRecord("run-1", "c", "text/plain", 1, "s", 0), 10, 2)
    assert (raised.value.limit, raised.value.limit_value, raised.value.use) == ("artifacts_per_run", 2, 2)
    assert await store.get_artifact(ALICE, "run-1", "c") is None


async def test_artifacts_count_against_the_quota_and_replace_their_namesake(store: RunStore) -> None:
    ref = (await store.admit(admission())).run.ref
    first = ArtifactRecord("run-1", "a.txt", "text/plain", 6, "s1", 1)
    assert await store.save_artifact(ref, first, 10, 200)
    bigger = replace(first, size=10, sha256="s2")
    assert await store.save_artifact(ref, bigger, 10, 200)
    with pytest.raises(QuotaError) as raised:
        await store.save_artifact(ref, replace(first, name="b.txt", size=1), 10, 200)
    assert raised.value.use == 10
    assert await store.get_artifact(ALICE, "run-1", "a.txt") == bigger
    assert await store.get_artifact(BOB, "run-1", "a.txt") is None
    run = await store.get_run(ALICE, "run-1")
    assert run is not None
    assert run.artifacts == (bigger,)


async def test_audit_is_listed_newest_first_of_one_user_or_of_all(store: RunStore) -> None:
    entries = [
        AuditEntry(f"a{n}", user, "t", f"run-{n}", "req", "tool.call", "load", AuditOutcome.SUCCEEDED, n)
        for n, user in enumerate([ALICE, BOB, ALICE])
    ]
    await store.save_audit(entries)
    await store.save_audit(entries[:1])  # sent again
    assert (await store.list_audit(ALICE, "", 10, None)).items == (entries[2], entries[0])
    listed: list[AuditEntry] = []
    page = await store.list_audit(None, "", 2, None)
    listed += page.items
    while page.next is not None:
        page = await store.list_audit(None, "", 2, page.next)
        listed += page.items
    # Beside what the store itself has recorded, of the key that it was opened with.
    assert [entry for entry in listed if entry.user in {ALICE, BOB}] == list(reversed(entries))
    assert (await store.list_audit(None, "run-1", 10, None)).items == (entries[1],)


async def test_audit_of_a_span_of_time_oldest_first_goes_on_with_what_came_later(store: RunStore) -> None:
    entries = [
        AuditEntry(f"a{n}", user, "t", "r", "req", "tool.call", "load", AuditOutcome.SUCCEEDED, 10 + n)
        for n, user in enumerate([ALICE, BOB, ALICE, BOB])
    ]
    await store.save_audit(entries[:3])
    span = Span(since=11, until=100, oldest_first=True)
    first = await store.list_audit(None, "", 10, None, span)
    assert first.items == tuple(entries[1:3])
    assert first.next is not None
    assert (await store.list_audit(None, "", 10, first.next, span)).items == ()
    await store.save_audit(entries[3:])
    assert (await store.list_audit(None, "", 10, first.next, span)).items == (entries[3],)
    assert (await store.list_audit(BOB, "", 10, None, Span(until=13))).items == (entries[1],)
    assert await store.expire_audit(12) == 2
    assert await store.expire_audit(12) == 0
    assert (await store.list_audit(ALICE, "", 10, None)).items == (entries[2],)


# Transactions


async def test_refused_writes_of_a_group_undo_nothing_of_the_others(store: RunStore) -> None:
    users = [UserKey(f"u{n}") for n in range(20)]
    results = await asyncio.gather(
        *(store.admit(admission(f"run-{n}", user)) for n in range(4) for user in users), return_exceptions=True
    )
    assert sum(isinstance(result, Admitted) for result in results) == 40
    for user in users:
        assert len((await store.list_runs(user, "", frozenset(), 10, None)).items) == 2


async def test_probe_leaves_nothing_and_close_is_repeatable(store: RunStore) -> None:
    await store.probe()
    await store.probe()
    await store.close()
    await store.close()


async def test_text_that_not_every_database_takes_is_kept_as_far_as_it_can_be(store: RunStore) -> None:
    admitted = await store.admit(admission(thread="t", message="a\0b"))
    ref = admitted.run.ref
    call = JournalItem(1, "c" * 600, "tool", "n\0" * 300, "h" * 70, b"\0\xff")
    assert await store.save_journal(ref, 0, [call])
    (kept,) = await store.journal(ALICE, "run-1", 0)
    assert (len(kept.call_id), len(kept.name), len(kept.arguments_hash), kept.result) == (512, 256, 64, b"\0\xff")
    assert "\0" not in kept.name
    assert await store.checkpoint(ref, Checkpoint(0, b"{}", "x" * 200))
    assert await store.finish(ref, replace(success(), reply="say \0 there", answered_by="y\0"))
    page = await store.messages(ALICE, "t", 10, None)
    assert [message.text for message in page.items] == ["a\ufffdb", "say \ufffd there"]
