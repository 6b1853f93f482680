"""What was sent to a client that acknowledges, and is not acknowledged yet: bounded in events and in bytes.

Pure state: no clock, no socket. What is done while there is no room is the outflow's.
"""

from __future__ import annotations

from collections import deque

from carrel.errors import FrameError

__all__ = ["Window"]


class Window:
    """The send window of one connection.

    Args:
        most_events: How many events may be unacknowledged.
        most_bytes: The same in bytes; one event may always be sent, whatever its size.
    """

    __slots__ = ("_forgiving", "_pieces", "bytes", "events", "most_bytes", "most_events")

    def __init__(self, most_events: int, most_bytes: int) -> None:
        self.most_events = most_events
        self.most_bytes = most_bytes
        self.events = 0
        self.bytes = 0
        # (offset, bytes) of each: a filter leaves holes, so that offsets do not count events.
        self._pieces: deque[tuple[int, int]] = deque()
        self._forgiving = False

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent."""
        return self.events >= self.most_events or self.bytes >= self.most_bytes

    def sent(self, offset: int, size: int) -> None:
        """An event has gone out."""
        self._pieces.append((offset, size))
        self.events += 1
        self.bytes += size

    def acknowledge(self, offset: int, reached: int) -> bool:
        """Everything up to ``offset`` has arrived; one that comes late or twice changes nothing.

        Args:
            offset: What the client says.
            reached: How far the connection has been sent.

        Returns:
            Whether there is more room now.

        Raises:
            FrameError: Nothing with this offset was sent yet.
        """
        if offset > reached:
            if self._forgiving:
                # Of the log before the reset, which has crossed it on the way.
                return False
            raise FrameError(
                "ack names an offset that was not sent yet",
                advice="acknowledge the offset of the last event that you have taken in",
                fields={"offset": "is beyond what was sent"},
            )
        self._forgiving = False
        before = self.events
        while self._pieces and self._pieces[0][0] <= offset:
            _, size = self._pieces.popleft()
            self.events -= 1
            self.bytes -= size
        return self.events < before

    def restart(self) -> None:
        """The client is at another place: nothing of what it was sent before can be acknowledged any more."""
        self._pieces.clear()
        self.events = self.bytes = 0
        self._forgiving = True
