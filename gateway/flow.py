"""What a connection's writer is made with: how it writes, through what, and what of the log it has not sent yet.

Values and protocols only; the writing is outflow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.encoding import Frame

__all__ = ["Flow", "Pipe", "Rest", "Stalled", "Waker"]


class Stalled(Exception):  # noqa: N818 -- an outcome, and no error of ours
    """The peer has taken nothing for the delivery timeout."""


class Pipe(Protocol):
    """The way to the peer; asyncio's transports are one."""

    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def is_closing(self) -> bool: ...


class Waker(Protocol):
    """Tells the writer that there may be something to write."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Flow:
    """How a connection is written to.

    Args:
        batch: Several events that are due together go as one ``event_batch``.
        stall_s: How long a full buffer may go without shrinking.
        full_bytes: What the transport may hold before writing waits.
        ack_s: How long a full window may go without an acknowledgement.
        compress: Batches are compressed where that saves enough.
        deflate_bits: The window of permessage-deflate; 0 without it.
    """

    batch: bool = False
    stall_s: float = 5.0
    full_bytes: int = 64 * 1024
    ack_s: float = 5.0
    compress: bool = False
    deflate_bits: int = 0


@dataclass(slots=True)
class Rest:
    """What has been read of the log and not been sent: ``frames[at:]``."""

    frames: Sequence[Frame]
    at: int = 0

    def take(self, most_events: int, most_bytes: int) -> Sequence[Frame]:
        """The next of them, one at least."""
        frames, first = self.frames, self.at
        last, size = first, 0
        while last < len(frames) and last - first < most_events:
            size += len(frames[last].wire)
            if size > most_bytes and last > first:
                break
            last += 1
        self.at = last
        return frames[first:last]
