"""A state machine over engines, runs, threads, strategies, leases and cancels: the run store against a plain model.

Three processes share a SQLite file, or a PostgreSQL database. Each step is taken in the store and in `run_model`: what
it returns is compared, and after some steps everything that can be read. At the end of each example every run is
brought to its end.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from carrel.errors import CarrelError, EnginesLimitError, NotWaitingError
from services.execution.domain.errors import RunNotEndedError
from services.execution.models import JournalItem, RunRef, RunState, StageState, ThreadStrategy, UserKey
from services.execution.models_steps import Admitted, Again, Checkpoint, Finish
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_database import SqliteDatabase
from services.execution.store_sql_open import migrate_sqlite
from tests.contract.run_backends import PostgresBackend
from tests.contract.run_model import LIVE, SECOND, UNENDED, F, Key, Model, ModelRun, Q, R, W
from tests.contract.run_support import QUESTION, Clock, admission, success
from tests.support.postgres import PostgresServer

T = TypeVar("T")

OWNERS: Final = ("one", "two", "three")
USERS: Final = ("alice", "bob")
_owner = st.sampled_from(OWNERS)
_user = st.sampled_from(USERS)
_thread = st.sampled_from(["t1", "t2"])
_pick = st.integers(0, 1000)
_mostly = st.sampled_from([True, True, True, False])
_END = {
    RunState.CANCELLED: {"code": "CANCELLED_RUN", "message": "cancelled", "status": "CANCELLED"},
    RunState.FAILED: {"code": "AGENT_FAILED", "message": "failed", "status": "INTERNAL"},
    RunState.TIMED_OUT: {"code": "ENGINE_TIMEOUT", "message": "late", "status": "DEADLINE_EXCEEDED"},
}


def ending(outcome: RunState) -> Finish:
    """How a run ends so."""
    return success() if outcome is RunState.SUCCEEDED else Finish(outcome, error=_END[outcome], interrupts=True)


# Statements as compiled for SQLite, over all examples: compiling takes longer than running.
_COMPILED: Final[dict[Any, Any]] = {}


class InlineDatabase(SqliteDatabase):
    """The same file without the threads: what happens once happens again, and takes a tenth of the time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._connection = self.writing_engine.connect().execution_options(compiled_cache=_COMPILED)

    async def write(self, operation: Callable[[sa.Connection], T], key: str = "") -> T:
        """Run it now, in a transaction of its own."""
        with self._connection.begin():
            return operation(self._connection)

    async def read(self, operation: Callable[[sa.Connection], T]) -> T:
        """The same: nobody else writes meanwhile."""
        return await self.write(operation)

    async def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        await super().close()


class RunMachine(RuleBasedStateMachine):
    """See the module."""

    template: Path
    server: PostgresBackend | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="carrel-machine-")
        self.path = Path(self.folder.name) / "runs.sqlite3"
        self.clock = Clock()
        if self.server is None:
            shutil.copyfile(self.template, self.path)
        else:
            self.do(self.server.clean())
        self.model = Model(self.clock())
        self.stores = {owner: self.process(owner) for owner in OWNERS}
        self.count = 0
        self.steps = 0

    @initialize(messages=st.lists(st.tuples(_owner, _user, _thread), min_size=4, max_size=6))
    def start(self, messages: list[tuple[str, str, str]]) -> None:
        for store in self.stores.values():
            assert self.do(store.take_over()) == ()
        for owner, user, thread in messages:
            self.admit(owner, user, thread, ThreadStrategy.ENQUEUE, "", "h1", "")

    # Admission and engines

    @rule(
        owner=_owner,
        user=_user,
        thread=_thread,
        strategy=st.sampled_from([ThreadStrategy.ENQUEUE, ThreadStrategy.ENQUEUE, *ThreadStrategy]),
        ref=st.sampled_from(["", "", "", "ref"]),
        content=st.sampled_from(["h1", "h1", "h2"]),
        engine=st.sampled_from(["", "", "", "reserved", "eng-none"]),
    )
    def admit(
        self, owner: str, user: str, thread: str, strategy: ThreadStrategy, ref: str, content: str, engine: str
    ) -> None:
        self.count += 1
        key = (user, f"run-{self.count:03}")
        if engine == "reserved":
            engine = next((name for owner, name in self.model.reserved if owner == user), "")
        limits = self.model.limits
        asked = admission(
            key[1],
            UserKey(user),
            thread,
            strategy=strategy,
            client_ref=ref,
            content_hash=content,
            engine_id=engine,
            max_engines=limits.engines,
            max_unended=limits.unended,
            max_active_total=limits.total_active,
            max_unended_total=limits.total_unended,
            rate_per_minute=float(limits.per_minute),
            rate_burst=limits.burst,
        )
        gone = self.model.live(user, thread)
        expected = self.model.admit(key, thread, strategy, ref=ref, content=content, engine=engine, holder=owner)
        try:
            admitted: Admitted | str = self.do(self.stores[owner].admit(asked))
        except CarrelError as error:
            admitted = error.code
        if isinstance(expected, str):
            assert admitted == expected
            return
        assert isinstance(admitted, Admitted)
        assert admitted.run.identity.run_id == expected.run_id
        assert admitted.existing == (expected.run_id != key[1])
        ended = [] if admitted.existing else [run for run in gone if run.state is F]
        assert [run.identity.run_id for run, _ in admitted.ended] == [run.run_id for run in ended]

    @rule(owner=_owner, user=_user)
    def reserve(self, owner: str, user: str) -> None:
        """An engine that no run has, unless all are in use."""
        self.count += 1
        name = f"eng-{self.count:03}"
        room = self.model.engines(user) < self.model.limits.engines
        try:
            self.do(self.stores[owner].reserve_engine(UserKey(user), name, self.model.limits.engines))
            reserved = True
        except EnginesLimitError:
            reserved = False
        assert reserved == room
        if reserved:
            self.model.reserved[user, name] = self.model.now + 300 * SECOND

    @rule(owner=_owner, user=_user)
    def release(self, owner: str, user: str) -> None:
        name = next((name for holder, name in self.model.reserved if holder == user), "eng-none")
        released = self.do(self.stores[owner].release_engine(UserKey(user), name))
        assert released == (self.model.reserved.pop((user, name), None) is not None)

    @precondition(lambda self: self.has(Q))
    @rule(limit=st.integers(1, 4))
    def promote(self, limit: int) -> None:
        """Every process begins what it may, in turn."""
        for owner, store in self.stores.items():
            steps = self.do(store.promote(limit))
            begun = self.model.promote(owner, limit)
            assert [step.run.identity.run_id for step in steps] == [run.run_id for run in begun]

    @rule(seconds=st.sampled_from([0.001, 0.5, 1, 30, 250, 90_000]))
    def time_passes(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.model.now = self.clock()

    @rule(owner=_owner, number=_pick)
    def care(self, owner: str, number: int) -> None:
        """What is done now and then, by any process."""
        self.sweep(owner)
        self.expired_questions()
        self.decided(owner)
        self.ended_runs_stay_ended(owner, number)

    def sweep(self, owner: str) -> None:
        swept = self.do(self.stores[owner].sweep())
        assert {(engine.user, engine.engine_id) for engine in swept.engines} == self.model.sweep()
        late = {
            (run.user, run.run_id) for run in self.model.runs.values() if run.engine and run.deadline <= self.clock()
        }
        assert {(engine.user, engine.run_id) for engine in swept.overdue} == late

    # A run's way

    def pick(self, number: int, *states: RunState) -> tuple[ModelRun, RunRef] | None:
        """One of the runs in these states, and how its holder addresses it."""
        runs = [run for run in self.model.runs.values() if run.state in states]
        if not runs:
            return None
        run = runs[number % len(runs)]
        return run, RunRef(UserKey(run.user), run.run_id, run.fence)

    def some(self, number: int, *states: RunState) -> tuple[ModelRun, RunRef]:
        found = self.pick(number, *states)
        assert found is not None
        return found

    def has(self, *states: RunState) -> bool:
        return self.pick(0, *states) is not None

    @precondition(lambda self: self.has(R))
    @rule(number=_pick)
    def checkpoint(self, number: int) -> None:
        run, ref = self.some(number, R)
        step = Checkpoint(0, b'{"done":true}', "data")
        after = self.do(self.stores[run.holder].checkpoint(ref, step))
        first = run.stages[0].state is StageState.RUNNING
        assert (after is not None) == first
        if first:
            self.model.checkpoint(run)

    @precondition(lambda self: self.has(R))
    @rule(number=_pick, call=st.integers(1, 3))
    def journal(self, number: int, call: int) -> None:
        run, ref = self.some(number, R)
        assert run.running is not None
        stage = run.stages.index(run.running)
        entry = JournalItem(call, f"c{call}", "tool", "t", "h", b"1")
        assert self.do(self.stores[run.holder].save_journal(ref, stage, [entry]))
        run.running.journal.add(call)

    @precondition(lambda self: self.has(R))
    @rule(number=_pick, lost=st.booleans())
    def begin_attempt(self, number: int, lost: bool) -> None:
        run, ref = self.some(number, R)
        assert run.running is not None
        stage = run.stages.index(run.running)
        step = self.do(self.stores[run.holder].begin_attempt(ref, stage, Again.WORKER_LOST, lost=lost))
        assert step is not None
        self.model.attempt(run, lost=lost)
        assert step.run.fence == run.fence

    @precondition(lambda self: self.has(R))
    @rule(number=_pick, question=st.sampled_from(["inp-1", "inp-2", "inp-3"]), hours=st.sampled_from([0.01, 24.0]))
    def suspend(self, number: int, question: str, hours: float) -> None:
        run, ref = self.some(number, R)
        if question in run.answers:
            return
        asked = replace(QUESTION, input_id=question)
        assert self.do(self.stores[run.holder].suspend(ref, asked, hours * 3600)) is not None
        self.model.suspend(run, question, round(hours * 3600 * SECOND))

    @precondition(lambda self: self.has(W))
    @rule(owner=_owner, number=_pick, value=st.sampled_from([b"1", b"2"]), promotes=_mostly)
    def answer(self, owner: str, number: int, value: bytes, promotes: bool) -> None:
        """An answer to an open question, twice, and another answer to it, through any process."""
        run, _ = self.some(number, W)
        name = run.question
        for each in (value, value, value + b"0"):
            self.provide_input(owner, run, name, each)
        if promotes:
            self.promote(4)

    @precondition(lambda self: self.has(*LIVE))
    @rule(owner=_owner, number=_pick, name=st.sampled_from(["inp-1", "inp-2"]))
    def answer_to_nothing(self, owner: str, number: int, name: str) -> None:
        """An answer that nobody waits for, or just happens to."""
        self.provide_input(owner, self.some(number, *LIVE)[0], name, b"1")

    def provide_input(self, owner: str, run: ModelRun, name: str, value: bytes) -> None:
        try:
            counts = self.do(self.stores[owner].provide_input(UserKey(run.user), run.run_id, name, value)) is not None
        except NotWaitingError:
            counts = False
        assert self.model.answer(run, name, value) == counts

    @precondition(lambda self: self.has(*LIVE))
    @rule(
        owner=_owner,
        number=_pick,
        outcome=st.sampled_from([RunState.SUCCEEDED, *_END]),
        closes=_mostly,
        promotes=_mostly,
        any_state=st.sampled_from([False, False, False, True]),
    )
    def finish(self, owner: str, number: int, outcome: RunState, closes: bool, promotes: bool, any_state: bool) -> None:
        """The end, or a cancel from any process, and often what follows it."""
        run, ref = (None if any_state else self.pick(number, R)) or self.some(number, *LIVE)
        if outcome is RunState.SUCCEEDED and (run.state is not R or run.running is not run.stages[-1]):
            outcome = RunState.FAILED
        assert self.do(self.stores[owner].finish(ref, ending(outcome))) is not None
        self.model.finish(run, outcome)
        if closes:
            assert self.do(self.stores[owner].close_run(ref))
            self.model.close(run)
        if promotes:
            self.promote(4)

    @precondition(lambda self: self.has(R))
    @rule(number=_pick)
    def ends_that_race(self, number: int) -> None:
        """Each process ends the run, believing that it runs."""
        run, ref = self.some(number, R)

        async def race() -> list[Any]:
            return await asyncio.gather(*(store.finish(ref, ending(RunState.FAILED)) for store in self.stores.values()))

        assert sum(result is not None for result in self.do(race())) == 1
        self.model.finish(run, RunState.FAILED)

    @precondition(lambda self: self.has(F))
    @rule(owner=_owner, number=_pick)
    def close(self, owner: str, number: int) -> None:
        run, ref = self.some(number, F)
        assert self.do(self.stores[owner].close_run(ref))
        self.model.close(run)

    @precondition(lambda self: self.has(*RunState))
    @rule(owner=_owner, number=_pick, behind=st.sampled_from([-1, 1, 2]))
    def stale_fence(self, owner: str, number: int, behind: int) -> None:
        """Whoever believes in another fence changes nothing."""
        _, ref = self.some(number, *RunState)
        store, ref = self.stores[owner], replace(ref, fence=ref.fence - behind)
        entry = JournalItem(9, "c9", "tool", "t", "h", b"1")
        assert self.do(store.finish(ref, ending(RunState.CANCELLED))) is None
        assert self.do(store.checkpoint(ref, Checkpoint(0, b"{}", "data"))) is None
        assert self.do(store.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True)) is None
        assert self.do(store.suspend(ref, replace(QUESTION, input_id="stale"), 60)) is None
        assert not self.do(store.save_journal(ref, 0, [entry]))
        assert not self.do(store.close_run(ref))

    def ended_runs_stay_ended(self, owner: str, number: int) -> None:
        found = self.pick(number, F, *set(RunState) - UNENDED)
        if found is None:
            return
        _, ref = found
        store = self.stores[owner]
        assert self.do(store.finish(ref, ending(RunState.CANCELLED))) is None
        assert self.do(store.suspend(ref, QUESTION, 60)) is None
        assert self.do(store.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True)) is None

    # Leases

    @rule(owner=_owner, other=_owner, how=st.sampled_from(["expires", "restarts", "renewed", "kept"]))
    def take_over(self, owner: str, other: str, how: str) -> None:
        """By a process that goes on, or that has died and is there again; of another that has stopped, or has not."""
        if how in ("expires", "renewed"):
            self.do(self.stores[other].release_leases())
        if how == "renewed":
            self.do(self.stores[other].renew_leases())
        if how == "expires":
            self.model.over.add(other)
        elif how == "renewed":
            self.model.over.discard(other)
        if how == "restarts":
            self.do(self.stores[owner].close())
            self.stores[owner] = self.process(owner)
        taken = self.do(self.stores[owner].take_over())
        expected = self.model.take_over(owner, restarted=how == "restarts")
        assert {run.ref for run in taken} == {RunRef(UserKey(run.user), run.run_id, run.fence) for run in expected}

    def expired_questions(self) -> None:
        for owner, store in self.stores.items():
            found = self.do(store.expired_inputs())
            expected = {
                (run.user, run.run_id)
                for run in self.model.runs.values()
                if run.state is W and run.holder == owner and run.expires <= self.clock()
            }
            assert {(run.identity.user, run.identity.run_id) for run in found} == expected

    def decided(self, owner: str) -> None:
        runs = {(UserKey(run.user), run.run_id): run for run in self.model.runs.values()}
        never = (UserKey("alice"), "never")
        found = self.do(self.stores[owner].decided([*runs, never]))
        mine = {key for key, run in runs.items() if run.state in LIVE and run.holder == owner}
        assert found == {never, *runs} - mine

    @rule(owner=_owner, user=_user, thread=_thread)
    def delete_thread(self, owner: str, user: str, thread: str) -> None:
        expected = self.model.delete_thread(user, thread)
        try:
            found = self.do(self.stores[owner].delete_thread(UserKey(user), thread))
            deleted: set[str] | str | None = found if found is None else set(found)
        except RunNotEndedError as error:
            deleted = error.code
        assert deleted == expected

    # What holds after every step

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        # Reading it all costs ten steps' time, and what has gone wrong stays wrong.
        self.steps += 1
        if self.steps % 5 == 0:
            self.compare()

    def compare(self) -> None:
        self.runs_are_as_in_the_model()
        self.engines_are_as_in_the_model()
        self.threads_are_as_in_the_model()

    def runs_are_as_in_the_model(self) -> None:
        store = self.stores["one"]
        found: set[Key] = set()
        for user in USERS:
            page = self.do(store.list_runs(UserKey(user), "", frozenset(), 1000, None))
            for listed in page.items:
                found.add((user, listed.identity.run_id))
                run = self.model.runs[user, listed.identity.run_id]
                seen = (listed.state, listed.outcome, listed.fence, bool(listed.engine_id), listed.started_at)
                assert seen == (run.state, run.outcome, run.fence, run.engine, run.started)
                if run.state in LIVE:
                    assert listed.deadline_at == run.deadline
                assert (listed.waiting_for.input_id if listed.waiting_for else "") == run.question
                stages = [(stage.state, stage.attempt, stage.lost) for stage in listed.stages]
                assert stages == [(stage.state, stage.attempt, stage.lost) for stage in run.stages]
        assert found == set(self.model.runs)

    def engines_are_as_in_the_model(self) -> None:
        engines = self.do(self.stores["two"].list_engines(None, 1000, None)).items
        held = {(run.user, run.run_id) for run in self.model.runs.values() if run.engine}
        assert {(engine.user, engine.run_id) for engine in engines if engine.run_id} == held
        for user in USERS:
            count = sum(engine.user == user for engine in engines)
            assert count == self.model.engines(user)
            assert count <= self.model.limits.engines

    def threads_are_as_in_the_model(self) -> None:
        store = self.stores["three"]
        for user in USERS:
            threads = self.do(store.list_threads(UserKey(user), 100, None)).items
            assert {(user, thread.thread_id) for thread in threads} == {t for t in self.model.threads if t[0] == user}
            for thread in threads:
                messages = self.do(store.messages(UserKey(user), thread.thread_id, 1000, None)).items
                assert [(m.role, m.run_id) for m in messages] == self.model.threads[user, thread.thread_id]
                assert thread.message_count == len(messages)
                live = self.model.live(user, thread.thread_id)
                assert thread.unended_run_id == (live[0].run_id if live else "")
                # Only the first of a thread's runs has begun.
                assert not any(run.state in (R, W) for run in live[1:])

    def teardown(self) -> None:
        """Whatever has happened, every run can be brought to its end, and nothing is left of any of them."""
        try:
            if self.model.runs:
                self.compare()
                self.details_are_as_in_the_model()
                self.everything_ends()
        finally:
            for store in self.stores.values():
                self.do(store.close())
            self.loop.close()
            self.folder.cleanup()

    def details_are_as_in_the_model(self) -> None:
        store = self.stores["one"]
        for run in self.model.runs.values():
            user = UserKey(run.user)
            events = self.do(store.outbox(user, run.run_id))
            assert [event.event_type for event in events] == run.events
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            answers = [self.do(store.answers(user, run.run_id, stage)) for stage in (0, 1)]
            assert {answer.input_id: answer.value for some in answers for answer in some} == run.answers
            for index, stage in enumerate(run.stages):
                calls = self.do(store.journal(user, run.run_id, index))
                assert [call.number for call in calls] == sorted(stage.journal)

    def everything_ends(self) -> None:
        store = self.stores["two"]
        for _ in range(len(self.model.runs) + 1):
            found = self.pick(0, *LIVE)
            if found is not None:
                run, ref = found
                assert self.do(store.finish(ref, ending(RunState.CANCELLED))) is not None
                self.model.finish(run, RunState.CANCELLED)
        while (found := self.pick(0, F)) is not None:
            assert self.do(store.close_run(found[1]))
            self.model.close(found[0])
        for owner in OWNERS:
            assert self.do(self.stores[owner].promote(100)) == ()
            assert self.do(self.stores[owner].take_over()) == ()
        for user, thread in list(self.model.threads):
            deleted = self.do(store.delete_thread(UserKey(user), thread))
            assert deleted is not None
            assert set(deleted) == self.model.delete_thread(user, thread)
        self.runs_are_as_in_the_model()
        self.engines_are_as_in_the_model()

    def process(self, owner: str) -> SqlRunStore:
        if self.server is not None:
            return self.do(self.server.process(owner, clock=self.clock))
        return SqlRunStore(InlineDatabase(self.path), owner=owner, clock=self.clock)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)


def search(machine: type[RunMachine], share: int) -> None:
    # Some ten seconds in the ordinary profile; with `--hypothesis-profile` of more examples it searches longer. What it
    # finds is not made smaller: that takes minutes, and the steps of a failure are few enough to follow.
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, settings().max_examples // share),
            stateful_step_count=60,
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.timeout(300)
@pytest.mark.timeout(180)
def test_the_store_does_what_the_model_does(tmp_path: Path) -> None:
    template = tmp_path / "template.sqlite3"
    migrate_sqlite(template)
    search(type("Machine", (RunMachine,), {"template": template}), 5)


@pytest.mark.container
@pytest.mark.timeout(180)
def test_the_store_on_postgresql_does_what_the_model_does(postgres: PostgresServer, run_tables: str) -> None:
    server = PostgresBackend(postgres, run_tables, Clock())
    search(type("PostgresMachine", (RunMachine,), {"server": server}), 20)
