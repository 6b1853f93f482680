"""The scripts' answers as the log's models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from services.bridge.models import Entry, Position
from services.bridge.store_redis_errors import not_usable

__all__ = ["entries_of", "position_of", "sound"]


@contextmanager
def sound() -> Iterator[None]:
    """Around what makes models of an answer.

    Raises:
        StoreUnavailableError: It holds what nobody of ours wrote; of one user only.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise not_usable(type(error).__name__) from error


def position_of(answer: list[Any]) -> Position:
    """The first five items of what ``look`` and ``read`` give."""
    epoch, top, oldest, event_id, mark = answer[:5]
    return Position(epoch.decode(), top, oldest, event_id.decode(), mark.decode())


def entries_of(chunks: Iterable[list[Any]], max_bytes: int) -> tuple[tuple[Entry, ...], str]:
    """Stream entries as the log's, none further once ``max_bytes`` are reached; and the last one's mark."""
    entries: list[Entry] = []
    size, stream_id = 0, b""
    for next_id, (_, event_id, _, blob) in itertools.chain.from_iterable(chunks):
        if size >= max_bytes:
            break
        stream_id = next_id
        entries.append(Entry(int(stream_id.partition(b"-")[0]), event_id.decode(), blob))
        size += len(blob)
    mark = f"{entries[-1].event_id} {stream_id.rpartition(b'-')[2].decode()}" if entries else ""
    return tuple(entries), mark
