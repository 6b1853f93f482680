"""A state machine over engines, runs, threads, strategies, leases and cancels: the run store against a plain model.

Three processes share a SQLite file; each step is taken in the store and in `run_model`, and everything that can be read
is compared after it. At the end of each example every run is brought to its end.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, settings
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
from services.execution.store_sql_open import migrate_sqlite
from tests.contract.run_model import LIVE, SECOND, UNENDED, F, Key, Model, ModelRun, R, W
from tests.contract.run_support import QUESTION, Clock, admission, another_process, success

T = TypeVar("T")

OWNERS: Final = ("one", "two", "three")
USERS: Final = ("alice", "bob")
_owner = st.sampled_from(OWNERS)
_user = st.sampled_from(USERS)
_thread = st.sampled_from(["t1", "t2"])
_pick = st.integers(0, 1000)
_END = {
    RunState.CANCELLED: {"code": "CANCELLED_RUN", "message": "cancelled", "status": "CANCELLED"},
    RunState.FAILED: {"code": "AGENT_FAILED", "message": "failed", "status": "INTERNAL"},
    RunState.TIMED_OUT: {"code": "ENGINE_TIMEOUT", "message": "late", "status": "DEADLINE_EXCEEDED"},
}


def ending(outcome: RunState) -> Finish:
    """How a run ends so."""
    return success() if outcome is RunState.SUCCEEDED else Finish(outcome, error=_END[outcome], interrupts=True)


class RunMachine(RuleBasedStateMachine):
    """See the module."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="carrel-machine-")
        self.path = Path(self.folder.name) / "runs.sqlite3"
        shutil.copyfile(self.template, self.path)
        self.clock = Clock()
        self.model = Model(self.clock())
        self.stores = {owner: another_process(self.path, self.clock, owner) for owner in OWNERS}
        self.count = 0

    @initialize()
    def start(self) -> None:
        for store in self.stores.values():
            assert self.do(store.take_over()) == ()

    # Admission and engines

    @rule(
        owner=_owner,
        user=_user,
        thread=_thread,
        strategy=st.sampled_from(ThreadStrategy),
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

    @rule(owner=_owner, limit=st.integers(1, 4))
    def promote(self, owner: str, limit: int) -> None:
        steps = self.do(self.stores[owner].promote(limit))
        begun = self.model.promote(owner, limit)
        assert [step.run.identity.run_id for step in steps] == [run.run_id for run in begun]

    @rule(seconds=st.sampled_from([0.001, 0.5, 1, 30, 250, 90_000]))
    def time_passes(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.model.now = self.clock()

    @rule(owner=_owner)
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

    @precondition(lambda self: self.has(W, R))
    @rule(owner=_owner, number=_pick, question=st.sampled_from(["", "", "inp-1"]), value=st.sampled_from([b"1", b"2"]))
    def provide_input(self, owner: str, number: int, question: str, value: bytes) -> None:
        """An answer, to the open question or to any, through any process."""
        run, ref = self.pick(number, W) or self.some(number, R)
        name = question or run.question or "inp-2"
        try:
            counts = self.do(self.stores[owner].provide_input(ref.user, ref.run_id, name, value)) is not None
        except NotWaitingError:
            counts = False
        assert self.model.answer(run, name, value) == counts

    @precondition(lambda self: self.has(*LIVE))
    @rule(owner=_owner, number=_pick, outcome=st.sampled_from([RunState.SUCCEEDED, *_END]))
    def finish(self, owner: str, number: int, outcome: RunState) -> None:
        """The end, or a cancel from any process."""
        run, ref = self.some(number, *LIVE)
        if outcome is RunState.SUCCEEDED and (run.state is not R or run.running is not run.stages[-1]):
            outcome = RunState.FAILED
        assert self.do(self.stores[owner].finish(ref, ending(outcome))) is not None
        self.model.finish(run, outcome)

    @precondition(lambda self: self.has(R))
    @rule(number=_pick)
    def ends_that_race(self, number: int) -> None:
        """Each process ends the run at the same moment."""
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

    @precondition(lambda self: self.has(F, *set(RunState) - UNENDED))
    @rule(owner=_owner, number=_pick)
    def ended_runs_stay_ended(self, owner: str, number: int) -> None:
        _, ref = self.some(number, F, *set(RunState) - UNENDED)
        store = self.stores[owner]
        assert self.do(store.finish(ref, ending(RunState.CANCELLED))) is None
        assert self.do(store.suspend(ref, QUESTION, 60)) is None
        assert self.do(store.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True)) is None
        assert self.do(store.decided([(ref.user, ref.run_id)])) == {(ref.user, ref.run_id)}

    # Leases

    @rule(owner=_owner)
    def lease_expires(self, owner: str) -> None:
        self.do(self.stores[owner].release_leases())
        for run in self.model.runs.values():
            run.lease_over |= run.holder == owner and run.state in UNENDED

    @rule(owner=_owner)
    def renew(self, owner: str) -> None:
        self.do(self.stores[owner].renew_leases())
        for run in self.model.runs.values():
            if run.holder == owner and run.state in UNENDED:
                run.lease_over = False

    @rule(owner=_owner, restarts=st.booleans())
    def take_over(self, owner: str, restarts: bool) -> None:
        """By a process that goes on, or that has died and is there again."""
        if restarts:
            self.do(self.stores[owner].close())
            self.stores[owner] = another_process(self.path, self.clock, owner)
        taken = self.do(self.stores[owner].take_over())
        expected = self.model.take_over(owner, restarted=restarts)
        assert {run.ref for run in taken} == {RunRef(UserKey(run.user), run.run_id, run.fence) for run in expected}

    @rule(owner=_owner)
    def expired_questions(self, owner: str) -> None:
        found = self.do(self.stores[owner].expired_inputs())
        expected = {
            (run.user, run.run_id)
            for run in self.model.runs.values()
            if run.state is W and run.holder == owner and run.expires <= self.clock()
        }
        assert {(run.identity.user, run.identity.run_id) for run in found} == expected

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

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)


def test_the_store_does_what_the_model_does(tmp_path: Path) -> None:
    template = tmp_path / "template.sqlite3"
    migrate_sqlite(template)
    machine = type("Machine", (RunMachine,), {"template": template})
    # About ten seconds in the ordinary profile; `--hypothesis-profile` with more examples searches longer.
    examples = max(1, settings().max_examples // 5)
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]),
    )
