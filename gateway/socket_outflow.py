"""The writer of a socket: the outflow driven by the transport's own callbacks, so that it needs no task.

It sends while there is room in the transport and in the window, and tells when there has been none for too long: the
transport's, or the acknowledgements'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.close_codes import CloseCode
from gateway.hub import Feed
from gateway.log_reader import LogReader
from gateway.outflow import Flow, Outflow, Waker, nothing
from gateway.ring import Cursor
from gateway.sockets import Socket
from gateway.tally import Tally
from gateway.window import Window
from gateway.wire import PING, deflated
from servicekit.logs import get_logger

__all__ = ["SocketOutflow"]

_log = get_logger("gateway.outflow")

# How often in a timeout it is looked whether anything has moved.
_LOOKS: Final = 8
_DATA: Final = 0x81
# Mean bytes of a frame from which on copying costs more than a list of frames.
_SHARED: Final = 1024


class _Pump:
    """A waker that lets the writer write in the next turn of the loop."""

    __slots__ = ("_due", "_write")

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._due = False

    def set(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._write)

    def clear(self) -> None:
        self._due = False

    def is_set(self) -> bool:
        return self._due


_STOPPED: Final = _Pump(nothing)


class SocketOutflow(Outflow):
    """Writes to a socket. ``on_end`` is called once, with the reason, when it has to be closed.

    Args:
        socket: Where it writes; this takes its ``on_full`` and ``on_room``.
        feed: See ``Outflow``, as for the rest.
    """

    __slots__ = ("_closed", "_last_size", "_moved_at", "_socket", "_watch", "on_end")

    def __init__(
        self,
        socket: Socket,
        feed: Feed,
        log: LogReader,
        cursor: Cursor,
        flow: Flow,
        *,
        tally: Tally,
        window: Window | None,
    ) -> None:
        super().__init__(socket.transport, feed, log, cursor, flow, tally=tally, window=window)
        self._socket = socket
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None
        self._moved_at = 0.0
        self._last_size = 0
        self.on_end: Callable[[CloseCode], None] = lambda code: None
        socket.on_full = self._hold_up
        socket.on_room = self.wake

    def _waker(self) -> Waker:
        return _Pump(self._write)

    @property
    def stalled(self) -> bool:
        """Whether the transport takes no more at the moment."""
        return self._socket.full

    @property
    def window_full(self) -> bool:
        """Whether acknowledgements are waited for."""
        return self._window is not None and self._window.full

    @property
    def unacknowledged(self) -> int:
        """Events in the window."""
        return self._window.events if self._window is not None else 0

    def beat(self) -> None:
        """A heartbeat, of the protocol and of WebSocket, in one write.

        ``top`` is the log's as far as it is known here, and left out while the connection is not on that numbering yet.
        """
        place, ring = self.place, self._feed.ring
        top = max(place.offset, ring.top_offset) if ring.epoch == place.epoch else None
        self.say("ping", epoch=place.epoch, offset=place.offset, top=top)
        self._controls.append(PING)

    def acknowledge(self, offset: int) -> bool:
        """See ``Outflow``."""
        roomier = super().acknowledge(offset)
        if roomier:
            self._moved_at = asyncio.get_running_loop().time()
        return roomier

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._give_back()
        # What refers to itself is freed only when garbage is collected: after a storm that is much, and late.
        self._woken = _STOPPED
        self.on_reset = nothing
        self.on_end = lambda code: None

    def take_rest(self) -> bytes:
        """See ``Outflow``."""
        return b"".join(self._packed(self._take_controls()))

    def _write(self) -> None:
        self._woken.clear()
        if self._closed or self._socket.full or self._pipe.is_closing():
            return
        try:
            parts = self._packed(self._parts())
        except Exception as error:  # noqa: BLE001 -- one connection's fault must not pass in silence, nor reach others
            _log.error("writing failed", error=error)
            self.on_end(CloseCode.INTERNAL)
            return
        if parts:
            size = sum(map(len, parts))
            self._tally.bytes_sent += size
            if size > _SHARED * len(parts):
                # Large events are not copied: a reader that stalls holds those of the ring, as its neighbours do.
                self._socket.transport.writelines(parts)
            else:
                self._pipe.write(b"".join(parts))
            self._trace()
            if self._window is not None and self._window.full and self._watch is None:
                self._hold_up()

    def _packed(self, parts: list[bytes]) -> list[bytes]:
        bits = self._flow.deflate_bits
        if not bits:
            return parts
        return [deflated(part, bits) if part[0] == _DATA else part for part in parts]

    # What has stopped.

    def _hold_up(self) -> None:
        """The transport or the window is full: look now and then whether anything moves."""
        if self._closed:
            return
        self._level = False
        loop = asyncio.get_running_loop()
        self._moved_at, self._last_size = loop.time(), self._pipe.get_write_buffer_size()
        if self._watch is None:
            self._watch = loop.call_later(self._patience() / _LOOKS, self._look)

    def _patience(self) -> float:
        return self._flow.stall_s if self._socket.full else self._flow.ack_s

    def _look(self) -> None:
        self._watch = None
        full = self._socket.full
        if self._closed or not (full or self.window_full):
            return
        loop = asyncio.get_running_loop()
        size = self._pipe.get_write_buffer_size()
        if full and size < self._last_size:
            self._moved_at = loop.time()
        self._last_size = size
        patience = self._patience()
        if loop.time() - self._moved_at >= patience:
            self.on_end(CloseCode.SLOW if full else CloseCode.ACK_TIMEOUT)
            return
        # What has been read ahead can be read again: a stalled reader holds no more than its transport does.
        self._give_back()
        self._watch = loop.call_later(patience / _LOOKS, self._look)

    def _give_back(self) -> None:
        self._rest = None
        if self._reading is not None:
            self._reading.task.cancel()
            self._reading = None
