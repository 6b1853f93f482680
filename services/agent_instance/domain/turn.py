"""``AgentTurn``: one agent at work on a stage, from its first event to its last message. The host's side of a worker.

It answers the worker's messages, holds its time limits, and ends it. A stage has one turn, or two when a fallback
answers, and one more for each sub-agent; what comes before and after a turn is ``stage``'s and ``subagents``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from carrel.agent_codec import decode, encode
from carrel.agent_memory import MAX_MEMORY_BYTES
from carrel.agent_messages import Cancel, CancelToolBody, DownMessage, Failure, Result, RunToolBody, Start
from carrel.agents import Plan
from carrel.errors import (
    AgentFailedError,
    CancelledRunError,
    CarrelError,
    InternalError,
    InvalidResultError,
    PlanError,
    ProtocolError,
    WorkerLimitError,
    WorkerLostError,
)
from carrel.llm import MODEL_VARIABLE
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from servicekit.telemetry.gen_ai import agent_turn
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.bodies import HostBodies
from services.agent_instance.domain.calls import ToolCall
from services.agent_instance.domain.contexts import ContextTable, Scope
from services.agent_instance.domain.dispatcher import TurnTools
from services.agent_instance.domain.messages import MessageHandler
from services.agent_instance.domain.roles import StageTools, TurnEnd, TurnRole
from services.agent_instance.domain.routes import Asking, ModelRoute, Routes
from services.agent_instance.domain.subagents import SubAgents
from services.agent_instance.domain.told_errors import told_error
from services.agent_instance.models import Question

__all__ = ["AgentTurn"]

_log: Final = get_logger("agent_instance.turn")
_WORKER: Final = 0
# It travels with the stage's end, and its params with the start of every stage after it.
_MAX_PLAN_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Ended:
    message: Result | Failure | None = None
    error: CarrelError | None = None
    question: Question | None = None
    lost: bool = False


class AgentTurn:
    """Runs one agent on one worker. ``run`` once; ``cancel`` at any time; cancelling ``run`` kills the worker."""

    def __init__(self, stage: StageTools, role: TurnRole) -> None:
        name, attributes = agent_turn(role.entry.name)
        self._span = stage.tracing.span(name, attributes, parent=role.traceparent)
        # What the agent has others do is a part of its turn.
        role = replace(role, traceparent=self._span.traceparent)
        self._stage = stage
        self._role = role
        self._entry = role.entry
        # The worker of now: a fallback's will take its place.
        self._executor = role.instance.executor
        self.clock = ActivityClock(role.limits, outer=role.outer)
        self._table = ContextTable(role.context, role.tools, stage.ids, role.work)
        tools = TurnTools(
            agent_name=role.entry.name,
            permissions=lambda: stage.caller().permissions,
            events=role.events,
            uplink=stage.uplink,
            ledger=role.ledger,
            clock=self.clock,
            runner=self,
            questions=stage.questions,
            declared=frozenset(stage.servers.tools(role.entry)),
            away=lambda name: stage.servers.missing(role.entry, name),
            whose=role.whose,
            tracing=stage.tracing,
            traceparent=role.traceparent,
        )
        self._dispatcher = stage.dispatchers.create(tools)
        self._tasks = TaskOwner(self._task_failed)
        self._agents = SubAgents(
            stage, role, self.clock, self._table, lambda child: AgentTurn(stage, child), self._task_failed
        )
        self._asking = Asking(tools, stage.ids.root)
        access = stage.models
        calls = access.for_turn(tools, stage.caller, role.budget) if access is not None and access.available else None
        self._models = ModelRoute(calls, stage.questions)
        # Every attempt's is the same: what ids that agents give are made from.
        self._seed = f"{stage.start.stage_index}/{role.entry.name}"
        self._environment = {} if calls is None else dict(calls.environment())
        routes = Routes(self._agents, self._asking, self._models)
        self._handler = MessageHandler(tools, self._table, self._dispatcher, stage.desk, self._tasks, routes)
        self._bodies = HostBodies(
            self._handler.handle,
            self._dispatcher.ended,
            self._task_failed,
            attempt=stage.start.attempt,
            kill_s=stage.kill_s,
            seed=self._seed,
            model=self._environment.get(MODEL_VARIABLE, ""),
        )
        self._scopes: dict[str, Scope] = {}
        loop = asyncio.get_running_loop()
        self._asked_to_end: asyncio.Future[CarrelError] = loop.create_future()
        self._fault: asyncio.Future[CarrelError] = loop.create_future()
        self._grace_s = stage.grace_s
        self._ending = False
        self._killed = False

    def cancel(self, reason: str, grace_s: float | None = None) -> None:
        """Ask the agent, its sub-agents and tools to end, and kill them after the grace. Its events stop at once."""
        if not self._asked_to_end.done():
            self._role.events.mute()
            if grace_s is not None:
                self._grace_s = grace_s
            self._asked_to_end.set_result(CancelledRunError(f"cancelled: {reason}" if reason else "cancelled"))
            self._agents.cancel(reason, grace_s)
            self._bodies.cancel()

    async def run(self) -> TurnEnd:
        """Serve the agent to its end. Errors of the agent's are in what it returns; nothing of the turn outlives it."""
        ended = _Ended(error=InternalError("the turn ended without an end"))
        with self._span as span:
            try:
                ended = await self._run()
            except CarrelError as error:
                ended = _Ended(error=error, lost=isinstance(error, WorkerLostError))
            finally:
                await self._release()
            end = self._end(ended)
            if end.error is not None:
                span.fail(end.error.code)
        return end

    async def _run(self) -> _Ended:
        stage, role = self._stage, self._role
        with self.clock.stopped():
            child = role.context if role.depth else None
            await role.events.started(role.entry.name, role.entry.description, child)
            await self._executor.initialize(role.entry)
        root = self._table.root
        await self._send(
            Start(
                root.context.to_dict(),
                role.entry.name,
                role.request.to_dict(),
                tuple(root.tools),
                self._environment,
                self._seed,
                stage.start.memory if self._remembers else b"",
                self._remembers,
            )
        )
        self.clock.touch()
        pump = self._tasks.start(self._pump(), "messages of a worker")
        watch = self._tasks.start(self.clock.watch(), "time limits of an agent")
        # A sub-agent's silence is that of who runs it.
        updates = None if role.depth else self._tasks.start(self._speak(), "periodic updates of an agent")
        settled = stage.questions.settled
        signals: set[asyncio.Future[Any]] = {pump, watch, stage.dead, self._asked_to_end, self._fault}
        await asyncio.wait(signals if role.depth else signals | {settled}, return_when=asyncio.FIRST_COMPLETED)
        if updates is not None:
            updates.cancel()
        if pump.done():
            ended = pump.result()
        else:
            self._ending = True
            ended = await self._interrupt(pump, watch)
        watch.cancel()
        if not stage.dead.done() and ended.question is None:
            self._asking.close()
            await self._agents.aclose()
            await self._dispatcher.aclose()
        return ended

    async def _interrupt(self, pump: asyncio.Task[_Ended], watch: asyncio.Task[Any]) -> _Ended:
        """End an agent that has not ended: at once when nobody may hear of it any more, else by asking first."""
        if self._stage.dead.done():
            self._role.events.mute()
            self._killed = True
            return _Ended(error=self._stage.dead.result())
        if self._fault.done():
            self._killed = True
            return _Ended(error=self._fault.result())
        if not self._asked_to_end.done() and not watch.done():
            # Everything else has ended and is journaled: what the worker still says belongs to the next attempt.
            self._role.events.mute()
            return _Ended(question=self._stage.questions.settled.result())
        error: CarrelError = self._asked_to_end.result() if self._asked_to_end.done() else watch.result()
        self._agents.cancel(error.message, self._grace_s)
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
        loss = self._executor.loss
        if not self._ending:  # else it is this turn that ends it
            _log.warning("worker ended without a word", agent=self._entry.name, code=loss.code)
        return _Ended(error=loss, lost=isinstance(loss, WorkerLostError | WorkerLimitError))

    async def _from_worker(self, message: Any) -> None:
        await self._handler.handle(message, _WORKER, self._send)

    async def _send(self, message: DownMessage) -> None:
        await self._executor.send(encode(message))

    async def _speak(self) -> None:
        async def say() -> None:
            await self._role.events.still_working(self._entry.name, self.clock.silent_s)

        await self._stage.periodic.speak_for(lambda: self.clock.silent_s, say)

    # The dispatcher's BodyRunner.

    async def begin(self, call: ToolCall) -> None:
        """Run an admitted call's body where its tool says."""
        scope = self._scopes[call.call_id] = self._table.for_call(call.scope, call.call_id, call.work)
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

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Something of the dispatcher's that ends with the turn."""
        _ = self._tasks.start(work, name)

    async def _release(self) -> None:
        self._asking.close()
        self._dispatcher.abandon()
        # All at once: an end that each waits for in turn would be as slow as their sum.
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._executor.kill(), name="end of a worker")
            ends.create_task(self._agents.kill(), name="end of sub-agents")
            ends.create_task(self._models.aclose(), name="end of model calls")
            ends.create_task(self._bodies.aclose(), name="end of host tools")
        await self._tasks.aclose()

    def _task_failed(self, name: str, error: BaseException) -> None:
        if not self._fault.done():
            fault = error if isinstance(error, CarrelError) else InternalError(f"the host failed at: {name}")
            self._fault.set_result(fault)

    def _end(self, ended: _Ended) -> TurnEnd:
        muted = self._asked_to_end.done() or self._stage.dead.done()
        error = ended.error
        if muted and (error is None or ended.lost):
            # It ended by itself in the same moment, but its last event will not be said any more.
            error = (self._stage.dead if self._stage.dead.done() else self._asked_to_end).result()
        end = TurnEnd(
            self.clock.agent_s,
            error=error,
            killed=self._killed,
            muted=muted,
            lost=ended.lost and not muted,
            past_deadline=self.clock.past_deadline,
        )
        if error is not None:
            return end
        if ended.question is not None:
            return replace(end, question=ended.question)
        if isinstance(ended.message, Result):
            try:
                plan, kept = self._plan(ended.message), self._kept(ended.message)
                return replace(end, result=ended.message.result, plan=plan, memory=kept)
            except CarrelError as wrong:
                return replace(end, error=wrong)
        assert ended.message is not None
        return replace(end, error=_agents_own(told_error(ended.message.error)))

    @property
    def _remembers(self) -> bool:
        """Whether it is the stage's own agent: what a thread remembers is its alone."""
        return not self._role.depth and not self._role.whose

    def _kept(self, message: Result) -> bytes:
        if message.memory and (not self._remembers or len(message.memory) > MAX_MEMORY_BYTES):
            raise ProtocolError("the worker keeps what it may not")
        return message.memory

    def _plan(self, message: Result) -> Plan | None:
        if not message.plan:
            return None
        if not self._entry.plans:
            raise InvalidResultError(f"agent {self._entry.name} returned a plan, but is no agent that plans")
        if (size := len(orjson.dumps(message.result))) > _MAX_PLAN_BYTES:
            raise PlanError(
                f"the plan of agent {self._entry.name} has {size} bytes; {_MAX_PLAN_BYTES} can be passed on",
                advice="put large values into artifacts, and their names into the plan",
                limit="plan_bytes",
                limit_value=_MAX_PLAN_BYTES,
                use=size,
            )
        return Plan.from_dict(message.result)


def _agents_own(error: CarrelError) -> CarrelError:
    """What an agent raised. Only the host says that a worker was lost: a sub-agent's is its parent's failure."""
    if not isinstance(error, WorkerLostError):
        return error
    return AgentFailedError(f"the agent failed: {error.message}", advice=error.advice, cause=error.code)
