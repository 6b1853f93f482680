"""The engine factory: admits runs, makes an engine for each, ends what has to end, and takes over what was left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from carrel.errors import (
    CancelledRunError,
    CarrelError,
    DrainingError,
    EngineTimeoutError,
    UnknownRunError,
)
from carrel.ids import new_id
from servicekit.logs import get_logger
from services.execution.domain.admission import content_hash, parse_params
from services.execution.domain.contract import engine_contract
from services.execution.domain.driver import RunDriver
from services.execution.domain.engine import RunSummary, UserExecutionEngine, UserRuns
from services.execution.domain.errors import RunInterruptedError
from services.execution.domain.metrics import MetricsSnapshot
from services.execution.domain.planning import default_agent, order_pipeline
from services.execution.domain.relay import OutboxRelay
from services.execution.domain.requests import PipelineRequest
from services.execution.domain.services import RunServices
from services.execution.domain.states import ENDABLE
from services.execution.models import (
    AuditEntry,
    AuditOutcome,
    EngineRecord,
    RunIdentity,
    RunRecord,
    RunRef,
    RunState,
    UserKey,
)
from services.execution.models_steps import Admission, Admitted

__all__ = ["ExecutionEngineFactory"]

_log = get_logger("execution.factory")
_MAX_USERS: Final = 10_000


class ExecutionEngineFactory:
    """``ExecutionEngineFactory`` of the design documents: one isolated engine per run, bounded per user."""

    def __init__(self, services: RunServices) -> None:
        self._services = services
        self._contract = engine_contract()
        self._engines: dict[tuple[UserKey, str], UserExecutionEngine] = {}
        self._users: OrderedDict[UserKey, UserRuns] = OrderedDict()
        self._timers: dict[tuple[UserKey, str], asyncio.TimerHandle] = {}
        self._draining = False
        self._hurry = False
        self._quiet = asyncio.Event()

    # Engines

    async def create_for_user(self, user: UserKey, limits: Mapping[str, int]) -> UserExecutionEngine:
        """Reserve an engine ahead of a run; ``limits`` are the user's own, from the ticket.

        Raises:
            EnginesLimitError: All of the user's engines are in use.
        """
        self._check_open()
        allowed = self._services.options.limits.claimed(limits)
        with self._counting_refusals():
            record = await self._services.store.reserve_engine(user, new_id("eng"), allowed.max_engines)
        return self._add_engine(record)

    @asynccontextmanager
    async def user_execution_scope(
        self, user: UserKey, limits: Mapping[str, int]
    ) -> AsyncIterator[UserExecutionEngine]:
        """An engine for the length of a block; what still runs on it at the end is ended."""
        engine = await self.create_for_user(user, limits)
        try:
            yield engine
        finally:
            await engine.cleanup()

    async def cleanup_engine(self, user: UserKey, engine_id: str) -> bool:
        """End an engine and what runs on it; False when there is no such active engine."""
        record = await self._services.store.get_engine(user, engine_id)
        if record is None:
            return False
        if record.run_id:
            await self.cancel(user, record.run_id, "its engine was cleaned up")
        elif not await self._services.store.release_engine(user, engine_id):
            return False
        self.drop_engine(user, engine_id)
        return True

    def drop_engine(self, user: UserKey, engine_id: str) -> None:
        """Forget an engine that the store has let go of."""
        engine = self._engines.pop((user, engine_id), None)
        if engine is not None:
            engine.retire()
            self._services.metrics.engines_cleaned += 1

    # Runs

    async def execute(self, request: PipelineRequest) -> Admitted:
        """Admit a run and begin it; returns once it is durable.

        Raises:
            UnknownAgentError, PlanError: The pipeline can't be run.
            ThreadBusyError, EnginesLimitError, UnendedRunsError, UnknownEngineError: No room for it.
            IdempotencyConflictError, AlreadyExistsError: Its names are taken by another request.
            StoreUnavailableError: It can't be recorded; nothing has begun.
        """
        self._check_open()
        self._contract.check_input(request)
        took = partial(self._services.metrics.layer, "execution_engine")
        with self._counting_refusals(), self._contract.timed("execute", took):
            admission = await self._plan(request)
            # In a task of its own: a caller that goes away in this moment must not leave a run that nobody drives.
            task = self._services.start(self._admit(admission), "admission")
            admitted = await asyncio.shield(task)
            if isinstance(admitted, CarrelError):
                raise admitted
        self._contract.check_output(admitted)
        return admitted

    async def cancel(self, user: UserKey, run_id: str, reason: str) -> RunRecord:
        """End a run; the run as it then is. One that has ended stays as it ended.

        Raises:
            UnknownRunError: The user has no such run.
        """
        error = CancelledRunError(f"the run was cancelled{': ' + reason if reason else ''}")
        ended = await self._end(user, run_id, RunState.CANCELLED, error)
        if ended is not None:
            await self._services.store.save_audit([self._cancelled(ended)])
        return await self._get(user, run_id)

    async def time_out(self, user: UserKey, run_id: str) -> None:
        """End a run whose engine has used up its time and whose timer is gone with another process."""
        with contextlib.suppress(UnknownRunError):
            await self._end(user, run_id, RunState.TIMED_OUT, _timeout())

    async def delete_thread(self, user: UserKey, thread_id: str) -> bool:
        """Delete a thread with its messages, runs and artifacts; False when the user has none of that id.

        Raises:
            RunNotEndedError: A run of it has not ended.
        """
        runs = await self._services.store.delete_thread(user, thread_id)
        if runs is None:
            return False
        for run_id in runs:
            await self._services.folder.remove_run(user, run_id)
        return True

    def drives(self, ref: RunRef) -> bool:
        """Whether the run's outcome is open and this process is at it."""
        runs = self._users.get(ref.user)
        return runs is not None and ref.run_id in runs.active

    def resume(self, run: RunRecord) -> None:
        """Take up a run whose process is gone: relay its end, or end it, since it can't go on (yet)."""
        if run.state is RunState.FINISHING:
            _ = self._services.start(OutboxRelay(run, self._services).close(), "outbox relay")
            return
        error = RunInterruptedError("the service restarted while the run was under way")
        _ = self._services.start(self._driver(run).end(RunState.FAILED, error), "interrupted run")

    def get_factory_metrics(self) -> MetricsSnapshot:
        """``FactoryMetrics`` at this moment."""
        users = {user for user, _ in self._engines}
        return self._services.metrics.snapshot(len(self._engines), len(users))

    async def shutdown(self, grace_s: float) -> None:
        """Admit nothing more and give runs so many seconds to end. Watchers are let go at once."""
        self._draining = True
        self._services.changes.wake_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._timers and not self._hurry:
                    self._quiet.clear()
                    await self._quiet.wait()

    def hasten(self) -> None:
        """End a shutdown's patience."""
        self._hurry = True
        self._quiet.set()

    def stop(self) -> None:
        """Set nothing more going; the owner of the tasks ends what runs."""
        self._draining = True
        for timer in self._timers.values():
            timer.cancel()

    # Inner parts

    async def _plan(self, request: PipelineRequest) -> Admission:
        options = self._services.options
        params = parse_params(request.params)
        catalogue = await self._services.catalogue.covering(request.pipeline or (options.default_agent,))
        pipeline = request.pipeline or (default_agent(options.default_agent, catalogue),)
        stages = order_pipeline(pipeline, catalogue)
        limits = options.limits.claimed(request.identity.limits)
        return Admission(
            identity=request.identity,
            message=request.message,
            params=request.params or b"{}",
            stages=stages,
            agent_name=pipeline[0],
            content_hash=content_hash(request.message, params, request.pipeline, request.strategy),
            client_ref=request.client_ref,
            strategy=request.strategy,
            engine_id=request.engine_id,
            new_engine_id=new_id("eng"),
            max_engines=limits.max_engines,
            max_unended=limits.max_unended,
            agent_instance=self._services.host.address,
        )

    async def _admit(self, admission: Admission) -> Admitted | CarrelError:
        try:
            admitted = await self._services.store.admit(admission)
        except CarrelError as error:  # the caller's; for the owner of tasks a refusal is no failure
            return error
        if not admitted.existing:
            await self._begin(admitted)
        return admitted

    async def _begin(self, admitted: Admitted) -> None:
        run = admitted.run
        user, run_id = run.identity.user, run.identity.run_id
        self._services.metrics.run_admitted()
        relay = OutboxRelay(run, self._services)
        await relay.send(admitted.events)
        runs = self._runs(user)
        engine = self._engines.get((user, run.engine_id)) or self._add_engine(
            EngineRecord(run.engine_id, user, run_id, run.created_at, run.deadline_at)
        )
        engine.begin(run)
        driver = RunDriver(run, relay, self._services, self._decided, has_history=admitted.thread_existed)
        runs.active[run_id] = driver
        runs.total += 1
        left_s = max(0.0, (run.deadline_at - self._services.clock()) / 1_000_000)
        self._timers[user, run_id] = asyncio.get_running_loop().call_later(left_s, self._timed_out, driver)
        _ = self._services.start(driver.drive(), f"run {run_id}")

    async def _end(self, user: UserKey, run_id: str, outcome: RunState, error: CarrelError) -> RunIdentity | None:
        """Decide a run's outcome; whose run it was, or None when it was decided already."""
        runs = self._users.get(user)
        driver = runs.active.get(run_id) if runs is not None else None
        if driver is None:
            run = await self._get(user, run_id)
            if run.state not in ENDABLE:
                return None
            driver = self._driver(run)
        return driver.run.identity if await driver.end(outcome, error) else None

    def _driver(self, run: RunRecord) -> RunDriver:
        return RunDriver(run, OutboxRelay(run, self._services), self._services, self._decided, has_history=False)

    def _timed_out(self, driver: RunDriver) -> None:
        _ = self._services.start(driver.end(RunState.TIMED_OUT, _timeout()), "engine timeout")

    def _decided(self, run: RunRecord, outcome: RunState) -> None:
        user, run_id = run.identity.user, run.identity.run_id
        timer = self._timers.pop((user, run_id), None)
        if timer is not None:
            timer.cancel()
        self.drop_engine(user, run.engine_id)
        runs = self._runs(user)
        runs.active.pop(run_id, None)
        seconds = (self._services.clock() - run.created_at) / 1_000_000
        runs.history.append(RunSummary(run_id, run.agent_name, outcome, seconds))
        self._quiet.set()

    def _add_engine(self, record: EngineRecord) -> UserExecutionEngine:
        engine = UserExecutionEngine(self, self._runs(record.user), record)
        self._engines[record.user, record.engine_id] = engine
        self._services.metrics.engine_made(len(self._engines))
        return engine

    def _runs(self, user: UserKey) -> UserRuns:
        runs = self._users.get(user)
        if runs is None:
            runs = self._users[user] = UserRuns()
            self._forget_idle_user()
        else:
            self._users.move_to_end(user)
        return runs

    def _forget_idle_user(self) -> None:
        if len(self._users) <= _MAX_USERS:
            return
        idle = next((user for user, runs in self._users.items() if not runs.active), None)
        if idle is not None:
            del self._users[idle]

    async def _get(self, user: UserKey, run_id: str) -> RunRecord:
        run = await self._services.store.get_run(user, run_id)
        if run is None:
            raise UnknownRunError("no such run", run_id=run_id)
        return run

    def _cancelled(self, identity: RunIdentity) -> AuditEntry:
        return AuditEntry(
            record_id=new_id("aud"),
            user=identity.user,
            thread_id=identity.thread_id,
            run_id=identity.run_id,
            request_id=identity.request_id,
            action="run.cancel",
            target=identity.run_id,
            outcome=AuditOutcome.SUCCEEDED,
            started_at=self._services.clock(),
        )

    def _check_open(self) -> None:
        if self._draining:
            raise DrainingError("execution is shutting down", retry_after_s=1.0)

    @contextlib.contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except CarrelError as error:
            self._services.metrics.refusals[error.code] += 1
            raise


def _timeout() -> EngineTimeoutError:
    return EngineTimeoutError(
        "the run used up its engine's whole time", advice="ask for less at once, or raise engine_timeout_seconds"
    )
