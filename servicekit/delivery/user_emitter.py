"""The documents' ``UserWebSocketEmitter``: their six notifications by name, for one user's run, over a ``Producer``.

A vocabulary and nothing more: what is sent, kept and sent again is the producer's; there is no second way to the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrel.errors import CarrelError
from servicekit.delivery.producer import Producer

__all__ = ["UserWebSocketEmitter"]


class UserWebSocketEmitter:
    """Emits one agent's events. Every method returns the event's number, and raises as ``Producer.emit`` does.

    Making one is the documents' ``WebSocketBridgeFactory.create_user_emitter``; that factory has no other work.
    """

    def __init__(self, producer: Producer, agent_name: str) -> None:
        self._producer = producer
        self._agent_name = agent_name

    async def notify_agent_started(self, description: str | None = None) -> int:
        """The agent has begun."""
        return await self._emit("agent_started", {"agent_name": self._agent_name, "description": description})

    async def notify_agent_thinking(self, text: str, **data: Any) -> int:
        """What the agent is at; 0 when it was left out because too much is under way."""
        return await self._emit("agent_thinking", {**data, "text": text})

    async def notify_tool_executing(
        self, tool_name: str, tool_call_id: str, arguments: Mapping[str, Any] | None = None
    ) -> int:
        """A tool call begins."""
        return await self._emit(
            "tool_executing", {"tool_name": tool_name, "tool_call_id": tool_call_id, "arguments": arguments}
        )

    async def notify_tool_completed(
        self,
        tool_name: str,
        tool_call_id: str,
        *,
        duration_ms: float,
        result: Any = None,
        error: CarrelError | None = None,
    ) -> int:
        """A tool call has ended: well with a result, or with an error."""
        return await self._emit(
            "tool_completed",
            {
                "tool_name": tool_name,
                "tool_call_id": tool_call_id,
                "status": "ok" if error is None else "error",
                "duration_ms": duration_ms,
                "result": result,
                "error": None if error is None else error.to_dict(),
            },
        )

    async def notify_agent_completed(
        self, result: Mapping[str, Any] | None = None, *, duration_ms: float | None = None
    ) -> int:
        """The agent has its result."""
        data = {"agent_name": self._agent_name, "result": result, "duration_ms": duration_ms}
        return await self._emit("agent_completed", data)

    async def notify_agent_error(self, error: CarrelError) -> int:
        """The agent has failed; the error says what the user can do."""
        told = {name: value for name, value in error.to_dict().items() if name != "status"}
        return await self._emit("agent_error", {**told, "agent_name": self._agent_name})

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until the log has everything; see ``Producer.flush``."""
        return await self._producer.flush(timeout)

    async def _emit(self, event_type: str, data: Mapping[str, Any]) -> int:
        present = {name: value for name, value in data.items() if value is not None}
        return await self._producer.emit(event_type, present, agent_name=self._agent_name)
