"""Whether what is read follows what a reader has seen, entry on entry; and if not, where it goes on. A pure rule.

An offset alone says too little: a log may lose its tail and use the offsets again. So the mark of what a reader has
seen last is compared with that of what now lies at its offset, wherever the log can tell.
"""

from __future__ import annotations

from typing import NamedTuple

from services.bridge.models import Entry, ReadResult, ResetReason, ResumePoint

__all__ = ["Break", "break_of", "following", "mark_after"]


class Break(NamedTuple):
    """The reader must be told ``reason``, and goes on after ``point``."""

    reason: ResetReason
    point: ResumePoint


def break_of(point: ResumePoint, read: ReadResult) -> Break | None:
    """Why ``read``, which was asked for after ``point``, does not follow it; None when it does.

    ``point.mark`` may be empty: then the reader has seen nothing that could be compared.
    """
    position, anchor = read.position, read.anchor
    start = ResumePoint(position.epoch, position.oldest - 1, "")
    changed = position.epoch != point.epoch
    if position.top < point.offset:
        return Break(ResetReason.EPOCH_CHANGED if changed else ResetReason.BEYOND_TOP, start)
    if read.trimmed:
        return Break(ResetReason.TRIMMED, start)
    if anchor is not None and point.offset and point.mark and anchor != point.mark:
        # Nobody can say any more what was there when it is gone: the oldest entry is the next one then.
        reason = ResetReason.TRIMMED if not anchor else ResetReason.EVENT_MISMATCH
        return Break(ResetReason.EPOCH_CHANGED if changed else reason, start)
    if position.top > point.offset and not (read.entries and read.entries[0].offset == point.offset + 1):
        # A hole, which nothing of ours makes: the reader goes on with the next entry that is there, and is told.
        return Break(ResetReason.EPOCH_CHANGED if changed else ResetReason.TRIMMED, _before_next(read))
    if changed:
        return Break(ResetReason.EPOCH_CHANGED, point._replace(epoch=position.epoch))
    return None


def following(point: ResumePoint, read: ReadResult) -> tuple[Entry, ...]:
    """The first entries of ``read``, as many as come right after ``point`` without a hole.

    What is not among them must be read again.
    """
    entries = read.entries
    for n, entry in enumerate(entries, 1):
        if entry.offset != point.offset + n:
            return entries[: n - 1]
    return entries


def mark_after(entries: tuple[Entry, ...], read: ReadResult) -> str:
    """The mark of the last of ``entries``, the first ones of ``read``; empty when that is not known."""
    return read.mark if len(entries) == len(read.entries) else ""


def _before_next(read: ReadResult) -> ResumePoint:
    position = read.position
    if read.entries:
        return ResumePoint(position.epoch, read.entries[0].offset - 1, "")
    return ResumePoint(position.epoch, position.top, position.event_id, position.mark)
