"""``ToolReports``: what a tool call's beginning and end mean for its user, the audit trail and the journal.

Which calls there are and when they begin and end is ``dispatcher``'s.
"""

from __future__ import annotations

import time
from typing import Any, Final

import orjson

from carrel.errors import CancelledRunError, CarrelError, ToolFailedError, ToolTimeoutError
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.calls import Asked, CallLedger, ToolCall
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.ports import Uplink
from services.agent_instance.domain.receipts import Receipt
from services.agent_instance.domain.statistics import ToolStatistics
from services.agent_instance.models import AuditEntry, AuditOutcome, JournalItem

__all__ = ["MAX_INLINE_RESULT_BYTES", "MAX_JOURNALED_BYTES", "ToolReports"]

MAX_INLINE_RESULT_BYTES: Final = 24 * 1024
MAX_JOURNALED_BYTES: Final = 1024 * 1024


class ToolReports:
    """Reports one turn's tool calls. The agent's clock stands still while the log or the stream is slow."""

    def __init__(
        self,
        agent_name: str,
        events: StageEvents,
        uplink: Uplink,
        ledger: CallLedger,
        clock: ActivityClock,
        statistics: ToolStatistics,
    ) -> None:
        self._statistics = statistics
        self._agent_name = agent_name
        self._events = events
        self._uplink = uplink
        self._ledger = ledger
        self._clock = clock

    async def refused(self, asked: Asked, error: CarrelError, arguments_hash: str, call_id: str = "") -> None:
        """A call that never began."""
        name = asked.tool_name[:64]
        self._statistics.ended[AuditOutcome.DENIED.value] += 1
        data = {
            "tool_name": name,
            "tool_call_id": call_id or self._ledger.refused_id(),
            "attempt": self._events.attempt,
            "status": "error",
            "denied": True,
            "duration_ms": 0,
            "error": _told(error),
        }
        record = self._record(
            asked, name, AuditOutcome.DENIED, error, arguments_hash, began_unix=time.time(), seconds=0.0
        )
        with self._clock.stopped():
            await self._events.emit("tool_completed", data, self._agent_name, asked.scope.context)
            await self._uplink.audit(record)
        self._clock.spoke()

    async def executing(self, call: ToolCall, *, replayed: bool = False) -> None:
        """The body is about to run."""
        data = {**self._names(call), "arguments": dict(call.asked.arguments)}
        if replayed:
            data["replayed"] = True
        with self._clock.stopped():
            await self._events.emit("tool_executing", data, self._agent_name, call.scope.context)

    async def completed(self, call: ToolCall, value: Any, error: CarrelError | None) -> Receipt | None:
        """The body has ended, or was stopped. Its caller is told when the receipt, if there is one, is done."""
        receipt: Receipt | None = None
        seconds = time.monotonic() - call.began
        result = b"" if error is not None else orjson.dumps(value)
        outcome = AuditOutcome.SUCCEEDED if error is None else AuditOutcome.FAILED
        self._statistics.ended[outcome.value] += 1
        self._statistics.seconds.add(seconds)
        record = self._record(
            call.asked,
            call.tool.name,
            outcome,
            error,
            call.arguments_hash,
            began_unix=call.began_unix,
            seconds=seconds,
        )
        with self._clock.stopped():
            await self._say_end(call, value, result, error, seconds)
            if (error is None or isinstance(error, ToolFailedError)) and len(result) <= MAX_JOURNALED_BYTES:
                name = call.name.journal_id
                receipt = await self._uplink.journal(
                    self._ledger.entry(name, "tool", call.tool.name, call.arguments_hash, result, error)
                )
            await self._uplink.audit(record)
        self._clock.spoke()
        return receipt

    async def replayed(self, call: ToolCall, earlier: JournalItem) -> Any:
        """The call ended in an earlier attempt: says it again, since that one's events may not have got far, and
        returns the result. It has its audit record already."""
        await self.executing(call, replayed=True)
        value = None if earlier.error is not None else orjson.loads(earlier.result)
        with self._clock.stopped():
            await self._say_end(call, value, earlier.result, earlier.error, 0.0, replayed=True)
        self._clock.spoke()
        return value

    async def _say_end(
        self,
        call: ToolCall,
        value: Any,
        result: bytes,
        error: CarrelError | None,
        seconds: float,
        *,
        replayed: bool = False,
    ) -> None:
        data: dict[str, Any] = {
            **self._names(call),
            "status": _status(error),
            "duration_ms": round(seconds * 1000, 3),
        }
        if replayed:
            data["replayed"] = True
        if error is None:
            data["result"] = await self._shown(call, value, result)
        else:
            data["error"] = _told(error)
        await self._events.emit("tool_completed", data, self._agent_name, call.scope.context)

    async def _shown(self, call: ToolCall, value: Any, result: bytes) -> Any:
        if len(result) <= MAX_INLINE_RESULT_BYTES or not self._events.heard_of:
            return value
        name = f"{call.call_id}-{self._events.attempt}.json"
        return {"artifact": await self._events.put_aside(name, result)}

    def _names(self, call: ToolCall) -> dict[str, Any]:
        return {"tool_name": call.tool.name, "tool_call_id": call.call_id, "attempt": self._events.attempt}

    def _record(
        self,
        asked: Asked,
        target: str,
        outcome: AuditOutcome,
        error: CarrelError | None,
        arguments_hash: str,
        *,
        began_unix: float,
        seconds: float,
    ) -> AuditEntry:
        return AuditEntry(
            context=asked.scope.context,
            agent_name=self._agent_name,
            action="tool.call",
            target=target,
            outcome=outcome,
            error_code="" if error is None else error.code,
            started_at=began_unix,
            duration_s=seconds,
            arguments_hash=arguments_hash,
        )


def _status(error: CarrelError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, ToolTimeoutError):
        return "timeout"
    return "cancelled" if isinstance(error, CancelledRunError) else "error"


def _told(error: CarrelError) -> dict[str, Any]:
    told = error.to_dict()
    return {name: told[name] for name in ("code", "message", "advice", "retryable", "details") if name in told}
