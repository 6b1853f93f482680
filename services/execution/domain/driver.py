"""Drives one run over its stages to its end. Everything that must survive is in the store before it is acted upon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import orjson

from carrel.errors import (
    CarrelError,
    EngineTimeoutError,
    InternalError,
    PlanError,
    StaleFenceError,
)
from servicekit.logs import bind, get_logger, hash_user
from services.execution.domain.answers import check_question
from services.execution.domain.attempts import Attempts, is_lost
from services.execution.domain.budgets import Budgets
from services.execution.domain.errors import AgentInstanceDrainedError, AgentInstanceLostError
from services.execution.domain.outcome import fits, reply_text
from services.execution.domain.planning import MAX_STAGES, order_plan
from services.execution.domain.ports import InputRequired, StageFailure, StagePlan, StageResult
from services.execution.domain.relay import Relays
from services.execution.domain.results import check_result, keep_result, kept_by, merge_params
from services.execution.domain.retry import insist
from services.execution.domain.services import RunServices
from services.execution.domain.starts import history_of, stage_start
from services.execution.domain.states import ENDABLE
from services.execution.domain.timing import Part
from services.execution.models import MessageRecord, RunRecord, RunState, StageRecord, StageState, UserKey
from services.execution.models_steps import Again, Checkpoint, Finish, Finished, Kept, Question

__all__ = ["RunDriver", "RunOwner"]

_T = TypeVar("_T")
_log = get_logger("execution.driver")
# A run's own predecessors in its thread get this beyond their grace to be gone.
_PARTING_S: Final = 1.0


class RunOwner(Protocol):
    """Who keeps the drivers; it is told once of each."""

    @property
    def relays(self) -> Relays:
        """The outboxes."""
        ...

    @property
    def budgets(self) -> Budgets:
        """What users may use of models."""
        ...

    def decided(self, driver: RunDriver, outcome: RunState) -> None:
        """The run's outcome is decided, here or elsewhere; its engine is free."""
        ...

    def suspended(self, driver: RunDriver) -> None:
        """The run waits for a person; its engine is free."""
        ...

    def released(self, driver: RunDriver) -> None:
        """The run is somebody else's now."""
        ...


class RunDriver:
    """One run, for as long as it is RUNNING here.

    Args:
        run: The run as it is; the stage that runs is the one to go on with.
        services: What every run shares.
        owner: Hears how it ends here; has its outbox's relay, and the budgets.
        has_history: Whether the thread had messages before.
        again: Why the stage must be tried anew, when a former process had begun it.
        after: Former attempts in the same thread, which must be gone first.

    ``stopped`` is set once nothing of the run goes on here any more.
    """

    def __init__(
        self,
        run: RunRecord,
        services: RunServices,
        owner: RunOwner,
        *,
        has_history: bool = True,
        again: Again | None = None,
        after: Sequence[asyncio.Event] = (),
    ) -> None:
        self.run = run
        self.engine_id = run.engine_id
        self.stopped = asyncio.Event()
        self._relay = owner.relays.of(run)
        self._services = services
        self._budgets = owner.budgets
        self._owner = owner
        self._has_history = has_history
        self._again = again
        self._after = after
        # Steps that raise the fence or end the run come one after the other: each must know the former's outcome.
        self._stepping = asyncio.Lock()
        self._over = asyncio.Event()
        self._attempts = Attempts(services, owner.budgets, self._over.is_set)
        self._told = False
        self._timing = services.timing(run)
        # How it ended here, where it did.
        self.outcome: RunState | None = None

    async def drive(self) -> None:
        """Run stage after stage. Never raises but for cancellation: what goes wrong is the run's outcome."""
        bind(run_id=self.run.identity.run_id, user=hash_user(self.run.identity.user))
        try:
            await self._drive()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that it waited for was cancelled, and not this run.
            _log.error("run failed by a stray cancellation")
            await self._finish(Finish(RunState.FAILED, error=_fault().to_dict(), interrupts=True))
        except StaleFenceError:
            await self.let_go()
        except CarrelError as error:
            await self._finish(Finish(RunState.FAILED, error=error.to_dict(), interrupts=True))
        except Exception as error:  # noqa: BLE001 -- a fault of ours must end this run, and no other
            _log.error("run failed by a fault", error=error)
            await self._finish(Finish(RunState.FAILED, error=_fault().to_dict(), interrupts=True))
        finally:
            self.stopped.set()

    async def end(self, outcome: RunState, error: CarrelError) -> bool:
        """End the run now, whatever it does; whether this call decided it. Does not wait for the agent."""
        return await self._finish(Finish(outcome, error=error.to_dict(), interrupts=True), error.message)

    async def ended(self, run: RunRecord, finished: Finished) -> None:
        """Another run's admission has ended this one."""
        self._over.set()
        self._attempts.stop("another run of the thread took its place")
        await self._conclude(run.outcome or RunState.CANCELLED, run.error, finished)

    def supersede(self) -> None:
        """Another driver of this process has the run, under a newer fence: stop, and touch nothing of it."""
        self._told = True
        self._over.set()
        self._attempts.stop("the run goes on under a newer lease")

    async def let_go(self) -> None:
        """The run has been ended elsewhere, or somebody newer drives it: stop, and relay what is left to relay."""
        if self._over.is_set():
            return
        self._over.set()
        self._attempts.stop("the run goes on or has ended elsewhere")
        run = await self._insist(partial(self._services.store.get_run, *self._key))
        if self._told:  # superseded meanwhile
            return
        if run is None or run.state in ENDABLE:
            self._tell_released()
            await self._relay.retire()
            return
        self._tell_decided(run.outcome or run.state, run.ended_at or self._services.clock())
        self._changed()
        if run.state is RunState.FINISHING and run.fence == self.run.fence:
            await self._relay.aclose()  # who ended it wrote events that this channel has never seen
            _ = self._services.start(self._relay.close(), "outbox relay")
        else:
            await self._relay.retire()

    # Stages and attempts

    async def _drive(self) -> None:
        warming = self._budgets.warm(self.run.identity)
        await self._predecessors()
        if self._again is None:
            await self._relay.follow(self.run)
            if not await self._heard():
                return
        elif not await self._next_attempt(self._again, lost=False):
            return
        if warming is not None:
            await asyncio.wait([warming])
        history = await history_of(self._services, self.run.identity) if self._has_history else None
        while not self._over.is_set():
            result = await self._try(history)
            if result is None or not await self._done(self._stage(), result):
                return

    async def _predecessors(self) -> None:
        """Let former attempts of the thread end first, so that what they still say comes before; bounded."""
        if not self._after:
            return
        try:
            async with asyncio.timeout(self._services.options.cancel_grace_s + _PARTING_S):
                for stopped in self._after:
                    await stopped.wait()
        except TimeoutError:
            _log.warning("a former run of the thread does not end", run_id=self.run.identity.run_id)

    async def _try(self, history: tuple[MessageRecord, ...] | None) -> StageResult | None:
        """Try the stage until it has a result, or has been lost too often; None when the run is over here."""
        while not self._over.is_set():
            stage = self._stage()
            start = await self._insist(partial(stage_start, self._services, self._budgets, self.run, stage, history))
            why, counts = Again.WORKER_LOST, True
            before = self._timing.so_far()
            try:
                result = await self._attempts.run(start)
                if start.last_attempt or not is_lost(result):
                    return result
            except AgentInstanceLostError as error:
                self._services.catalogue.invalidate()
                self._timing.lose(before)
                # One that was given back by who ends in order is no failure: restarts in a row must not use tries up.
                counts = self._attempts.accepted and not isinstance(error, AgentInstanceDrainedError)
                if self._over.is_set() or (counts and start.last_attempt):
                    raise
                _log.warning("attempt lost", reason=error.message, attempt=start.attempt, accepted=counts)
                why = Again.AGENT_INSTANCE_LOST
            if not counts:
                # It never said that it had begun, so it costs no try; but it may have, so its number is not used again.
                await self._attempts.pause()
            if self._over.is_set() or not await self._next_attempt(why, lost=counts):
                return None
        return None

    async def _next_attempt(self, why: Again, *, lost: bool) -> bool:
        """Begin the stage's next attempt, under the next fence; whether the run still goes on here."""
        index = self._stage().index
        async with self._stepping:
            if self._over.is_set():
                return False
            store = self._services.store
            with self._timing.spent(Part.CHECKPOINT):
                step = await self._insist(lambda: store.begin_attempt(self.run.ref, index, why, lost=lost))
            if step is not None:
                self.run = step.run
        if step is None:
            await self.let_go()
            return False
        self._services.metrics.attempts_lost += lost
        _log.info("stage is tried again", reason=why.value, attempt=self._stage().attempt)
        self._changed()
        await self._relay.follow(self.run)
        return await self._heard()

    async def _heard(self) -> bool:
        """Wait until the log has the run's own events so far; whether the run still goes on here."""
        try:
            await self._relay.begun()
        except StaleFenceError:
            run = await self._insist(partial(self._services.store.get_run, *self._key))
            if run is None or run.fence != self.run.fence:
                raise
            # The store has lost its tail, and the log has seen fences that are yet to come.
            return await self._next_attempt(Again.EXECUTION_RESTARTED, lost=False)
        return not self._over.is_set()

    def _stage(self) -> StageRecord:
        running = (stage for stage in self.run.stages if stage.state is StageState.RUNNING)
        stage = next(running, None)
        if stage is None:
            raise InternalError("the run has no stage that runs")
        return stage

    async def _done(self, stage: StageRecord, result: StageResult) -> bool:
        """Record a stage's result; whether there is another stage to run."""
        outcome = result.outcome
        if isinstance(outcome, StageFailure):
            # The host watches the same clock, and may be the first to see it run out.
            timed_out = outcome.error.get("code") == EngineTimeoutError.code
            await self._finish(Finish(RunState.TIMED_OUT if timed_out else RunState.FAILED, error=outcome.error))
            return False
        kept = kept_by(self._services, stage.agent_name, result)
        if isinstance(outcome, StagePlan):
            return await self._plan(stage, outcome, result.answered_by, kept)
        if isinstance(outcome, InputRequired):
            await self._suspend(stage, outcome.question)
            return False
        value = check_result(stage.agent_name, outcome)
        if stage.index == len(self.run.stages) - 1:
            await self._succeed(outcome, value, result.answered_by, kept)
            return False
        if not fits(outcome):
            outcome = orjson.dumps({"artifact": await self._keep(f"{stage.agent_name}-result.json", outcome)})
        return await self._checkpoint(Checkpoint(stage.index, outcome, result.answered_by, memory=kept))

    async def _suspend(self, stage: StageRecord, question: Question) -> None:
        check_question(question, stage.agent_name)
        async with self._stepping:
            if self._over.is_set():
                return
            timeout_s = self._services.options.input_timeout_s
            step = await self._insist(lambda: self._services.store.suspend(self.run.ref, question, timeout_s))
            if step is not None:
                self.run, self._told = step.run, True
                self._over.set()
                self._owner.suspended(self)
        if step is None:
            await self.let_go()
            return
        self._changed()
        await self._relay.send(step.events)
        _ = self._services.start(self._relay.rest(), "outbox relay")

    async def _plan(self, stage: StageRecord, plan: StagePlan, by: str, kept: Kept | None) -> bool:
        catalogue = await self._services.catalogue.covering(plan.stages)
        facts = catalogue.agents.get(stage.agent_name)
        if facts is None or not facts.plans:
            raise PlanError(f"{stage.agent_name} gave a plan, but is no agent that plans", agent_name=stage.agent_name)
        ran = [other.agent_name for other in self.run.stages]
        added = order_plan(plan.stages, catalogue, ran, MAX_STAGES - len(ran))
        params = merge_params(self.run.params, plan.params)
        value = orjson.dumps({"plan": list(added), "reason": plan.reason})
        return await self._checkpoint(Checkpoint(stage.index, value, by, added, params, kept))

    async def _checkpoint(self, step: Checkpoint) -> bool:
        with self._timing.spent(Part.CHECKPOINT):
            run = await self._insist(lambda: self._services.store.checkpoint(self.run.ref, step))
        if run is None:  # ended meanwhile, or held by somebody newer
            await self.let_go()
            return False
        self.run = run
        self._changed()
        return True

    async def _succeed(self, result: bytes, value: Mapping[str, Any], by: str, kept: Kept | None) -> None:
        reference, reply = None, reply_text(value, result)
        if not fits(result):
            reference = await self._keep("result.json", result)
            result = orjson.dumps({"artifact": reference})
        end = Finish(RunState.SUCCEEDED, result, answered_by=by, reply=reply, reference=reference, memory=kept)
        await self._finish(end)

    async def _keep(self, name: str, data: bytes) -> dict[str, Any]:
        return await keep_result(self._services, self.run.ref, name, data)

    async def _finish(self, end: Finish, reason: str = "") -> bool:
        async with self._stepping:
            if self._over.is_set():
                return False
            with self._timing.spent(Part.CHECKPOINT):
                finished = await self._insist(lambda: self._services.store.finish(self.run.ref, end))
            if finished is not None:
                self._over.set()
        if finished is None:
            await self.let_go()
            return False
        if reason:
            self._attempts.stop(reason)
        await self._conclude(end.outcome, end.error, finished)
        return True

    async def _conclude(self, outcome: RunState, error: Mapping[str, Any] | None, finished: Finished) -> None:
        seconds = (finished.ended_at - self.run.created_at) / 1_000_000
        _log.info(
            "run decided",
            run_id=self.run.identity.run_id,
            outcome=outcome.value,
            code=error["code"] if error else "",
            seconds=round(seconds, 3),
        )
        self._timing.decide()
        self._tell_decided(outcome, finished.ended_at)
        self._changed()
        if finished.queued:
            self._services.wakeups.freed()
        await self._relay.send(finished.events)
        _ = self._services.start(self._relay.close(), "outbox relay")

    def _tell_decided(self, outcome: RunState, ended_at: int) -> None:
        if not self._told:
            self._told, self.outcome = True, outcome
            self._services.decided(self.run, outcome, ended_at)
            self._owner.decided(self, outcome)

    def _tell_released(self) -> None:
        if not self._told:
            self._told = True
            self._owner.released(self)

    @property
    def _key(self) -> tuple[UserKey, str]:
        return self.run.identity.user, self.run.identity.run_id

    def _changed(self) -> None:
        self._services.changes.notify(*self._key)

    async def _insist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        options = self._services.options
        return await insist(
            write, first_s=options.retry_first_s, max_s=options.retry_max_s, run_id=self.run.identity.run_id
        )


def _fault() -> InternalError:
    return InternalError("the run failed by a fault in execution")
