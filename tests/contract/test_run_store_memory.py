"""What agents keep in a thread: it counts once its run has succeeded, is bounded, ends, and goes with the thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import sqlalchemy as sa

from carrel.errors import QuotaError
from services.execution.models import RunRef, RunState, StageState, ThreadStrategy
from services.execution.models_steps import Finish, Kept
from services.execution.store import RunStore
from services.execution.store_sql import SqlRunStore
from services.execution.tables import engines, memories, messages, runs, threads
from tests.contract.run_support import (
    ALICE,
    BOB,
    Clock,
    admission,
    completed,
    finish_and_close,
    keeps,
    need,
    success,
)


async def run_of(store: RunStore, run: str, kept: Kept | None, *, last: Kept | None = None, thread: str = "t") -> None:
    """A run of ``data`` and ``report`` that succeeds."""
    ref = (await store.admit(admission(run, thread=thread))).run.ref
    assert await store.checkpoint(ref, completed(kept))
    assert await store.finish(ref, replace(success(), memory=last))
    assert await store.close_run(ref)


async def raw(store: RunStore, *statements: Any) -> Any:
    """What another version does to the tables."""

    def work(connection: sa.Connection) -> Any:
        return [connection.execute(statement) for statement in statements][-1].rowcount

    return await cast(SqlRunStore, store).database.write(work)


async def rows(store: RunStore) -> list[tuple[str, str, int]]:
    """The runs, agents and sizes of all that is kept."""
    query = sa.select(memories.c.run_id, memories.c.agent_name, memories.c.size).order_by("run_id", "agent_name")
    found = await cast(SqlRunStore, store).database.read(lambda connection: connection.execute(query).all())
    return [(row.run_id, row.agent_name, row.size) for row in found]


async def test_what_a_runs_agents_keep_counts_once_it_has_succeeded(store: RunStore) -> None:
    ref = (await store.admit(admission(thread="t"))).run.ref
    assert await store.checkpoint(ref, completed(keeps(b"\0one")))
    assert await store.memory(ALICE, "t", "data") == b""
    await store.finish(ref, replace(success(), memory=keeps(b"two", "report")))
    assert await store.memory(ALICE, "t", "data") == b"\0one"
    assert await store.memory(ALICE, "t", "report") == b"two"
    for user, thread, agent in ((BOB, "t", "data"), (ALICE, "other", "data"), (ALICE, "t", "third")):
        assert await store.memory(user, thread, agent) == b""
    await store.close_run(ref)
    assert await store.memory(ALICE, "t", "data") == b"\0one"
    await run_of(store, "run-2", None)
    await run_of(store, "run-3", keeps(b"three"))
    assert await store.memory(ALICE, "t", "data") == b"three"
    assert await store.memory(ALICE, "t", "report") == b"two"
    assert await rows(store) == [("run-1", "report", 3), ("run-3", "data", 5)], "what was replaced is gone"
    await store.delete_thread(ALICE, "t")
    assert await rows(store) == []


@pytest.mark.parametrize("how", ["failed", "cancelled", "rolled back", "stale"])
async def test_a_run_that_does_not_succeed_leaves_what_was_there(store: RunStore, how: str) -> None:
    await run_of(store, "run-1", keeps(b"one"))
    two = await store.admit(admission("run-2", thread="t"))
    if how == "stale":
        old = RunRef(ALICE, "run-2", two.run.fence - 1)
        assert await store.checkpoint(old, completed(keeps(b"of an old fence"))) is None
    else:
        assert await store.checkpoint(two.run.ref, completed(keeps(b"two")))
    if how == "failed":
        last = Finish(RunState.FAILED, error={"code": "X", "message": "x"}, memory=keeps(b"late", "report"))
        assert await store.finish(two.run.ref, last)
    elif how == "rolled back":
        again = admission("run-3", thread="t", strategy=ThreadStrategy.ROLLBACK)
        await store.admit(again)
    else:
        await finish_and_close(store, two)
    assert await store.memory(ALICE, "t", "data") == b"one"
    assert await rows(store) == [("run-1", "data", 3)]


async def test_agents_of_one_user_keep_so_many_bytes_and_no_more(store: RunStore) -> None:
    await run_of(store, "run-1", keeps(b"x" * 60), thread="t1")
    ref = (await store.admit(admission("run-2", thread="t2"))).run.ref
    with pytest.raises(QuotaError, match="would take 101 bytes; 100 are allowed") as raised:
        await store.checkpoint(ref, completed(keeps(b"x" * 41, quota=100)))
    assert (raised.value.limit, raised.value.limit_value, raised.value.use) == ("memory_quota_per_user", 100, 60)
    assert "delete threads" in raised.value.advice
    run = await need(store, "run-2")
    assert [stage.state for stage in run.stages] == [StageState.RUNNING, StageState.PENDING], "nothing has happened"
    assert await store.checkpoint(ref, completed(keeps(b"x" * 40, quota=100)))
    with pytest.raises(QuotaError):
        await store.finish(ref, replace(success(), memory=keeps(b"y", "report", quota=100)))
    assert await store.finish(ref, success())
    other = (await store.admit(admission("run-1", BOB, thread="t1"))).run.ref
    assert await store.checkpoint(other, completed(keeps(b"x" * 100, quota=100)))
    # What takes the place of something counts alone.
    await run_of(store, "run-3", keeps(b"y" * 60, quota=100), thread="t1")
    assert await store.memory(ALICE, "t1", "data") == b"y" * 60


async def test_what_is_kept_ends_and_is_looked_at_in_slices(
    store: RunStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.execution.store_sql_memory._SLICE", 2)
    for n in range(3):
        await run_of(store, f"run-{n}", keeps(b"old", quota=10_000), thread=f"t{n}")
    clock.forward(100)
    await run_of(store, "run-3", keeps(b"young"), thread="t1")
    before = store.now() - 50 * 1_000_000
    place = await store.expire_memories(0, None)
    assert place is not None
    assert len(await rows(store)) == 3, "with no end nothing goes"
    place = await store.expire_memories(before, None)
    assert len(await rows(store)) == 1, "two of them were looked at"
    while place is not None:
        place = await store.expire_memories(before, place)
    assert await rows(store) == [("run-3", "data", 5)]
    assert await store.memory(ALICE, "t0", "data") == b""
    assert await store.memory(ALICE, "t1", "data") == b"young"


async def test_what_a_deleted_thread_leaves_behind_is_read_by_nobody_and_goes(store: RunStore) -> None:
    await run_of(store, "run-1", keeps(b"of a thread that is gone"))
    # As a version does that does not know of memories.
    await raw(store, runs.delete().where(runs.c.run_id == "run-1"), threads.delete(), messages.delete())
    await run_of(store, "run-2", None)
    assert await store.memory(ALICE, "t", "data") == b""
    live = (await store.admit(admission("run-3", thread="t"))).run.ref
    assert await store.checkpoint(live, completed(keeps(b"of now", "other")))
    assert await store.expire_memories(0, None) is None
    assert await rows(store) == [("run-3", "other", 6)]


async def test_what_an_older_version_ends_counts_by_how_it_ended(store: RunStore, clock: Clock) -> None:
    await run_of(store, "run-1", keeps(b"one"))
    for run, outcome in (("run-2", RunState.SUCCEEDED), ("run-3", RunState.FAILED)):
        clock.forward(1)
        ref = (await store.admit(admission(run, thread="t"))).run.ref
        assert await store.checkpoint(ref, completed(keeps(run.encode())))
        ends = runs.update().where(runs.c.run_id == run).values(outcome=outcome, state=outcome)
        await raw(store, engines.delete(), ends)
        assert await store.memory(ALICE, "t", "data") == b"run-2"
    await run_of(store, "run-4", keeps(b"four"))
    assert await store.memory(ALICE, "t", "data") == b"four"
    assert await rows(store) == [("run-4", "data", 4)]
