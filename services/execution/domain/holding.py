"""The unended runs in this process's care: those that run here, and those that wait for their turn or a person.

Not who may run (``store``), when to look (``queue``), nor what is asked for (``factory``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from carrel.errors import CancelledRunError, CarrelError, EngineTimeoutError, UnknownRunError
from servicekit.telemetry.names import AGENT, FENCE, OUTCOME, QUEUED_S, of_run
from services.execution.domain.bound import BoundRuns
from services.execution.domain.bound_shared import SharedBoundRuns
from services.execution.domain.budgets import Budgets
from services.execution.domain.driver import RunDriver
from services.execution.domain.relay import Relays
from services.execution.domain.roster import Roster
from services.execution.domain.services import RunServices
from services.execution.domain.states import ENDABLE
from services.execution.domain.timing import Part
from services.execution.models import OutboxEvent, RunIdentity, RunRecord, RunRef, RunState, UserKey
from services.execution.models_steps import Again, Finished

__all__ = ["Holdings", "timeout_error"]

_RACES: Final = 20


class Holdings:
    """Drivers, timers and waiting runs; the ``RunOwner`` of every driver.

    ``freed`` is set when something became free here that a waiting run may want, or a run began to wait.
    ``idle`` is set when no run runs here.
    """

    def __init__(self, services: RunServices, roster: Roster) -> None:
        self.freed = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = False
        self.bound: BoundRuns | SharedBoundRuns
        if services.store.shared:
            self.bound = SharedBoundRuns(services, self._lapsed, lambda: self.draining)
        else:
            self.bound = BoundRuns(services.options.keeper_s, self._lapsed, lambda: self.draining)
        self._services = services
        self._roster = roster
        self.relays = Relays(services)
        self.budgets = Budgets(services)
        self._timers: dict[tuple[UserKey, str], asyncio.TimerHandle] = {}
        self._waiting: dict[tuple[UserKey, str], RunRecord] = {}
        self._counts: Counter[RunState] = Counter()
        # Of each thread the attempts that may still have something to say.
        self._parting: dict[tuple[UserKey, str], set[RunDriver]] = {}

    # What there is

    def driver_of(self, user: UserKey, run_id: str) -> RunDriver | None:
        """Who drives the run here."""
        runs = self._roster.known(user)
        return runs.active.get(run_id) if runs is not None else None

    def drives(self, ref: RunRef) -> bool:
        """Whether the run's outcome is open and this process is at it."""
        return self.driver_of(ref.user, ref.run_id) is not None

    def holds(self, user: UserKey, run_id: str) -> bool:
        """Whether the run runs, or waits, in this process's care."""
        return (user, run_id) in self._timers or (user, run_id) in self._waiting

    def waits_for_input(self, user: UserKey, run_id: str) -> bool:
        """Whether the run waits for a person, as far as this process knows."""
        run = self._waiting.get((user, run_id))
        return run is not None and run.state is RunState.WAITING

    def driven(self) -> tuple[tuple[UserKey, str], ...]:
        """The runs that run here."""
        return tuple(self._timers)

    def waiting(self) -> tuple[tuple[UserKey, str], ...]:
        """The runs that wait in this process's care."""
        return tuple(self._waiting)

    @property
    def waits(self) -> bool:
        """Whether any run waits in this process's care."""
        return bool(self._waiting)

    def count(self, state: RunState) -> int:
        """How many wait in this state."""
        return self._counts[state]

    def questions(self) -> Iterator[int]:
        """When the questions lapse that runs wait on."""
        for run in self._waiting.values():
            if run.state is RunState.WAITING and run.waiting_for is not None:
                yield run.waiting_for.expires_at

    # Runs begin, wait and go on

    async def admitted(self, run: RunRecord, events: Sequence[OutboxEvent], *, has_history: bool) -> None:
        """A new run is durable: begin it, or let it wait."""
        relay = self.relays.of(run)
        await relay.send(events)
        if run.bound:
            self.bound.expect(run.identity.user, run.identity.run_id)
        if run.state is RunState.RUNNING:
            self._drive(run, has_history=has_history)
        else:
            self.wait(run)
            self.freed.set()

    def wait(self, run: RunRecord) -> None:
        """A run waits in this process's care; its events so far are brought to the log."""
        self._hold(run)
        _ = self._services.start(self._follow_and_rest(run), "outbox relay")

    def answered(self, run: RunRecord) -> None:
        """A person has answered; the run waits for its turn now, here or elsewhere."""
        if (run.identity.user, run.identity.run_id) in self._waiting:
            self._hold(run)
            self.freed.set()

    def go_on(self, run: RunRecord, again: Again | None = None) -> None:
        """A run that waited, or that a former process drove, runs here from now on."""
        self._unhold(run)
        former = self.driver_of(run.identity.user, run.identity.run_id)
        if former is not None:  # under a fence that is lower now
            former.supersede()
            self._drop(former)
        self._drive(run, again=again)

    def resume(self, run: RunRecord) -> None:
        """Take up a run whose process is gone: drive it on, hold it, or relay its end."""
        self._services.metrics.runs_resumed += 1
        if run.state is RunState.FINISHING:
            _ = self._services.start(self._follow_and_close(run), "outbox relay")
            return
        if run.bound:
            self.bound.expect(run.identity.user, run.identity.run_id)
        if run.state is RunState.RUNNING:
            self.go_on(run, Again.EXECUTION_RESTARTED)
        else:
            self.wait(run)
            self.freed.set()

    def _drive(self, run: RunRecord, *, has_history: bool = True, again: Again | None = None) -> None:
        user, run_id = run.identity.user, run.identity.run_id
        self._roster.begin(run)
        self._services.timing(run).enter(Part.EXECUTION_ENGINE)
        after = [driver.stopped for driver in self._parting.get((user, run.identity.thread_id), ())]
        driver = RunDriver(
            run,
            self._services,
            self,
            has_history=has_history,
            again=again,
            after=after,
        )
        runs = self._roster.runs(user)
        runs.active[run_id] = driver
        runs.total += 1
        left_s = max(0.0, (run.deadline_at - self._services.clock()) / 1_000_000)
        self._timers[user, run_id] = asyncio.get_running_loop().call_later(left_s, self._timed_out, driver)
        self.idle.clear()
        task = self._services.start(self._in_its_trace(driver), f"run {run_id}")
        task.add_done_callback(partial(self._parted, driver))

    async def _in_its_trace(self, driver: RunDriver) -> None:
        run = driver.run
        identity = run.identity
        with self._services.tracing.span("run", parent=identity.traceparent) as span:
            if span.recording:
                queued_s = max(0, (run.started_at or run.created_at) - run.created_at) / 1_000_000
                span.set(of_run(identity.user, identity.run_id))
                span.set({AGENT: run.agent_name, FENCE: run.fence, QUEUED_S: queued_s})
            await driver.drive()
            span.set({OUTCOME: "left" if driver.outcome is None else driver.outcome.value})
            if driver.outcome in {RunState.FAILED, RunState.TIMED_OUT}:
                span.fail(driver.outcome.value)

    # Runs end

    async def end(self, user: UserKey, run_id: str, outcome: RunState, error: CarrelError) -> RunIdentity | None:
        """Decide a run's outcome, whoever holds it; whose run it was, or None when it was decided already.

        Raises:
            UnknownRunError: The user has no such run.
        """
        for _ in range(_RACES):
            driver = self.driver_of(user, run_id)
            if driver is None:
                run = await self._get(user, run_id)
                if run.state not in ENDABLE:
                    return None
                driver = self._stranger(run)
            if await driver.end(outcome, error):
                return driver.run.identity
            # It went on to another attempt, began or ended in this moment: look again.
            await asyncio.sleep(0)
        return None

    async def ended(self, run: RunRecord, finished: Finished) -> None:
        """Another run's admission has ended this one: stop it here, and relay its end from here whoever held it."""
        driver = self.driver_of(run.identity.user, run.identity.run_id) or self._stranger(run)
        await driver.ended(run, finished)

    async def look_after(self, gone: frozenset[tuple[UserKey, str]]) -> None:
        """Runs of this process's have been ended, or taken, elsewhere."""
        for user, run_id in gone:
            driver = self.driver_of(user, run_id)
            if driver is not None:
                await driver.let_go()
                continue
            run = self._waiting.get((user, run_id))
            if run is not None:
                await self._stranger(run).let_go()

    def stop(self) -> None:
        """Set nothing more going."""
        self.draining = True
        self.bound.stop()
        for timer in self._timers.values():
            timer.cancel()

    # ``RunOwner``

    def decided(self, driver: RunDriver, outcome: RunState) -> None:
        """See ``RunOwner``."""
        run = driver.run
        self._drop(driver)
        self._unhold(run)
        self.bound.forget(run.identity.user, run.identity.run_id)
        seconds = (self._services.clock() - run.created_at) / 1_000_000
        self._roster.remember(run, outcome, seconds)
        self.freed.set()

    def suspended(self, driver: RunDriver) -> None:
        """See ``RunOwner``."""
        self._drop(driver)
        self._hold(driver.run)
        self.freed.set()
        self._services.wakeups.freed()

    def released(self, driver: RunDriver) -> None:
        """See ``RunOwner``."""
        run = driver.run
        self._services.timings.forget(run.identity.user, run.identity.run_id)
        held = self._waiting.get((run.identity.user, run.identity.run_id))
        waited = held is not None and held.fence <= run.fence
        if waited:
            self._unhold(run)
        if self._drop(driver) or waited:
            self.bound.forget(run.identity.user, run.identity.run_id)

    # Inner parts

    def _hold(self, run: RunRecord) -> None:
        self._unhold(run)
        self._waiting[run.identity.user, run.identity.run_id] = run
        self._services.timing(run).enter(Part.QUEUE if run.state is RunState.QUEUED else Part.WAITING)
        self._counts[run.state] += 1

    def _unhold(self, run: RunRecord) -> None:
        former = self._waiting.pop((run.identity.user, run.identity.run_id), None)
        if former is not None:
            self._counts[former.state] -= 1

    def _drop(self, driver: RunDriver) -> bool:
        """Forget a driver, unless another drives the run by now."""
        user, run_id = driver.run.identity.user, driver.run.identity.run_id
        runs = self._roster.runs(user)
        if runs.active.get(run_id) is not driver:
            return False
        del runs.active[run_id]
        timer = self._timers.pop((user, run_id), None)
        if timer is not None:
            timer.cancel()
        self._parting.setdefault((user, driver.run.identity.thread_id), set()).add(driver)
        if driver.stopped.is_set():
            self._unpart(driver)
        self._roster.drop_engine(user, driver.engine_id)
        if not self._timers:
            self.idle.set()
        return True

    def _parted(self, driver: RunDriver, _task: asyncio.Task[None]) -> None:
        self._unpart(driver)

    def _unpart(self, driver: RunDriver) -> None:
        key = (driver.run.identity.user, driver.run.identity.thread_id)
        drivers = self._parting.get(key)
        if drivers is not None:
            drivers.discard(driver)
            if not drivers:
                del self._parting[key]

    def _stranger(self, run: RunRecord) -> RunDriver:
        """For a run that does not run here: it ends it and nothing else."""
        return RunDriver(run, self._services, self)

    def _timed_out(self, driver: RunDriver) -> None:
        identity = driver.run.identity
        ending = self.end(identity.user, identity.run_id, RunState.TIMED_OUT, timeout_error())
        _ = self._services.start(ending, "engine timeout")

    def _lapsed(self, user: UserKey, run_id: str, reason: str) -> None:
        error = CancelledRunError(f"the run was cancelled: {reason}", advice="ask again, and stay connected")
        _ = self._services.start(self.end(user, run_id, RunState.CANCELLED, error), "run without its caller")

    async def _follow_and_rest(self, run: RunRecord) -> None:
        relay = self.relays.of(run)
        await relay.follow(run)
        await relay.rest()

    async def _follow_and_close(self, run: RunRecord) -> None:
        relay = self.relays.of(run)
        await relay.follow(run)
        await relay.close()

    async def _get(self, user: UserKey, run_id: str) -> RunRecord:
        run = await self._services.store.get_run(user, run_id)
        if run is None:
            raise UnknownRunError("no such run", run_id=run_id)
        return run


def timeout_error() -> EngineTimeoutError:
    """What ends a run whose engine has used up its time."""
    return EngineTimeoutError(
        "the run used up its engine's whole time", advice="ask for less at once, or raise engine_timeout_seconds"
    )
