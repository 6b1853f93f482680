"""A user's log as scripted gateways keep it, and how a connection to it begins: what the protocol says, and no more.

What goes wrong with it is the gateways' own: ``conformance.client.gateway``'s scripts are functions, others' are data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from conformance.client.frames import Frame

__all__ = ["Begun", "Kept"]


class Begun(NamedTuple):
    """How a connection begins: after which offset, with which window (0 for none), and what it is told of that."""

    at: int
    window: int
    frames: list[Frame]


@dataclass
class Kept:
    """Args:
    log: The entries that are committed.
    first: The offset of the oldest one that is kept.
    epoch: The log's.
    batch: Events in a frame, where the client takes batches.
    window: What is granted where the client acknowledges, 0 for nothing.
    heartbeat: Seconds between pings.
    """

    log: list[Frame] = field(default_factory=list)
    first: int = 1
    epoch: str = "epoch-1"
    batch: int = 1
    window: int = 0
    heartbeat: float = 30.0

    @property
    def top(self) -> int:
        """The last entry's offset."""
        return self.first - 1 + len(self.log)

    def id_at(self, offset: int) -> str:
        """The entry's id; that of the entry before the oldest one, which is not kept, is known all the same."""
        index = offset - self.first
        if 0 <= index < len(self.log):
            return str(self.log[index]["event_id"])
        return f"evt-{offset}" if offset else ""

    def after(self, offset: int, most: int) -> list[Frame]:
        """The entries that follow, as many as told."""
        start = offset + 1 - self.first
        return self.log[start : start + most]

    def start(self, resume: Frame | None) -> tuple[int, str]:
        """Where a connection with this position begins, and the reason for a ``reset``, empty for none."""
        oldest = self.first - 1
        if resume is None:
            return self.top, ""
        offset = resume["offset"]
        if not offset and not resume.get("epoch"):
            return oldest, ""
        if resume.get("epoch") != self.epoch:
            return oldest, "epoch_changed"
        if offset > self.top:
            return oldest, "beyond_top"
        if offset < oldest:
            return oldest, "trimmed"
        if offset and resume.get("event_id") != self.id_at(offset):
            return oldest, "event_mismatch"
        return offset, ""

    def begin(self, connect: Frame, number: int) -> Begun:
        """What a connection is told first."""
        resume, ask = connect.get("resume"), connect.get("ack")
        at, reason = self.start(resume)
        window = 0
        if ask and self.window:
            window = min(self.window, ask.get("window", self.window) if isinstance(ask, dict) else self.window)
        connected: Frame = {
            "type": "connected",
            "connection_id": f"conn-{number}",
            "epoch": self.epoch,
            "offset": at,
            "event_id": self.id_at(at),
            "recovered": resume is not None and not reason,
            "heartbeat": self.heartbeat,
        }
        if window:
            connected["ack_window"] = window
        if connect.get("compress"):
            connected["compression"] = "gzip-hex"
        reset = {"type": "reset", "reason": reason, "epoch": self.epoch, "offset": at}
        return Begun(at, window, [connected, reset] if reason else [connected])

    def of_thread(self, events: list[Frame], thread_id: str) -> list[list[Frame] | Frame]:
        """The events as one thread's connection gets them: its own, together; and ``through`` past others'."""
        if not thread_id:
            return [events]
        parts: list[list[Frame] | Frame] = []
        mine: list[Frame] = []
        passed: Frame | None = None
        for item in events:
            if item["thread_id"] == thread_id:
                if passed is not None:
                    parts.append(self._through(passed))
                mine, passed = [*mine, item], None
                continue
            if mine:
                parts.append(mine)
            mine, passed = [], item
        # Told at the end, too, though a gateway may wait for the thread's next event.
        parts += [mine] if mine else []
        return [*parts, self._through(passed)] if passed is not None else parts

    def _through(self, item: Frame) -> Frame:
        return {"type": "through", "epoch": self.epoch, "offset": item["offset"], "event_id": item["event_id"]}
