"""``SubAgents``: the agents that one agent runs inside its turn, each with a context and a worker of its own.

A sub-agent is bounded by the one that runs it: its tools by name, its time, its tokens, its end. Its events
(``agent_started`` … ``agent_completed`` | ``agent_error``) carry its own request and name. One whose worker is lost is
an error to who runs it, not another attempt.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from carrel.agent_messages import AgentReply, DownMessage, Refused, RunAgent
from carrel.agents import Request
from carrel.context import UserExecutionContext
from carrel.errors import (
    AgentFailedError,
    CancelledRunError,
    CarrelError,
    InternalError,
    LimitExceededError,
    ProtocolError,
    ToolPermissionError,
    UnknownToolError,
)
from carrel.frozen import freeze_map
from carrel.tools import Tool
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.calls import hash_arguments
from services.agent_instance.domain.contexts import ContextTable, Scope
from services.agent_instance.domain.questions import Work
from services.agent_instance.domain.receipts import Receipt
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.domain.roles import MAX_SUB_AGENT_DEPTH, StageTools, TurnEnd, TurnRole
from services.agent_instance.domain.tool_reports import MAX_JOURNALED_BYTES
from services.agent_instance.models import JournalItem

__all__ = ["SubAgents"]

_log: Final = get_logger("agent_instance.subagents")
_MAX_OPERATION: Final = 48

Reply = Callable[[DownMessage], Awaitable[None]]


class _Turn(Protocol):
    async def run(self) -> TurnEnd: ...

    def cancel(self, reason: str, grace_s: float | None = None) -> None: ...


@dataclass(slots=True, eq=False)
class _Child:
    """One call of ``RunAgent`` that has not ended."""

    message: RunAgent
    entry: AgentEntry
    context: UserExecutionContext
    tools: Mapping[str, Tool]
    journal_id: str
    arguments_hash: str
    work: Work
    handle: int
    reply: Reply
    cancelled: str | None = None
    turn: _Turn | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    left: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def cancel(self, reason: str, grace_s: float | None = None) -> None:
        self.cancelled = reason
        self.left.set()
        if self.turn is not None:
            self.turn.cancel(reason, grace_s)


class SubAgents:
    """The sub-agents of one turn.

    Args:
        role: The turn's: what it has is what its sub-agents may have.
        make: Makes a turn of a role.
        failed: Told when the host itself failed at one.
    """

    def __init__(
        self,
        stage: StageTools,
        role: TurnRole,
        clock: ActivityClock,
        table: ContextTable,
        make: Callable[[TurnRole], _Turn],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._stage = stage
        self._role = role
        self._clock = clock
        self._table = table
        self._make = make
        self._children: dict[tuple[int, int], _Child] = {}
        self._tasks = TaskOwner(failed)
        self._closed = False

    async def request(self, message: RunAgent, source: int, scope: Scope, reply: Reply) -> None:
        """Run an agent; ``reply`` tells its end.

        Raises:
            ProtocolError: The caller has an open call of that number.
            UnknownAgentError: There is no such agent.
            ToolError: ``tools`` names one that it cannot have.
            LimitExceededError: Too many are at work, or they nest too deeply.
        """
        key = (source, message.call_id)
        if key in self._children:
            raise ProtocolError("a call of an agent with the number of another one that is open")
        if self._closed:
            raise CancelledRunError("the agent is ending; no further agent is started")
        entry = self._stage.core.registry.entry(message.agent_name)
        tools = _allowed(entry.name, self._stage.servers.tools(entry), scope.tools, message.tools)
        self._check_depth()
        context = self._table.named(scope, message.agent_name[:_MAX_OPERATION].rstrip("_-."))
        digest = hash_arguments(
            {
                "message": message.message,
                "params": dict(message.params),
                "tools": None if message.tools is None else sorted(message.tools),
            }
        )
        journal_id, earlier = self._role.ledger.recall("agent", entry.name, digest, within=scope.within)
        if earlier is not None:
            await self._replay(entry, context, earlier, message.call_id, reply)
            return
        self._stage.sub_agents.take()
        work = self._stage.questions.begin(scope.work)
        child = _Child(message, entry, context, tools, journal_id, digest, work, scope.handle, reply)
        self._children[key] = child
        child.task = self._tasks.start(self._serve(key, child), f"sub-agent {entry.name}")

    def give_up(self, key: tuple[int, int]) -> None:
        """Nobody waits for that one any more: it is asked to end, then killed."""
        child = self._children.get(key)
        if child is not None:
            child.cancel("the agent that ran it no longer waits for it")

    def cancel(self, reason: str, grace_s: float | None = None) -> None:
        """Ask all of them to end; nothing begins any more."""
        self._closed = True
        for child in list(self._children.values()):
            child.cancel(reason, grace_s)

    def close_in(self, handles: frozenset[int]) -> None:
        """The contexts that they were run in are closed."""
        for child in [c for c in self._children.values() if c.handle in handles]:
            child.cancel("the context that it was run in has been closed")

    async def aclose(self) -> None:
        """Ask those at work to end and wait for that. Idempotent."""
        self.cancel("the agent that ran it has ended")
        tasks = {child.task for child in self._children.values() if child.task is not None}
        if tasks:
            await asyncio.wait(tasks)

    async def kill(self) -> None:
        """End all of them at once, and their workers."""
        self._closed = True
        await self._tasks.aclose()

    def _check_depth(self) -> None:
        if self._role.depth >= MAX_SUB_AGENT_DEPTH:
            raise LimitExceededError(
                f"agents run one another more than {MAX_SUB_AGENT_DEPTH} deep",
                advice="run fewer agents within agents",
                limit="sub_agent_depth",
                limit_value=MAX_SUB_AGENT_DEPTH,
                use=self._role.depth + 1,
            )

    async def _replay(
        self, entry: AgentEntry, context: UserExecutionContext, earlier: JournalItem, call_id: int, reply: Reply
    ) -> None:
        """It ended in an earlier attempt: say so again, since that one's events may not have got far."""
        events = self._role.events
        answer: DownMessage
        with self._clock.stopped():
            await events.started(entry.name, entry.description, context, replayed=True)
            if earlier.error is None:
                result = orjson.loads(earlier.result)
                await events.completed(entry.name, result, 0.0, context, replayed=True)
                answer = AgentReply(call_id, result)
            else:
                await events.failed(entry.name, earlier.error, context, replayed=True)
                answer = Refused(call_id, earlier.error.to_dict())
        self._clock.spoke()
        await reply(answer)

    async def _serve(self, key: tuple[int, int], child: _Child) -> None:
        try:
            try:
                end = await self._run(child)
            except CarrelError as error:
                end = TurnEnd(0.0, error=error)
            answer = await self._ended(child, end)
            if child.cancelled is None:
                await child.reply(answer)
        finally:
            self._children.pop(key, None)
            self._stage.sub_agents.give()
            self._stage.questions.end(child.work, settle=not self._closed)

    async def _run(self, child: _Child) -> TurnEnd:
        stage = self._stage
        instance = await stage.core.child(self._role.instance, child.entry.name)
        hurry = True
        activity = f"agent {child.journal_id}"
        try:
            if child.cancelled is not None:
                raise CancelledRunError(f"cancelled: {child.cancelled}")
            turn = child.turn = self._make(self._role_of(child, instance))
            self._clock.tool_began(activity, self._clock.limits.wall_s)
            end = await turn.run()
            stage.core.counts.lost += end.lost
            stage.core.counts.killed += end.killed
            hurry = end.muted
            return end
        finally:
            self._clock.tool_ended(activity)
            try:
                # The turn has killed the worker; what it printed is still there.
                await stage.outputs.keep(instance.executor, child.entry.name, hurry=hurry)
            finally:
                await stage.core.drop(instance)

    def _role_of(self, child: _Child, instance: Any) -> TurnRole:
        stage, role, message = self._stage, self._role, child.message
        limits = stage.policy.limits(child.entry, stage.start.deadline)
        wall = min(limits.wall_s, self._clock.left_s, message.timeout_s or limits.wall_s)
        return TurnRole(
            entry=child.entry,
            instance=instance,
            context=child.context,
            request=Request(message.message, freeze_map(message.params, "params"), attempt=stage.start.attempt),
            tools=child.tools,
            limits=dataclasses.replace(limits, wall_s=wall),
            ledger=role.ledger.under(child.journal_id),
            events=role.events.branch(),
            budget=role.budget.part(message.model_tokens),
            whose=role.whose,
            depth=role.depth + 1,
            work=child.work,
            outer=self._clock,
            traceparent=role.traceparent,
        )

    async def _ended(self, child: _Child, end: TurnEnd) -> DownMessage:
        """Say how it ended, journal it, and return the answer to who ran it."""
        role, name, call_id = self._role, child.entry.name, child.message.call_id
        error, result = end.error, end.result if end.plan is None else end.plan.to_dict()
        if child.cancelled is not None:
            error = CancelledRunError(f"the sub-agent was cancelled: {child.cancelled}")
        elif error is None and result is None:
            error = InternalError("the sub-agent ended without a result")
        with self._clock.stopped():
            if error is None:
                await role.events.completed(name, result or {}, end.seconds, child.context)
            elif child.turn is not None:
                _log.warning("sub-agent failed", agent=name, code=error.code)
                await role.events.failed(name, error, child.context)
            encoded = b"" if error is not None else orjson.dumps(result)
            final = error is None or isinstance(error, AgentFailedError)
            if final and len(encoded) <= MAX_JOURNALED_BYTES:
                receipt = await self._stage.uplink.journal(
                    role.ledger.entry(child.journal_id, "agent", name, child.arguments_hash, encoded, error)
                )
                await _durable_or_left(receipt, child)
        self._clock.spoke()
        return AgentReply(call_id, result or {}) if error is None else Refused(call_id, error.to_dict())


async def _durable_or_left(receipt: Receipt | None, child: _Child) -> None:
    """Wait until its entry is stored, or nobody waits for its answer: whoever ends may wait for its task."""
    if receipt is None:
        return
    left = asyncio.create_task(child.left.wait(), name="leave of a sub-agent")
    signals: set[asyncio.Future[Any]] = {receipt, left}
    try:
        await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()


def _allowed(
    name: str, own: Mapping[str, Tool], parents: Mapping[str, Tool], chosen: Iterable[str] | None
) -> dict[str, Tool]:
    """The tools of the class that its parent has too; of them those that were chosen.

    Raises:
        UnknownToolError: One was chosen that the class does not have.
        ToolPermissionError: One was chosen that its parent does not have.
    """
    for wanted in chosen or ():
        if wanted not in own:
            known = ", ".join(own) or "none"
            raise UnknownToolError(
                f"agent {name} has no tool {wanted[:64]!r}", advice=f"its tools: {known}", tool_name=wanted[:64]
            )
        if wanted not in parents:
            raise ToolPermissionError(
                f"tool {wanted[:64]} is not among those of the agent that runs {name}",
                advice="a sub-agent may have fewer tools than who runs it, never others",
                tool_name=wanted[:64],
            )
    taken = own if chosen is None else frozenset(chosen)
    return {label: tool for label, tool in own.items() if label in parents and label in taken}
