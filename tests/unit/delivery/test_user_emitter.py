"""The documents' notifications by name: each is a valid event of its kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
import pytest

from carrel.errors import AgentFailedError, ToolTimeoutError
from carrel.events import validate_event
from servicekit.delivery import Producer, UserWebSocketEmitter
from tests.unit.delivery.scripted import Hop

CALLS: dict[str, Callable[[UserWebSocketEmitter], Awaitable[int]]] = {
    "agent_started": lambda e: e.notify_agent_started("profiles the trace"),
    "agent_thinking": lambda e: e.notify_agent_thinking("reading", rows=8819),
    "tool_executing": lambda e: e.notify_tool_executing("load_trace", "call-1", {"path": "trace.csv"}),
    "tool_completed": lambda e: e.notify_tool_completed("load_trace", "call-1", duration_ms=3.5, result=[1, 2]),
    "agent_completed": lambda e: e.notify_agent_completed({"rows": 8819}, duration_ms=12.0),
    "agent_error": lambda e: e.notify_agent_error(AgentFailedError("it failed", advice="try again", retry_after_s=2)),
}


@pytest.mark.parametrize("kind", CALLS)
async def test_each_notification_is_a_valid_event_of_its_kind(hop: Hop, producer: Producer, kind: str) -> None:
    emitter = UserWebSocketEmitter(producer, "data")
    assert await CALLS[kind](emitter) == 1
    assert await emitter.flush(1) == 1
    event = hop.log["u1", "p1"][0]
    assert (event.event_type, event.agent_name) == (kind, "data")
    validate_event(kind, orjson.loads(event.data))


async def test_a_failed_tool_call_says_so_with_its_error(hop: Hop, producer: Producer) -> None:
    emitter = UserWebSocketEmitter(producer, "data")
    await emitter.notify_tool_completed("t", "c", duration_ms=1.0, error=ToolTimeoutError("too slow"))
    await emitter.flush(1)
    data = orjson.loads(hop.log["u1", "p1"][0].data)
    assert data["status"] == "error"
    assert data["error"]["code"] == "TOOL_TIMEOUT"
    assert "result" not in data
