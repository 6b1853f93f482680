"""``UnifiedToolDispatcher``: every tool call of one agent's turn passes here before its body runs, and again after it.

It checks name, arguments and the user's permission, bounds how many run at once and how long, tells the user
(``tool_executing``, ``tool_completed``), keeps the audit trail and the journal. Where a body runs is the host's choice.

A call that is refused (unknown, not allowed, wrong arguments) never began: its user sees one ``tool_completed`` with
status ``error`` and no ``tool_executing``, the audit trail gets DENIED, and the agent gets a typed error.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from carrel.errors import (
    CancelledRunError,
    CarrelError,
    LimitExceededError,
    ProtocolError,
    ToolPermissionError,
    ToolTimeoutError,
    UnknownToolError,
)
from carrel.tools import Tool
from servicekit.telemetry.gen_ai import tool_call
from servicekit.telemetry.tracing import NO_TRACING, Tracing, carried
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.calls import Asked, CallLedger, ToolCall, hash_arguments, permits
from services.agent_instance.domain.deliveries import Deliveries, Result
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.ports import Uplink
from services.agent_instance.domain.questions import StageQuestions, approval_question, denial
from services.agent_instance.domain.statistics import ToolStatistics
from services.agent_instance.domain.tool_reports import ToolReports
from services.agent_instance.models import JournalItem

__all__ = ["BodyRunner", "DispatchStrategy", "TurnTools", "UnifiedToolDispatcher", "UnifiedToolDispatcherFactory"]


class DispatchStrategy(enum.StrEnum):
    """How many of a turn's calls run at once: one after another in their order, or several."""

    SEQUENTIAL = "sequential"
    CONCURRENT = "concurrent"


class BodyRunner(Protocol):
    """Runs the bodies of calls that were admitted."""

    async def begin(self, call: ToolCall) -> None:
        """Start the body; its end comes by ``UnifiedToolDispatcher.ended``."""

    async def stop(self, call: ToolCall) -> None:
        """Stop the body; nobody waits for it any more."""

    async def finished(self, call: ToolCall) -> None:
        """The body has ended or was stopped: end what it left open."""

    def overdue(self, call: ToolCall, error: CarrelError) -> None:
        """Have the call stopped with this error, in a task of the runner's own (called by a timer)."""

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that ends with the turn."""


@dataclass(frozen=True, slots=True)
class TurnTools:
    """What a dispatcher works with. ``permissions`` gives those of the newest verified ticket.

    ``declared``: names of the tools that the agent's class has, whether or not it was given them. ``away``: why a tool
    that there is not may be there later. ``whose``: "" for the stage's agent, a word for one that answers in its place
    (``StageQuestions.ask_id``). ``traceparent``: the turn's, of which each call is a part.
    """

    agent_name: str
    permissions: Callable[[], frozenset[str]]
    events: StageEvents
    uplink: Uplink
    ledger: CallLedger
    clock: ActivityClock
    runner: BodyRunner
    questions: StageQuestions
    declared: frozenset[str] = frozenset()
    away: Callable[[str], CarrelError | None] = lambda _name: None
    whose: str = ""
    tracing: Tracing = NO_TRACING
    traceparent: str = ""


class UnifiedToolDispatcher:
    """The calls of one turn. Made by ``UnifiedToolDispatcherFactory``; not for use from several turns.

    Args:
        max_running: How many bodies run at once. Calls from within a body are not counted: they could wait for ever.
        max_open: How many calls may be open, waiting ones included.
    """

    def __init__(
        self, turn: TurnTools, *, max_running: int, max_open: int, statistics: ToolStatistics | None = None
    ) -> None:
        self._turn = turn
        self._max_running = max_running
        self._max_open = max_open
        self._calls: dict[str, ToolCall] = {}
        self._keys: dict[tuple[int, int], str] = {}
        self._waiting: deque[ToolCall] = deque()
        self._running = 0
        self._closed = False
        self._deliveries = Deliveries(turn.clock, self._deliver, turn.runner.start_task)
        self._reports = ToolReports(
            turn.agent_name, turn.events, turn.uplink, turn.ledger, turn.clock, statistics or ToolStatistics()
        )

    @property
    def open_calls(self) -> int:
        """Calls whose callers have no answer yet: running, waiting, and ended but not stored by execution."""
        return len(self._calls) + len(self._deliveries)

    async def request(self, asked: Asked) -> None:
        """A caller asks for a tool; it is answered by ``asked.reply``, at once when the call is refused.

        Raises:
            ProtocolError: The caller has an open call of that number.
        """
        if asked.key in self._keys:
            raise ProtocolError("a tool call with the number of another one that is open")
        digest = hash_arguments(asked.arguments)
        try:
            tool = self._checked(asked)
        except CarrelError as error:
            await self._refuse(asked, error, digest)
            return
        name = self._turn.ledger.name_tool_call(tool.name, digest, within=asked.scope.within)
        call = ToolCall(asked, tool, name, digest, asked.scope.in_call, time.time(), time.monotonic())
        if name.earlier is not None:
            await self._replay(call, name.earlier)
            return
        if tool.approval and not await self._approved(call):
            return
        self._calls[call.call_id] = call
        self._keys[asked.key] = call.call_id
        if call.nested or self._running < self._max_running:
            await self._begin(call)
        else:
            self._waiting.append(call)

    async def ended(self, call_id: str, value: Any, error: CarrelError | None) -> None:
        """A body has ended, or is to be taken for ended. Only the first end of a call counts.

        Who called is told, and another call takes its place, once its journal entry is durable; that is not waited for.
        """
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        self._keys.pop(call.asked.key, None)
        if call.timer is not None:
            call.timer.cancel()
        if call.pending is not None:
            self._turn.questions.withdraw(call.pending)
        if not call.running:
            with suppress(ValueError):
                self._waiting.remove(call)
            await self._deliver(Result(call, value, error, None))
            return
        self._turn.clock.tool_ended(call_id)
        if error is not None:
            call.span.fail(error.code)
        call.span.end()
        await self._turn.runner.finished(call)
        with carried(call.span.traceparent):
            receipt = await self._reports.completed(call, value, error)
        await self._deliveries.add(Result(call, value, error, receipt))

    async def _deliver(self, result: Result) -> None:
        call = result.call
        if call.running:
            self._running -= not call.nested
        await call.asked.reply(result.value, result.error)
        while self._waiting and self._running < self._max_running and not self._closed:
            await self._begin(self._waiting.popleft())
        if call.work is not None:
            # Last, so that a question finds those that waited for this one's place under way.
            self._turn.questions.end(call.work)

    async def stop(self, call_id: str, error: CarrelError) -> None:
        """End a call from outside: its time is over, or nobody waits for it."""
        call = self._calls.get(call_id)
        if call is not None:
            if call.running:
                await self._turn.runner.stop(call)
            await self.ended(call_id, None, error)

    async def give_up(self, key: tuple[int, int]) -> None:
        """The caller has left."""
        call_id = self._keys.get(key)
        if call_id is not None:
            await self.stop(call_id, CancelledRunError("the caller of the tool no longer waits for it"))

    async def stop_all(self, call_ids: Iterable[str], error: CarrelError) -> None:
        """End these calls, those that wait first, so that no end begins another."""
        known = [self._calls[call_id] for call_id in call_ids if call_id in self._calls]
        self._withdraw(known)
        for call in sorted(known, key=lambda c: c.running):
            await self.stop(call.call_id, error)

    def calls_in(self, handles: frozenset[int]) -> list[str]:
        """The open calls that were made in these contexts."""
        return [call.call_id for call in self._calls.values() if call.scope.handle in handles]

    def abandon(self) -> None:
        """Forget what is open, without a word to anybody: the attempt is being killed."""
        self._closed = True
        for call in self._calls.values():
            call.span.end()
            if call.timer is not None:
                call.timer.cancel()
        for call in (*self._calls.values(), *self._deliveries.drop()):
            if call.work is not None:
                self._turn.questions.end(call.work, settle=False)
        self._withdraw(self._calls.values())
        self._calls.clear()
        self._keys.clear()
        self._waiting.clear()

    async def aclose(self) -> None:
        """End what is open; nothing begins any more. Idempotent."""
        self._closed = True
        await self.stop_all(list(self._calls), CancelledRunError("the agent has ended, and its tool calls with it"))
        for call in self._deliveries.drop():
            if call.work is not None:
                self._turn.questions.end(call.work)

    def _withdraw(self, calls: Iterable[ToolCall]) -> None:
        """None of these calls' questions may be the one that the attempt ends for: all end now."""
        for call in calls:
            if call.pending is not None:
                self._turn.questions.withdraw(call.pending, settle=False)

    def _checked(self, asked: Asked) -> Tool:
        if self._closed:
            raise CancelledRunError("the agent is ending; no further tool is started")
        tool = asked.scope.tools.get(asked.tool_name)
        if tool is None:
            known, shown = ", ".join(asked.scope.tools) or "none", asked.tool_name[:64]
            if (away := self._turn.away(asked.tool_name)) is not None:
                raise away
            if asked.tool_name in self._turn.declared:
                raise UnknownToolError(
                    f"the tool {shown} was not given to this context",
                    advice=f"give it the tool where it is opened, or where the agent is run; its tools: {known}",
                    tool_name=shown,
                )
            raise UnknownToolError(f"there is no tool {shown!r} here", advice=f"its tools: {known}", tool_name=shown)
        if not permits(self._turn.permissions(), tool.permission):
            raise ToolPermissionError(
                f"the tool {tool.name} needs the permission {tool.permission}",
                advice="ask an operator for the permission",
                tool_name=tool.name,
                permission=tool.permission,
            )
        if self.open_calls >= self._max_open:
            raise LimitExceededError(
                f"{self._max_open} tool calls are open",
                advice="wait for some of them before calling more",
                limit="open_tool_calls",
                limit_value=self._max_open,
                use=self.open_calls,
            )
        tool.check_arguments(asked.arguments)
        return tool

    async def _refuse(self, asked: Asked, error: CarrelError, arguments_hash: str, call_id: str = "") -> None:
        await self._reports.refused(asked, error, arguments_hash, call_id)
        await asked.reply(None, error)

    async def _replay(self, call: ToolCall, earlier: JournalItem) -> None:
        value = await self._reports.replayed(call, earlier)
        await call.asked.reply(value, earlier.error)

    async def _approved(self, call: ToolCall) -> bool:
        """Whether the user has allowed the call; otherwise it is refused, or waits for the user to be asked."""
        turn, questions = self._turn, self._turn.questions
        input_id = questions.approval_id(turn.whose, call.call_id, call.arguments_hash)
        answer = questions.take(input_id, call.arguments_hash)
        if answer is None:
            question = approval_question(input_id, call.tool, call.asked.arguments, call.arguments_hash)
            call.pending = questions.ask(question, call.scope.work, turn.clock.stopped())
            self._calls[call.call_id] = call
            self._keys[call.asked.key] = call.call_id
            return False
        denied = denial(call.tool, answer)
        if denied is not None:
            await self._refuse(call.asked, denied, call.arguments_hash, call.call_id)
        return denied is None

    async def _begin(self, call: ToolCall) -> None:
        call.running = True
        self._running += not call.nested
        call.work = self._turn.questions.begin(call.scope.work, lambda held: self._hold(call, held))
        turn = self._turn
        if turn.traceparent:
            name, attributes = tool_call(call.tool.name, call.call_id, turn.agent_name)
            call.span = turn.tracing.span(name, attributes, parent=turn.traceparent)
        with carried(call.span.traceparent):
            await self._reports.executing(call)
        if call.call_id not in self._calls:
            return  # given up while its event waited for the log
        call.began, call.began_unix = time.monotonic(), time.time()
        self._turn.clock.spoke()
        self._turn.clock.tool_began(call.call_id, call.tool.timeout_s)
        self._start_timer(call)
        await self._turn.runner.begin(call)

    def _start_timer(self, call: ToolCall) -> None:
        seconds = call.tool.timeout_s
        late = ToolTimeoutError(
            f"the tool {call.tool.name} took longer than its {seconds:g} s",
            advice="ask it for less, or raise its timeout_s",
            tool_name=call.tool.name,
            limit_s=seconds,
        )
        call.timer = asyncio.get_running_loop().call_later(seconds, self._turn.runner.overdue, call, late)

    def _hold(self, call: ToolCall, held: bool) -> None:
        """No clock runs for a body that waits for its user; one that does no more begins with a fresh one."""
        if call.timer is not None:
            call.timer.cancel()
            if not held and call.call_id in self._calls:
                self._start_timer(call)


class UnifiedToolDispatcherFactory:
    """Makes a dispatcher for each turn of an agent, and counts them.

    Args:
        concurrency: How many calls of a turn run at once under ``CONCURRENT``.
        max_open: How many may be open at once, waiting ones included.
    """

    def __init__(
        self,
        strategy: DispatchStrategy = DispatchStrategy.CONCURRENT,
        *,
        concurrency: int = 8,
        max_open: int = 100,
    ) -> None:
        self._running = 1 if strategy is DispatchStrategy.SEQUENTIAL else concurrency
        self._open = max_open
        self.created = 0
        self.statistics = ToolStatistics()

    def create(self, turn: TurnTools) -> UnifiedToolDispatcher:
        """A dispatcher for one turn."""
        self.created += 1
        return UnifiedToolDispatcher(turn, max_running=self._running, max_open=self._open, statistics=self.statistics)
