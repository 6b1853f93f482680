"""Drives one run over its stages to its end. Everything that must survive is in the store before it is acted upon."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from carrel.errors import (
    CarrelError,
    EngineTimeoutError,
    InternalError,
    InvalidResultError,
    NotImplementedYetError,
    PlanError,
    RunEndedError,
    WorkersBusyError,
)
from servicekit.logs import bind, get_logger, hash_user
from services.execution.domain.errors import AgentInstanceLostError
from services.execution.domain.outcome import fits, reply_text
from services.execution.domain.planning import MAX_STAGES, order_plan
from services.execution.domain.ports import InputRequired, StageFailure, StagePlan, StageResult, StageStart
from services.execution.domain.relay import OutboxRelay
from services.execution.domain.retry import insist
from services.execution.domain.services import RunServices
from services.execution.domain.stage import StageSession
from services.execution.domain.uploads import store_artifact
from services.execution.models import MessageRecord, RunRecord, RunState, StageRecord, StageState
from services.execution.models_steps import Checkpoint, Finish

__all__ = ["RunDriver"]

_T = TypeVar("_T")
_log = get_logger("execution.driver")


class RunDriver:
    """One run.

    Args:
        run: The run as admitted.
        relay: Its outbox.
        services: What every run shares.
        on_decided: Called once, when the outcome is decided and the engine is free.
        has_history: Whether the thread had messages before.
    """

    def __init__(
        self,
        run: RunRecord,
        relay: OutboxRelay,
        services: RunServices,
        on_decided: Callable[[RunRecord, RunState], None],
        *,
        has_history: bool,
    ) -> None:
        self.run = run
        self._relay = relay
        self._services = services
        self._on_decided = on_decided
        self._has_history = has_history
        self._session: StageSession | None = None
        self._decided = False

    async def drive(self) -> None:
        """Run stage after stage. Never raises but for cancellation: what goes wrong is the run's outcome."""
        bind(run_id=self.run.identity.run_id, user=hash_user(self.run.identity.user))
        try:
            await self._relay.begun()
            await self._stages()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that it waited for was cancelled, and not this run.
            _log.error("run failed by a stray cancellation")
            await self._finish(Finish(RunState.FAILED, error=_fault().to_dict(), interrupts=True))
        except CarrelError as error:
            if isinstance(error, AgentInstanceLostError):
                self._services.catalogue.invalidate()
            await self._finish(Finish(RunState.FAILED, error=error.to_dict(), interrupts=True))
        except Exception as error:  # noqa: BLE001 -- a fault of ours must end this run, and no other
            _log.error("run failed by a fault", error=error)
            await self._finish(Finish(RunState.FAILED, error=_fault().to_dict(), interrupts=True))

    async def end(self, outcome: RunState, error: CarrelError) -> bool:
        """End the run now, whatever it does; whether this call decided it. Does not wait for the agent."""
        if not await self._finish(Finish(outcome, error=error.to_dict(), interrupts=True)):
            return False
        if self._session is not None:
            await self._session.cancel(error.message)
        return True

    async def _stages(self) -> None:
        history = await self._history() if self._has_history else ()
        index = 0
        while not self._decided:
            stage = self.run.stages[index]
            result = await self._attempt(self._start(stage, history))
            if not await self._done(stage, result):
                return
            index += 1

    async def _attempt(self, start: StageStart) -> StageResult:
        """Run an attempt; while agent_instance is full, which it says before anything has begun, ask again."""
        delay = self._services.options.retry_first_s
        while True:
            self._session = StageSession(start, self._services)
            try:
                return await self._session.run()
            except WorkersBusyError as error:
                if self._decided:
                    raise
                delay = min(max(delay * 2, error.retry_after_s or 0.0), self._services.options.busy_max_s)
            # Spread, so that those who wait do not all come back together.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- guards nothing
            if self._decided:
                raise RunEndedError("the run ended while it waited for a worker")

    async def _done(self, stage: StageRecord, result: StageResult) -> bool:
        """Record a stage's result; whether there is another stage to run."""
        outcome = result.outcome
        if isinstance(outcome, StageFailure):
            # The host watches the same clock, and may be the first to see it run out.
            timed_out = outcome.error.get("code") == EngineTimeoutError.code
            await self._finish(Finish(RunState.TIMED_OUT if timed_out else RunState.FAILED, error=outcome.error))
            return False
        if isinstance(outcome, StagePlan):
            return await self._plan(stage, outcome, result.answered_by)
        if isinstance(outcome, InputRequired):
            raise NotImplementedYetError(
                "waiting for a person is not available yet", advice="give the agent what it needs in params"
            )
        value = self._check(stage, outcome)
        if stage.index == len(self.run.stages) - 1:
            await self._succeed(outcome, value, result.answered_by)
            return False
        if not fits(outcome):
            outcome = orjson.dumps({"artifact": await self._keep(f"{stage.agent_name}-result.json", outcome)})
        return await self._checkpoint(Checkpoint(stage.index, outcome, result.answered_by))

    @staticmethod
    def _check(stage: StageRecord, result: bytes) -> Mapping[str, Any]:
        try:
            value = orjson.loads(result)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise InvalidResultError(f"the result of {stage.agent_name} is no JSON object", agent_name=stage.agent_name)
        return value

    async def _plan(self, stage: StageRecord, plan: StagePlan, answered_by: str) -> bool:
        catalogue = await self._services.catalogue.covering(plan.stages)
        facts = catalogue.agents.get(stage.agent_name)
        if facts is None or not facts.plans:
            raise PlanError(f"{stage.agent_name} gave a plan, but is no agent that plans", agent_name=stage.agent_name)
        ran = [other.agent_name for other in self.run.stages]
        added = order_plan(plan.stages, catalogue, ran, MAX_STAGES - len(ran))
        params = orjson.dumps({**_object(self.run.params), **_object(plan.params)})
        value = orjson.dumps({"plan": list(added), "reason": plan.reason})
        return await self._checkpoint(Checkpoint(stage.index, value, answered_by, added, params))

    async def _checkpoint(self, step: Checkpoint) -> bool:
        run = await self._insist(lambda: self._services.store.checkpoint(self.run.ref, step))
        if run is None:  # ended meanwhile, or held by somebody newer
            return False
        self.run = run
        self._services.changes.notify(run.identity.user, run.identity.run_id)
        return True

    async def _succeed(self, result: bytes, value: Mapping[str, Any], answered_by: str) -> None:
        reference = None
        reply = reply_text(value, result)
        if not fits(result):
            reference = await self._keep("result.json", result)
            result = orjson.dumps({"artifact": reference})
        end = Finish(RunState.SUCCEEDED, result=result, answered_by=answered_by, reply=reply, reference=reference)
        await self._finish(end)

    async def _keep(self, name: str, data: bytes) -> dict[str, Any]:
        services = self._services
        record = await store_artifact(
            services.store,
            services.folder,
            self.run.ref,
            services.options.artifacts,
            services.clock(),
            (name, "application/json", data),
        )
        return {
            "name": name,
            "media_type": record.media_type,
            "size": record.size,
            "sha256": record.sha256,
            "url": f"/api/runs/{record.run_id}/artifacts/{name}",
        }

    async def _finish(self, end: Finish) -> bool:
        finished = await self._insist(lambda: self._services.store.finish(self.run.ref, end))
        self._decided = True
        if finished is None:
            return False
        seconds = (finished.ended_at - self.run.created_at) / 1_000_000
        _log.info(
            "run decided",
            run_id=self.run.identity.run_id,
            outcome=end.outcome.value,
            code=end.error["code"] if end.error else "",
            seconds=round(seconds, 3),
        )
        self._services.metrics.run_decided(end.outcome, seconds)
        self._on_decided(self.run, end.outcome)
        self._services.changes.notify(self.run.identity.user, self.run.identity.run_id)
        await self._relay.send(finished.events)
        _ = self._services.start(self._relay.close(), "outbox relay")
        return True

    async def _insist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        options = self._services.options
        return await insist(
            write, first_s=options.retry_first_s, max_s=options.retry_max_s, run_id=self.run.identity.run_id
        )

    def _start(self, stage: StageRecord, history: tuple[MessageRecord, ...]) -> StageStart:
        run = self.run
        return StageStart(
            identity=run.identity,
            agent_name=stage.agent_name,
            index=stage.index,
            attempt=max(stage.attempt, 1),
            fence=run.fence,
            message=run.message,
            params=run.params,
            deadline_at=run.deadline_at,
            results={
                done.agent_name: done.result
                for done in run.stages
                if done.state is StageState.SUCCEEDED and done.result is not None
            },
            history=history,
        )

    async def _history(self) -> tuple[MessageRecord, ...]:
        options, identity = self._services.options, self.run.identity
        found = await self._services.store.history(
            identity.user, identity.thread_id, identity.run_id, options.history_messages
        )
        kept: list[MessageRecord] = []
        room = options.history_bytes
        for message in reversed(found):
            room -= len(message.text.encode())
            if room < 0:
                break
            kept.append(message)
        return tuple(reversed(kept))


def _fault() -> InternalError:
    return InternalError("the run failed by a fault in execution")


def _object(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise PlanError("the plan's params are no JSON object")
    return value
