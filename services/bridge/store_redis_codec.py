"""The scripts' answers as the log's models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.bridge.models import Entry, Position

__all__ = ["entries_of", "position_of"]


def position_of(answer: list[Any]) -> Position:
    """The first four items of what ``look`` and ``read`` give."""
    epoch, top, oldest, event_id = answer[:4]
    return Position(epoch.decode(), top, oldest, event_id.decode())


def entries_of(chunks: Iterable[list[Any]], max_bytes: int) -> tuple[Entry, ...]:
    """Stream entries as the log's, none further once ``max_bytes`` are reached."""
    entries: list[Entry] = []
    size = 0
    for chunk in chunks:
        for stream_id, (_, event_id, _, blob) in chunk:
            if size >= max_bytes:
                return tuple(entries)
            entries.append(Entry(int(stream_id.partition(b"-")[0]), event_id.decode(), blob))
            size += len(blob)
    return tuple(entries)
