"""``AgentTurn``: one agent at work on a stage, from its first event to its last message. The host's side of a worker.

It answers the worker's messages, holds its time limits, and ends it. A stage has one turn, or two when a fallback
answers; what comes before and after a turn is ``stage``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from carrel.agent_codec import decode, encode
from carrel.agent_messages import Cancel, CancelToolBody, DownMessage, Failure, Result, RunToolBody, Start
from carrel.agents import Plan
from carrel.errors import CancelledRunError, CarrelError, InternalError, InvalidResultError, WorkerLostError, from_dict
from carrel.ids import ChildIds
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.domain.activity import ActivityClock, TimePolicy
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.bodies import HostBodies
from services.agent_instance.domain.calls import CallLedger, ToolCall
from services.agent_instance.domain.contexts import ContextTable, Scope
from services.agent_instance.domain.dispatcher import TurnTools, UnifiedToolDispatcherFactory
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.executor import AgentExecutor
from services.agent_instance.domain.messages import MessageHandler
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.ports import Uplink
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.models import Caller, StageStart

__all__ = ["AgentTurn", "StageTools", "TurnEnd"]

_log: Final = get_logger("agent_instance.turn")
_WORKER: Final = 0


@dataclass(frozen=True, slots=True)
class StageTools:
    """What the turns of one stage share. ``caller`` gives the newest verified one."""

    start: StageStart
    caller: Callable[[], Caller]
    events: StageEvents
    uplink: Uplink
    ledger: CallLedger
    desk: ArtifactDesk
    ids: ChildIds
    dispatchers: UnifiedToolDispatcherFactory
    periodic: PeriodicUpdateManager
    policy: TimePolicy
    dead: asyncio.Future[CarrelError]
    grace_s: float = 2.0
    kill_s: float = 0.5


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended: one of ``result``, ``plan`` and ``error``. ``muted``: nothing more is to be said of it."""

    seconds: float
    result: Mapping[str, Any] | None = None
    plan: Plan | None = None
    error: CarrelError | None = None
    killed: bool = False
    muted: bool = False
    past_deadline: bool = False


@dataclass(frozen=True, slots=True)
class _Ended:
    message: Result | Failure | None = None
    error: CarrelError | None = None


class AgentTurn:
    """Runs one agent on one executor. ``run`` once; ``cancel`` at any time; cancelling ``run`` kills the worker."""

    def __init__(self, stage: StageTools, entry: AgentEntry, executor: AgentExecutor) -> None:
        self._stage = stage
        self._entry = entry
        self._executor = executor
        caller = stage.caller()
        self._table = ContextTable(caller.context, entry.tools, stage.ids)
        self.clock = ActivityClock(stage.policy.limits(entry, stage.start.deadline))
        tools = TurnTools(
            agent_name=entry.name,
            permissions=lambda: stage.caller().permissions,
            events=stage.events,
            uplink=stage.uplink,
            ledger=stage.ledger,
            clock=self.clock,
            runner=self,
        )
        self._dispatcher = stage.dispatchers.create(tools)
        self._tasks = TaskOwner(self._task_failed)
        self._handler = MessageHandler(tools, self._table, self._dispatcher, stage.desk, self._tasks)
        self._bodies = HostBodies(
            self._handler.handle,
            self._dispatcher.ended,
            self._task_failed,
            attempt=stage.start.attempt,
            kill_s=stage.kill_s,
        )
        self._scopes: dict[str, Scope] = {}
        loop = asyncio.get_running_loop()
        self._asked_to_end: asyncio.Future[CarrelError] = loop.create_future()
        self._fault: asyncio.Future[CarrelError] = loop.create_future()
        self._grace_s = stage.grace_s
        self._killed = False

    def cancel(self, reason: str, grace_s: float | None = None) -> None:
        """Ask the agent to end, and kill it after the grace. The stage's events stop at once."""
        if not self._asked_to_end.done():
            self._stage.events.mute()
            if grace_s is not None:
                self._grace_s = grace_s
            self._asked_to_end.set_result(CancelledRunError(f"cancelled: {reason}" if reason else "cancelled"))

    async def run(self) -> TurnEnd:
        """Serve the agent to its end. Errors of the agent's are in what it returns; nothing of the turn outlives it."""
        ended = _Ended(error=InternalError("the turn ended without an end"))
        try:
            ended = await self._run()
        except CarrelError as error:
            ended = _Ended(error=error)
        finally:
            await self._release()
        return self._end(ended)

    async def _run(self) -> _Ended:
        stage, entry = self._stage, self._entry
        with self.clock.stopped():
            await stage.events.started(entry.name, entry.description)
            await self._executor.initialize(entry)
        root = self._table.root
        start = Start(root.context.to_dict(), entry.name, stage.start.request.to_dict(), tuple(root.tools))
        await self._executor.send(encode(start))
        self.clock.touch()
        pump = self._tasks.start(self._pump(), "messages of a worker")
        watch = self._tasks.start(self.clock.watch(), "time limits of an agent")
        updates = self._tasks.start(self._speak(), "periodic updates of an agent")
        signals: set[asyncio.Future[Any]] = {pump, watch, stage.dead, self._asked_to_end, self._fault}
        await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
        updates.cancel()
        if pump.done():
            ended = pump.result()
        else:
            ended = await self._interrupt(pump, watch)
        watch.cancel()
        if not stage.dead.done():
            await self._dispatcher.aclose()
        return ended

    async def _interrupt(self, pump: asyncio.Task[_Ended], watch: asyncio.Task[Any]) -> _Ended:
        """End an agent that has not ended: at once when nobody may hear of it any more, else by asking first."""
        if self._stage.dead.done():
            self._stage.events.mute()
            self._killed = True
            return _Ended(error=self._stage.dead.result())
        if self._fault.done():
            self._killed = True
            return _Ended(error=self._fault.result())
        error: CarrelError = self._asked_to_end.result() if self._asked_to_end.done() else watch.result()
        try:
            async with asyncio.timeout(self._grace_s):
                await self._executor.send(encode(Cancel(error.message)))
                await asyncio.wait({pump})
        except TimeoutError:
            self._killed = True
            _log.warning("agent is killed", agent=self._entry.name, reason=error.code, grace_s=self._grace_s)
            await self._executor.kill()
            pump.cancel()
        return _Ended(error=error)

    async def _pump(self) -> _Ended:
        while (data := await self._executor.receive()) is not None:
            try:
                message = decode(data)
                if isinstance(message, Result | Failure):
                    return _Ended(message)
                await self._from_worker(message)
            except CarrelError as error:
                # A worker that breaks the protocol hurts its own run only; a dead producer has its own signal.
                return _Ended(error=error)
        return _Ended(error=WorkerLostError("the process that ran the agent is gone", advice="try again"))

    async def _from_worker(self, message: Any) -> None:
        await self._handler.handle(message, _WORKER, self._send)

    async def _send(self, message: DownMessage) -> None:
        await self._executor.send(encode(message))

    async def _speak(self) -> None:
        async def say() -> None:
            await self._stage.events.still_working(self._entry.name, self.clock.silent_s)

        await self._stage.periodic.speak_for(lambda: self.clock.silent_s, say)

    # The dispatcher's BodyRunner.

    async def begin(self, call: ToolCall) -> None:
        """Run an admitted call's body where its tool says."""
        scope = self._scopes[call.call_id] = self._table.for_call(call.scope, call.call_id)
        if call.tool.host:
            self._bodies.start(call, scope)
            return
        self._handler.expect_body(call.call_id)
        arguments = dict(call.asked.arguments)
        context, tools = scope.context.to_dict(), tuple(scope.tools)
        await self._send(RunToolBody(call.call_id, call.tool.name, arguments, scope.handle, context, tools))

    async def stop(self, call: ToolCall) -> None:
        """Stop a call's body."""
        if call.tool.host:
            await self._bodies.stop(call)
        elif self._handler.forget_body(call.call_id):
            await self._send(CancelToolBody(call.call_id))

    async def finished(self, call: ToolCall) -> None:
        """Close the context that the body worked in, and what it opened."""
        scope = self._scopes.pop(call.call_id, None)
        if scope is not None:
            await self._handler.close(scope)

    def overdue(self, call: ToolCall, error: CarrelError) -> None:
        """A call's time is up."""
        _ = self._tasks.start(self._dispatcher.stop(call.call_id, error), "end of an overdue tool call")

    async def _release(self) -> None:
        self._dispatcher.abandon()
        await self._executor.kill()
        await self._tasks.aclose()
        await self._bodies.aclose()

    def _task_failed(self, name: str, error: BaseException) -> None:
        if not self._fault.done():
            fault = error if isinstance(error, CarrelError) else InternalError(f"the host failed at: {name}")
            self._fault.set_result(fault)

    def _end(self, ended: _Ended) -> TurnEnd:
        seconds, error = self.clock.agent_s, ended.error
        common: dict[str, Any] = {
            "seconds": seconds,
            "killed": self._killed,
            "muted": self._asked_to_end.done() or self._stage.dead.done(),
            "past_deadline": self.clock.past_deadline,
        }
        if error is None and common["muted"]:
            # It ended by itself in the same moment, but its last event will not be said any more.
            error = (self._stage.dead if self._stage.dead.done() else self._asked_to_end).result()
        if error is None and isinstance(ended.message, Failure):
            error = from_dict(ended.message.error)
        if error is None and isinstance(ended.message, Result):
            try:
                return TurnEnd(result=ended.message.result, plan=self._plan(ended.message), **common)
            except CarrelError as wrong:
                error = wrong
        return TurnEnd(error=error, **common)

    def _plan(self, message: Result) -> Plan | None:
        if not message.plan:
            return None
        if not self._entry.plans:
            raise InvalidResultError(f"agent {self._entry.name} returned a plan, but is no agent that plans")
        return Plan.from_dict(message.result)
