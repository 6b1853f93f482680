"""What a scripted gateway sends: events, batches, and the ways in which a connection ends instead."""

from __future__ import annotations

import enum
import gzip
import json
from typing import Any

__all__ = ["TOKEN", "Cut", "Frame", "Sent", "batch", "event"]

Frame = dict[str, Any]
TOKEN = "a.good.token"


class Cut(enum.Enum):
    """Ends the connection where a frame is due: at its beginning, in its middle, or not at all but with silence."""

    BEFORE = enum.auto()
    HALFWAY = enum.auto()
    SILENCE = enum.auto()


Sent = Frame | str | Cut


def event(offset: int, **changes: Any) -> Frame:
    """A log event."""
    body: Frame = {
        "event_type": "agent_thinking",
        "event_id": f"evt-{offset}",
        "offset": offset,
        "user_id": "alice",
        "thread_id": "thread-1",
        "run_id": "run-1",
        "request_id": "req-1",
        "agent_name": "data",
        "attempt": 1,
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "data": {"text": f"text {offset} ä\u2028"},
    }
    return body | changes


def batch(events: list[Frame], *, compress: bool) -> Frame:
    """Several events as one frame."""
    frame: Frame = {"event_type": "event_batch", "batch_size": len(events), "compressed": compress}
    if not compress:
        return frame | {"events": events}
    data = json.dumps(events).encode()
    packed = gzip.compress(data)
    sizes = {"original_size": len(data), "compressed_size": len(packed)}
    return frame | {"events_compressed": packed.hex()} | sizes
