"""``StageAttempt``: one attempt of one stage, from its first event to a result that may leave the service.

The agent's turn, its fallback's if it fails, the stage's last event, and the wait for the log: a result goes up only
when the log has every event of the stage. Where messages come from and go to is ``service``'s.

Events of an attempt: ``agent_started`` … ``agent_completed`` | ``agent_error``. When a fallback answers:
``agent_started`` (the agent) … ``agent_error {recovered: true, fallback}``, ``agent_started`` (the fallback) … and its
own last event. After a cancel or a dead producer: nothing more, since execution ends the run itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from carrel.errors import CancelledRunError, CarrelError, InternalError, StoreUnavailableError, WorkerLostError
from carrel.ids import ChildIds
from servicekit.logs import get_logger
from servicekit.telemetry.tracing import NO_TRACING, Tracing, current_span
from services.agent_instance.domain.activity import TimePolicy
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.calls import CallLedger
from services.agent_instance.domain.core import AgentExecutionCore, Instance
from services.agent_instance.domain.dispatcher import UnifiedToolDispatcherFactory
from services.agent_instance.domain.events import EventProducer, StageEvents
from services.agent_instance.domain.fallback import FallbackManager
from services.agent_instance.domain.model_budget import StageBudget
from services.agent_instance.domain.outputs import WorkerOutputs
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.ports import (
    AttemptTools,
    BoundedJournal,
    ModelAccess,
    OwnTools,
    ToolServers,
    Uplink,
)
from services.agent_instance.domain.questions import StageQuestions
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.domain.roles import FALLBACK, StageTools, TurnEnd, TurnRole
from services.agent_instance.domain.turn import AgentTurn
from services.agent_instance.models import BudgetGrant, Caller, StageOutcome, StageStart, StoredArtifact

__all__ = ["MAX_RESULT_BYTES", "StageAttempt", "StageServices", "StageTimes"]

_log: Final = get_logger("agent_instance.stage")

# 64 KiB less what agent_completed and run_completed put around a result, which have that bound themselves.
MAX_RESULT_BYTES: Final = 64 * 1024 - 512


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds: to end after being asked, to die when killed, for the log's word at the end, for it after a cancel."""

    grace_s: float = 0.5
    kill_s: float = 0.5
    log_wait_s: float = 300.0
    cancelled_log_wait_s: float = 1.0


@dataclass(frozen=True, slots=True)
class StageServices:
    """What every attempt of this process uses."""

    core: AgentExecutionCore
    fallbacks: FallbackManager
    periodic: PeriodicUpdateManager
    dispatchers: UnifiedToolDispatcherFactory
    policy: TimePolicy
    times: StageTimes
    models: ModelAccess | None = None
    tool_servers: ToolServers | None = None
    tracing: Tracing = NO_TRACING


class StageAttempt:
    """Runs one attempt. ``run`` once; cancelling it kills the worker and gives up what the log does not have yet.

    Args:
        instance: The claimed instance; released when the attempt ends.
        caller: The verified user and run; replaced by ``refresh``.
        producer: Numbers the stage's events; closed when the attempt ends.
    """

    def __init__(
        self,
        services: StageServices,
        instance: Instance,
        start: StageStart,
        caller: Caller,
        *,
        producer: EventProducer,
        uplink: Uplink,
        desk: ArtifactDesk,
    ) -> None:
        self._services = services
        self._instance = instance
        self._start = start
        self._caller = caller
        self._producer = producer
        self._desk = desk
        self._events = StageEvents(
            producer,
            self._store,
            caller.context,
            stage_index=start.stage_index,
            attempt=start.attempt,
            quiet_until=start.quiet_until_input,
        )
        self._questions = StageQuestions(start.stage_index, start.inputs, self._events.heard)
        self._ledger = CallLedger(start.stage_index, start.journal)
        self._budget = StageBudget(start.budget)
        self._outputs = WorkerOutputs(desk, start.stage_index, start.attempt)
        servers = services.tool_servers
        self._servers: AttemptTools = OwnTools() if servers is None else servers.for_attempt()
        self._tools = StageTools(
            start=start,
            caller=lambda: self._caller,
            uplink=BoundedJournal(uplink, start.journal),
            desk=desk,
            ids=ChildIds(caller.context.request_id),
            core=services.core,
            dispatchers=services.dispatchers,
            periodic=services.periodic,
            policy=services.policy,
            questions=self._questions,
            outputs=self._outputs,
            dead=producer.dead,
            models=services.models,
            servers=self._servers,
            grace_s=services.times.grace_s,
            kill_s=services.times.kill_s,
            tracing=services.tracing,
        )
        self._turn: AgentTurn | None = None
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._agent_s = 0.0

    @property
    def idle_s(self) -> float:
        """Seconds without activity of the agent."""
        return 0.0 if self._turn is None else self._turn.clock.idle_s

    @property
    def events_produced(self) -> int:
        """The number of the last event."""
        return self._producer.emitted

    @property
    def events_acknowledged(self) -> int:
        """The number of the last event that the log has."""
        return self._producer.acknowledged

    def refresh(self, caller: Caller) -> None:
        """Use this caller's ticket and permissions from now on; it has been verified to be of the same run."""
        self._caller = caller
        self._producer.refresh(caller.context)

    def grant(self, grant: BudgetGrant) -> None:
        """What model calls may use from now on."""
        self._budget.renew(grant)

    def cancel(self, reason: str, grace_s: float | None = None) -> None:
        """Ask the agent to end, then kill it."""
        if not self._cancelled.done():
            self._cancelled.set_result(reason)
        if self._turn is not None:
            self._turn.cancel(reason, grace_s)

    async def run(self) -> StageOutcome:
        """The outcome, once the log has everything. Errors of the agent's are in it, they are not raised."""
        try:
            try:
                end, answered = await self._agents()
            finally:
                # Not held through the wait for the log.
                await self._servers.aclose()
            if not end.muted and end.question is None and not self._again(end):
                end = await self._unless_cancelled(self._last_event(end, answered))
            return await self._outcome(end, answered)
        finally:
            await self._producer.aclose()

    def _again(self, end: TurnEnd) -> bool:
        """Whether execution will try again: the worker was lost, the agent did nothing wrong, and it may be tried."""
        return end.lost and isinstance(end.error, WorkerLostError) and not self._start.last_attempt

    async def _agents(self) -> tuple[TurnEnd, AgentEntry]:
        entry = self._instance.entry
        end = await self._one(entry)
        if end.error is None or end.muted or self._again(end):
            return end, entry
        fallback = await self._fallback_for(entry, end)
        if fallback is None:
            return end, entry
        with self._services.fallbacks.under_way():
            self._services.core.counts.fallbacks += 1
            if not self._questions.is_of(FALLBACK, self._events.quiet_until):
                self._events.speak()  # it was not the fallback that asked: this failure is new
            if (
                lost := await self._said(self._events.failed(entry.name, end.error, fallback=fallback.name))
            ) is not None:
                return lost, entry
            self._questions.restart()
            return await self._one(fallback, FALLBACK), fallback

    async def _one(self, entry: AgentEntry, whose: str = "") -> TurnEnd:
        role = TurnRole(
            entry=entry,
            instance=self._instance,
            context=self._caller.context,
            request=self._start.request,
            tools=self._servers.tools(entry),
            limits=self._services.policy.limits(entry, self._start.deadline),
            ledger=self._ledger.under(whose) if whose else self._ledger,
            events=self._events,
            budget=self._budget,
            whose=whose,
            traceparent=current_span().traceparent,
        )
        executor = self._instance.executor
        self._turn = AgentTurn(self._tools, role)
        if self._cancelled.done():
            self._turn.cancel(self._cancelled.result())
        end = await self._turn.run()
        self._agent_s += end.seconds
        counts = self._services.core.counts
        counts.killed += end.killed
        counts.lost += end.lost
        counts.failed += end.error is not None and not end.muted
        await self._outputs.keep(executor, entry.name, hurry=end.muted)
        return end

    async def _fallback_for(self, entry: AgentEntry, end: TurnEnd) -> AgentEntry | None:
        """The fallback with a worker of its own ready, or None."""
        assert end.error is not None
        fallback = self._services.fallbacks.choose(entry, end.error, past_deadline=end.past_deadline)
        if fallback is None:
            return None
        try:
            await self._services.core.prepare_fallback(self._instance, fallback)
        except CarrelError as error:
            _log.warning("fallback cannot answer", agent=entry.name, fallback=fallback.name, code=error.code)
            return None
        return fallback

    async def _last_event(self, end: TurnEnd, answered: AgentEntry) -> TurnEnd:
        if end.error is None and end.result is not None:
            try:
                end = await self._bounded(end, answered)
            except CarrelError as error:
                end = TurnEnd(end.seconds, error=error)
        # Whatever the agent did not come to ask this time: that it has ended is new.
        self._events.speak()
        if end.error is None:
            last = self._events.completed(answered.name, end.result or {}, self._agent_s)
        else:
            _log.warning("stage failed", agent=answered.name, code=end.error.code, run_id=self._caller.run_id)
            last = self._events.failed(answered.name, end.error)
        return await self._said(last) or end

    async def _said(self, saying: Awaitable[None]) -> TurnEnd | None:
        """Wait until it is said; the end that it has when the producer is dead."""
        try:
            await saying
        except CarrelError as error:
            return TurnEnd(0.0, error=error, muted=True)
        return None

    async def _bounded(self, end: TurnEnd, answered: AgentEntry) -> TurnEnd:
        """The same end, its result replaced by a reference when it is too large to travel."""
        encoded = orjson.dumps(end.result)
        if end.plan is not None or len(encoded) <= MAX_RESULT_BYTES:
            return end
        name = f"result-{self._start.stage_index}-{self._start.attempt}-{answered.name}.json"
        stored = await self._store(name, "application/json", encoded)
        return replace(end, result={"artifact": stored.to_dict()})

    async def _outcome(self, end: TurnEnd, answered: AgentEntry) -> StageOutcome:
        times = self._services.times
        began = time.monotonic()
        error = end.error
        try:
            if not end.muted:
                end = await self._unless_cancelled(self._flushed(end))
                error = end.error
            if end.muted:
                await self._producer.flush(times.cancelled_log_wait_s)
        except CarrelError as lost:
            # A result without its events would be a lie; after a cancel, the error says all there is to say.
            if error is None:
                reason = "the log did not acknowledge the stage's events"
                dead = self._producer.dead.done()
                error = lost if dead else StoreUnavailableError(reason, advice="try again when the bridge is back")
        plan, result = end.plan, end.result
        question = end.question if error is None else None
        if error is None and plan is None and result is None and question is None:
            error = InternalError("the stage ended without a result")
        return StageOutcome(
            answered_by=answered.name,
            result=orjson.dumps(result) if error is None and plan is None and question is None else None,
            plan=plan if error is None else None,
            error=error,
            question=question,
            events_through=self._producer.acknowledged,
            agent_time_s=self._agent_s,
            log_wait_s=time.monotonic() - began,
            emitter_s=self._producer.hops[0],
            bridge_s=self._producer.hops[1],
            memory=end.memory if error is None else b"",
        )

    async def _flushed(self, end: TurnEnd) -> TurnEnd:
        await self._producer.flush(self._services.times.log_wait_s)
        return end

    async def _unless_cancelled(self, doing: Coroutine[Any, Any, TurnEnd]) -> TurnEnd:
        """What it gives, or a cancelled end: a log that is away must not hold up a cancel."""
        task = asyncio.create_task(doing, name="end of a stage")
        signals: set[asyncio.Future[Any]] = {task, self._cancelled}
        try:
            await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self._events.mute()
            return TurnEnd(0.0, error=CancelledRunError(f"cancelled: {self._cancelled.result()}"), muted=True)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _store(self, name: str, media_type: str, data: bytes) -> StoredArtifact:
        return await self._desk.put(name, media_type, data)
