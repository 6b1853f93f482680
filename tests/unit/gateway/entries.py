"""Log entries for tests."""

from __future__ import annotations

from carrel.v1 import events_pb2


def entry(offset: int, *, thread: str = "thread-1", data: bytes = b'{"text":"hello"}') -> events_pb2.LogEntry:
    """The entry at an offset; its event_id is ``evt-<offset>``."""
    made = events_pb2.LogEntry(
        offset=offset,
        event_id=f"evt-{offset}",
        event_type="agent_thinking",
        agent_name="data",
        thread_id=thread,
        run_id="run-1",
        request_id="req-1",
        attempt=1,
        data=data,
    )
    made.timestamp.FromJsonString("2026-01-02T03:04:05.678901Z")
    return made


def entries(first: int, last: int) -> list[events_pb2.LogEntry]:
    """Consecutive entries."""
    return [entry(offset) for offset in range(first, last + 1)]
