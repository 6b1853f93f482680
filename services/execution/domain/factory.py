"""The engine factory: admits runs, makes an engine for each, ends what has to end, and takes over what was left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from carrel.errors import CancelledRunError, CarrelError, DrainingError, UnknownRunError
from carrel.ids import new_id
from servicekit.telemetry.names import of_run
from services.execution.domain.admission import content_hash, parse_params
from services.execution.domain.contract import engine_contract
from services.execution.domain.engine import UserExecutionEngine
from services.execution.domain.holding import Holdings, timeout_error
from services.execution.domain.metrics import MetricsSnapshot
from services.execution.domain.planning import default_agent, order_pipeline
from services.execution.domain.requests import PipelineRequest
from services.execution.domain.roster import Roster
from services.execution.domain.services import RunServices
from services.execution.domain.timing import RunTimings
from services.execution.domain.waiting import provide_input
from services.execution.models import (
    AuditEntry,
    AuditOutcome,
    RunIdentity,
    RunRecord,
    RunRef,
    RunState,
    ThreadStrategy,
    UserKey,
)
from services.execution.models_steps import Admission, Admitted

__all__ = ["ExecutionEngineFactory"]


class ExecutionEngineFactory:
    """``ExecutionEngineFactory`` of the design documents: one isolated engine per run, bounded per user."""

    def __init__(self, services: RunServices) -> None:
        self._services = services
        self.contract = engine_contract()
        self._roster = Roster(self, services.metrics)
        self.holdings = Holdings(services, self._roster)
        self._hurry = asyncio.Event()

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
        return self._roster.add_engine(record)

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
        self._services.wakeups.freed()
        return True

    def drop_engine(self, user: UserKey, engine_id: str) -> None:
        """Forget an engine that the store has let go of."""
        self._roster.drop_engine(user, engine_id)

    # Runs

    async def execute(self, request: PipelineRequest) -> Admitted:
        """Admit a run and begin it; returns once it is durable.

        Raises:
            UnknownAgentError, PlanError: The pipeline can't be run.
            ThreadBusyError, EnginesLimitError, UnendedRunsError, UnknownEngineError: No room for it.
            ActiveRunsError, RateLimitError: The deployment is full, or the user is too quick.
            IdempotencyConflictError, AlreadyExistsError: Its names are taken by another request.
            StoreUnavailableError: It can't be recorded; nothing has begun.
        """
        self._check_open()
        self.contract.check_input(request)
        began = time.perf_counter()
        took = partial(self._services.metrics.layer, "execution_engine")
        with self._counting_refusals(), self.contract.timed("execute", took):
            admission = await self._plan(request)
            span = self._services.tracing.span("admission")
            # In a task of its own: a caller that goes away in this moment must not leave a run that nobody drives.
            task = self._services.start(self._admit(admission, began), "admission")
            with span:
                if span.recording:
                    span.set(of_run(request.identity.user, request.identity.run_id))
                admitted = await asyncio.shield(task)
                if isinstance(admitted, CarrelError):
                    raise admitted
        self.contract.check_output(admitted)
        return admitted

    async def cancel(self, user: UserKey, run_id: str, reason: str) -> RunRecord:
        """End a run; the run as it then is. One that has ended stays as it ended.

        Raises:
            UnknownRunError: The user has no such run.
        """
        error = CancelledRunError(f"the run was cancelled{': ' + reason if reason else ''}")
        ended = await self.holdings.end(user, run_id, RunState.CANCELLED, error)
        if ended is not None:
            await self._services.store.save_audit([self._audit(ended, "run.cancel", ended.run_id)])
        run = await self._services.store.get_run(user, run_id)
        if run is None:
            raise UnknownRunError("no such run", run_id=run_id)
        return run

    async def provide_input(self, user: UserKey, run_id: str, input_id: str, value_json: bytes) -> RunRecord:
        """Answer a run's question; see ``waiting.provide_input``."""
        return await provide_input(self._services, self.holdings, user, run_id, input_id, value_json)

    async def time_out(self, user: UserKey, run_id: str) -> None:
        """End a run whose engine has used up its time and whose timer is gone with another process."""
        with contextlib.suppress(UnknownRunError):
            await self.holdings.end(user, run_id, RunState.TIMED_OUT, timeout_error())

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

    @property
    def timings(self) -> RunTimings:
        """Where the latest runs' time went."""
        return self._services.timings

    @property
    def engines(self) -> int:
        """Engines that are active here."""
        return self._roster.engines

    @property
    def users(self) -> int:
        """Users with an active engine here."""
        return self._roster.users

    def drives(self, ref: RunRef) -> bool:
        """Whether the run's outcome is open and this process is at it."""
        return self.holdings.drives(ref)

    def resume(self, run: RunRecord) -> None:
        """Take up a run whose process is gone: go on from its last checkpoint, hold it, or relay its end."""
        self.holdings.resume(run)

    def get_factory_metrics(self) -> MetricsSnapshot:
        """``FactoryMetrics`` at this moment."""
        metrics, holdings = self._services.metrics, self.holdings
        metrics.runs_queued, metrics.runs_waiting = holdings.count(RunState.QUEUED), holdings.count(RunState.WAITING)
        return metrics.snapshot(self._roster.engines, self._roster.users)

    async def shutdown(self, grace_s: float) -> None:
        """Admit nothing more and give runs so many seconds to end. Watchers are let go at once."""
        self.holdings.draining = True
        self._services.changes.wake_all()
        waits = [asyncio.ensure_future(event.wait()) for event in (self.holdings.idle, self._hurry)]
        try:
            await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def hasten(self) -> None:
        """End a shutdown's patience."""
        self._hurry.set()

    def stop(self) -> None:
        """Set nothing more going; the owner of the tasks ends what runs."""
        self.holdings.stop()

    # Inner parts

    async def _plan(self, request: PipelineRequest) -> Admission:
        options = self._services.options
        params = parse_params(request.params)
        catalogue = await self._services.catalogue.covering(request.pipeline or (options.default_agent,))
        pipeline = request.pipeline or (default_agent(options.default_agent, catalogue),)
        stages = order_pipeline(pipeline, catalogue)
        limits = options.limits.claimed(request.identity.limits)
        rates = options.rates.claimed(request.identity.limits)
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
            bound=request.bound,
            rate_per_minute=rates.per_minute,
            rate_burst=rates.burst,
            max_active_total=options.max_active_total,
            max_unended_total=options.max_unended_total,
        )

    async def _admit(self, admission: Admission, began: float) -> Admitted | CarrelError:
        try:
            admitted = await self._services.store.admit(admission)
        except CarrelError as error:  # the caller's; for the owner of tasks a refusal is no failure
            return error
        for run, finished in admitted.ended:
            await self.holdings.ended(run, finished)
        if not admitted.existing:
            self._services.metrics.run_admitted()
            identity = admitted.run.identity
            self._services.timings.admitted(identity.user, identity.run_id, time.perf_counter() - began)
            await self.holdings.admitted(admitted.run, admitted.events, has_history=admitted.thread_existed)
        if admitted.ended:
            await self._tell_ended(admission.strategy, admitted)
        return admitted

    async def _tell_ended(self, strategy: ThreadStrategy, admitted: Admitted) -> None:
        """Leave a record of each run that another's admission has ended; the store being away takes nothing back."""
        ended = [
            self._audit(run.identity, f"run.{strategy.value}", admitted.run.identity.run_id)
            for run, _ in admitted.ended
        ]
        with contextlib.suppress(CarrelError):
            await self._services.store.save_audit(ended)

    def _audit(self, identity: RunIdentity, action: str, target: str) -> AuditEntry:
        return AuditEntry(
            record_id=new_id("aud"),
            user=identity.user,
            thread_id=identity.thread_id,
            run_id=identity.run_id,
            request_id=identity.request_id,
            action=action,
            target=target,
            outcome=AuditOutcome.SUCCEEDED,
            started_at=self._services.clock(),
        )

    def _check_open(self) -> None:
        if self.holdings.draining:
            raise DrainingError("execution is shutting down", retry_after_s=1.0)

    @contextlib.contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except CarrelError as error:
            self._services.metrics.refusals[error.code] += 1
            raise
