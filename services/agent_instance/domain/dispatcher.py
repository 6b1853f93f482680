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
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from carrel.errors import (
    CancelledRunError,
    CarrelError,
    LimitExceededError,
    ProtocolError,
    ToolFailedError,
    ToolPermissionError,
    ToolTimeoutError,
    UnknownToolError,
)
from carrel.tools import Tool
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.calls import Asked, CallLedger, ToolCall, hash_arguments, permits
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.ports import Uplink
from services.agent_instance.models import AuditEntry, AuditOutcome

__all__ = ["BodyRunner", "DispatchStrategy", "TurnTools", "UnifiedToolDispatcher", "UnifiedToolDispatcherFactory"]

MAX_INLINE_RESULT_BYTES: Final = 24 * 1024
MAX_JOURNALED_BYTES: Final = 1024 * 1024


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


@dataclass(frozen=True, slots=True)
class TurnTools:
    """What a dispatcher works with. ``permissions`` gives those of the newest verified ticket."""

    agent_name: str
    permissions: Callable[[], frozenset[str]]
    events: StageEvents
    uplink: Uplink
    ledger: CallLedger
    clock: ActivityClock
    runner: BodyRunner


class UnifiedToolDispatcher:
    """The calls of one turn. Made by ``UnifiedToolDispatcherFactory``; not for use from several turns.

    Args:
        max_running: How many bodies run at once. Calls from within a body are not counted: they could wait for ever.
        max_open: How many calls may be open, waiting ones included.
    """

    def __init__(self, turn: TurnTools, *, max_running: int, max_open: int) -> None:
        self._turn = turn
        self._max_running = max_running
        self._max_open = max_open
        self._calls: dict[str, ToolCall] = {}
        self._keys: dict[tuple[int, int], str] = {}
        self._waiting: deque[ToolCall] = deque()
        self._running = 0
        self._closed = False

    @property
    def open_calls(self) -> int:
        """Calls that have not ended: running and waiting."""
        return len(self._calls)

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
        name = self._turn.ledger.next_name(tool.name)
        call = ToolCall(asked, tool, name, digest, asked.scope.in_call, time.time(), time.monotonic())
        self._calls[call.call_id] = call
        self._keys[asked.key] = call.call_id
        if call.nested or self._running < self._max_running:
            await self._begin(call)
        else:
            self._waiting.append(call)

    async def ended(self, call_id: str, value: Any, error: CarrelError | None) -> None:
        """A body has ended, or is to be taken for ended. Only the first end of a call counts."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        self._keys.pop(call.asked.key, None)
        if call.timer is not None:
            call.timer.cancel()
        if call.running:
            self._running -= not call.nested
            self._turn.clock.tool_ended(call_id)
            await self._turn.runner.finished(call)
            await self._report(call, value, error)
        else:
            with suppress(ValueError):
                self._waiting.remove(call)
        await call.asked.reply(value, error)
        while self._waiting and self._running < self._max_running and not self._closed:
            await self._begin(self._waiting.popleft())

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
        for call in sorted(known, key=lambda c: c.running):
            await self.stop(call.call_id, error)

    def calls_in(self, handles: frozenset[int]) -> list[str]:
        """The open calls that were made in these contexts."""
        return [call.call_id for call in self._calls.values() if call.scope.handle in handles]

    def abandon(self) -> None:
        """Forget what is open, without a word to anybody: the attempt is being killed."""
        self._closed = True
        for call in self._calls.values():
            if call.timer is not None:
                call.timer.cancel()
        self._calls.clear()
        self._keys.clear()
        self._waiting.clear()

    async def aclose(self) -> None:
        """End what is open; nothing begins any more. Idempotent."""
        self._closed = True
        await self.stop_all(list(self._calls), CancelledRunError("the agent has ended, and its tool calls with it"))

    def _checked(self, asked: Asked) -> Tool:
        if self._closed:
            raise CancelledRunError("the agent is ending; no further tool is started")
        tool = asked.scope.tools.get(asked.tool_name)
        if tool is None:
            known, shown = ", ".join(asked.scope.tools) or "none", asked.tool_name[:64]
            raise UnknownToolError(f"there is no tool {shown!r} here", advice=f"its tools: {known}", tool_name=shown)
        if not permits(self._turn.permissions(), tool.permission):
            raise ToolPermissionError(
                f"the tool {tool.name} needs the permission {tool.permission}",
                advice="ask an operator for the permission",
                tool_name=tool.name,
                permission=tool.permission,
            )
        if len(self._calls) >= self._max_open:
            raise LimitExceededError(
                f"{self._max_open} tool calls are open",
                advice="wait for some of them before calling more",
                limit="open_tool_calls",
                limit_value=self._max_open,
                use=len(self._calls),
            )
        tool.check_arguments(asked.arguments)
        return tool

    async def _refuse(self, asked: Asked, error: CarrelError, arguments_hash: str) -> None:
        name = asked.tool_name[:64]
        data = {
            "tool_name": name,
            "tool_call_id": self._turn.ledger.refused_id(),
            "attempt": self._turn.events.attempt,
            "status": "error",
            "denied": True,
            "duration_ms": 0,
            "error": _told(error),
        }
        record = AuditEntry(
            context=asked.scope.context,
            agent_name=self._turn.agent_name,
            action="tool.call",
            target=name,
            outcome=AuditOutcome.DENIED,
            error_code=error.code,
            started_at=time.time(),
            duration_s=0.0,
            arguments_hash=arguments_hash,
        )
        with self._turn.clock.stopped():
            await self._turn.events.emit("tool_completed", data, self._turn.agent_name, asked.scope.context)
            await self._turn.uplink.audit(record)
        self._turn.clock.spoke()
        await asked.reply(None, error)

    async def _begin(self, call: ToolCall) -> None:
        call.running = True
        self._running += not call.nested
        data = {
            "tool_name": call.tool.name,
            "tool_call_id": call.call_id,
            "attempt": self._turn.events.attempt,
            "arguments": dict(call.asked.arguments),
        }
        with self._turn.clock.stopped():
            await self._turn.events.emit("tool_executing", data, self._turn.agent_name, call.scope.context)
        if call.call_id not in self._calls:
            return  # given up while its event waited for the log
        seconds = call.tool.timeout_s
        call.began, call.began_unix = time.monotonic(), time.time()
        self._turn.clock.spoke()
        self._turn.clock.tool_began(call.call_id, seconds)
        late = ToolTimeoutError(
            f"the tool {call.tool.name} took longer than its {seconds:g} s",
            advice="ask it for less, or raise its timeout_s",
            tool_name=call.tool.name,
            limit_s=seconds,
        )
        call.timer = asyncio.get_running_loop().call_later(seconds, self._turn.runner.overdue, call, late)
        await self._turn.runner.begin(call)

    async def _report(self, call: ToolCall, value: Any, error: CarrelError | None) -> None:
        seconds = time.monotonic() - call.began
        result = b"" if error is not None else orjson.dumps(value)
        data: dict[str, Any] = {
            "tool_name": call.tool.name,
            "tool_call_id": call.call_id,
            "attempt": self._turn.events.attempt,
            "status": _status(error),
            "duration_ms": round(seconds * 1000, 3),
        }
        record = AuditEntry(
            context=call.scope.context,
            agent_name=self._turn.agent_name,
            action="tool.call",
            target=call.tool.name,
            outcome=AuditOutcome.SUCCEEDED if error is None else AuditOutcome.FAILED,
            error_code="" if error is None else error.code,
            started_at=call.began_unix,
            duration_s=seconds,
            arguments_hash=call.arguments_hash,
        )
        with self._turn.clock.stopped():
            if error is None:
                data["result"] = await self._shown(call, value, result)
            else:
                data["error"] = _told(error)
            await self._turn.events.emit("tool_completed", data, self._turn.agent_name, call.scope.context)
            if (error is None or isinstance(error, ToolFailedError)) and len(result) <= MAX_JOURNALED_BYTES:
                await self._turn.uplink.journal(self._turn.ledger.journal(call, result, error))
            await self._turn.uplink.audit(record)
        self._turn.clock.spoke()

    async def _shown(self, call: ToolCall, value: Any, result: bytes) -> Any:
        if len(result) <= MAX_INLINE_RESULT_BYTES:
            return value
        name = f"{call.call_id}-{self._turn.events.attempt}.json"
        return {"artifact": await self._turn.events.put_aside(name, result)}


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

    def create(self, turn: TurnTools) -> UnifiedToolDispatcher:
        """A dispatcher for one turn."""
        self.created += 1
        return UnifiedToolDispatcher(turn, max_running=self._running, max_open=self._open)


def _status(error: CarrelError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, ToolTimeoutError):
        return "timeout"
    return "cancelled" if isinstance(error, CancelledRunError) else "error"


def _told(error: CarrelError) -> dict[str, Any]:
    told = error.to_dict()
    return {name: told[name] for name in ("code", "message", "advice", "retryable", "details") if name in told}
