"""An upgraded connection: the protocol of its transport. Messages in, bytes out, and an end within a known time.

It has no task and no timer while nothing happens. What messages mean, and what is sent, is the session's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.errors import CarrelError, FrameError
from gateway.close_codes import CloseCode
from gateway.encoding import control
from gateway.frames import Inbound, parse_frame
from gateway.jitter import retry_ms
from gateway.wire import Message, MessageReader, Opcode, WireError, close_frame, deflated, pong_frame

__all__ = ["MAX_MESSAGE_BYTES", "Ending", "Socket", "error_fields", "read_frame"]

# Above our own bound, so that a frame that is too large gets an answer that says where it belongs.
MAX_MESSAGE_BYTES: Final = 1 << 20
# Messages that wait to be acted on; beyond it nothing more is read from the peer.
_MOST_WAITING: Final = 32
_MOST_WAITING_BYTES: Final = 128 * 1024
# How long one connection's frames may occupy the loop at once. It then rests for as long as they did.
_AT_ONCE_S: Final = 0.002

# The loop's own clock stands still between two turns.
_clock = time.monotonic


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ends, and when its client is to come back: if nobody says so, within a second."""

    code: CloseCode
    error: CarrelError | None = None
    retry_ms: int = field(default_factory=retry_ms)


def read_frame(message: Message) -> Inbound:
    """A message of the socket as a frame.

    Raises:
        CarrelError: It is binary, too large, or no frame of the protocol.
    """
    if message.opcode is not Opcode.TEXT:
        raise FrameError("binary messages are not part of the protocol", advice="send JSON as text")
    return parse_frame(message.text)


def error_fields(error: CarrelError) -> dict[str, Any]:
    """An error as the fields of an ``error`` frame."""
    return error.to_dict()


def _nothing() -> None:
    pass


class Socket(asyncio.Protocol):
    """One connection.

    ``on_inbox``, ``on_lost``, ``on_full`` and ``on_room`` are called when messages wait in ``inbox``, when the
    connection has ended, when the transport holds more than ``full_bytes``, and when it has room again. ``heard`` is
    set by whatever the peer sends.

    Args:
        transport: The way to the peer, whose protocol this is to become.
        full_bytes: What the transport may hold before writing should wait.
        deflate_bits: The window of permessage-deflate, 0 without it.
    """

    __slots__ = (
        "_close_sent", "_deaf", "_gone", "_held_back", "_later", "_paid_at", "_reader", "_stopped", "_timer",
        "_waiting_bytes", "deflate_bits", "full", "heard", "inbox", "lost", "on_full", "on_inbox", "on_lost",
        "on_room", "transport",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, full_bytes: int, deflate_bits: int = 0) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=full_bytes)
        bound_unsent(transport, full_bytes)
        self.deflate_bits = deflate_bits
        self._reader = MessageReader(MAX_MESSAGE_BYTES, deflate=bool(deflate_bits))
        self.inbox: deque[Message] | None = None
        self._waiting_bytes = 0
        self.on_inbox: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.on_full: Callable[[], None] = _nothing
        self.on_room: Callable[[], None] = _nothing
        self.full = False
        self.heard = True
        self.lost = False
        self._close_sent = False
        self._deaf = False
        # Too much waits in the inbox.
        self._held_back = False
        # Calls _go_on; nothing is read from the peer before that.
        self._later: asyncio.Handle | None = None
        self._stopped = False
        # When it has rested for as long as it was worked for.
        self._paid_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None

    # Of asyncio.Protocol.

    def data_received(self, data: bytes) -> None:
        """What the peer has sent."""
        self.heard = True
        if self._deaf:
            return
        self._reader.feed(data)
        if self._later is None and not self._held_back:
            self._go_on()

    def _go_on(self) -> None:
        """Act on frames that have come, as many as may be at once. Before more is read come those that are left."""
        self._later = None
        if self._deaf:
            return
        began = now = _clock()
        ends = began + _AT_ONCE_S - max(0.0, self._paid_at - began)
        done = False
        if began < ends:
            done = self._take_until(ends)
            if self.inbox:
                self.on_inbox()
            now = _clock()
            self._paid_at = max(self._paid_at, began) + 2 * (now - began)
        self._rest(self._paid_at - now, done=done)

    def _rest(self, owed: float, *, done: bool) -> None:
        """Read on, or go on later; ``owed`` is for how long others are to have the loop."""
        if self._deaf:
            return
        if self._held_back:
            self._stop_reading()
        elif owed >= _AT_ONCE_S:
            self._after(owed)
        elif not done:
            self._after(0.0)
        elif self._stopped:
            self._stopped = False
            self.transport.resume_reading()

    def _take_until(self, ends: float) -> bool:
        """Act on frames until that time, or until much waits; whether none is left."""
        try:
            for message in self._reader.read():
                if message is not None and not self._take(message):
                    return False
                if self.inbox and (len(self.inbox) > _MOST_WAITING or self._waiting_bytes > _MOST_WAITING_BYTES):
                    self._held_back = True
                    return False
                if _clock() >= ends:
                    return False
        except WireError as error:
            self._hang_up(error.code, error.reason)
            return False
        return True

    def _after(self, seconds: float) -> None:
        """Go on after that time, and read nothing before. It is the next turn of the loop at the earliest."""
        self._stop_reading()
        if self._later is not None:
            self._later.cancel()
        loop = asyncio.get_running_loop()
        self._later = loop.call_later(seconds, self._go_on) if seconds else loop.call_soon(self._go_on)

    def _stop_reading(self) -> None:
        if not self._stopped and not self.lost:
            self._stopped = True
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The transport holds more than ``full_bytes``."""
        self.full = True
        self.on_full()

    def resume_writing(self) -> None:
        """It holds little again."""
        self.full = False
        self.on_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self.on_lost()
        # They hold the session, which holds this.
        self.on_inbox = self.on_lost = self.on_full = self.on_room = _nothing

    # Messages in.

    def next_message(self) -> Message | None:
        """The message that has waited longest; None when none waits, and then the peer may send more."""
        if self.inbox:
            message = self.inbox.popleft()
            self._waiting_bytes -= _size(message)
            return message
        self.inbox = None
        self._let_in()
        return None

    def _let_in(self) -> None:
        """Nothing waits any more: those that were held back may come."""
        if self._held_back:
            self._held_back = False
            if not self._deaf:
                self._after(0.0)

    async def first_message(self) -> Message | None:
        """The next message, waited for; None when the connection ends before."""
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not come.done():
                come.set_result(None)

        self.on_inbox = self.on_lost = wake
        try:
            if not self.inbox and not self._deaf:
                await come
        finally:
            self.on_inbox = self.on_lost = _nothing
        return None if self.lost else self.next_message()

    def _take(self, message: Message) -> bool:
        """Act on it, or leave it for ``inbox``; whether anything can follow it."""
        match message.opcode:
            case Opcode.PING:
                # A peer that does not read gets no more of them than fit.
                if not self.full and not self.transport.is_closing():
                    self.transport.write(pong_frame(message.data))
            case Opcode.PONG:
                pass
            case Opcode.CLOSE:
                self._hang_up(message.code)
                return False
            case _ if not self._close_sent:
                if self.inbox is None:
                    self.inbox = deque()
                self.inbox.append(message)
                self._waiting_bytes += _size(message)
        return True

    # The end.

    def _forget(self) -> None:
        """Nothing that has come is acted on any more."""
        self._deaf = True
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _hang_up(self, code: int, reason: str = "") -> None:
        self._forget()
        if not self._close_sent and not self.transport.is_closing():
            self._close_sent = True
            self.transport.write(close_frame(code, reason))
        self.transport.close()
        # Closing waits for what is unsent, which the peer may never take.
        self._cut_after(2.0)

    def _cut_after(self, seconds: float) -> None:
        if self._timer is None and not self.lost:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def abort(self) -> None:
        """Cut the connection now; what is unsent is dropped."""
        self.transport.abort()

    async def close(self, ending: Ending, unsent: bytes = b"", within_s: float = 2.0) -> None:
        """Say why, close, and cut the connection if the peer does not answer in time. A stalled peer is cut at once."""
        if self.lost:
            return
        if ending.code is CloseCode.SLOW or self.transport.is_closing():
            self.abort()
        else:
            words = _last_words(ending)
            if self.deflate_bits:
                words = [deflated(word, self.deflate_bits) for word in words]
            self._close_sent = True
            # Nobody asks for these any more, and the peer's answer comes behind them.
            self.inbox, self._waiting_bytes = None, 0
            self._let_in()
            self.transport.write(b"".join((unsent, *words, close_frame(ending.code, ending.code.name.lower()))))
            self._cut_after(within_s)
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        await self._gone


def _size(message: Message) -> int:
    return len(message.text) + len(message.data)


def bound_unsent(transport: asyncio.Transport, most_bytes: int) -> None:
    """Let the kernel hold no more than so much that is not on its way, where it can: 4 MB a connection otherwise.

    What is on its way is bounded by the peer's window, so this slows nobody down.
    """
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, most_bytes)


def _last_words(ending: Ending) -> list[bytes]:
    code = ending.code
    error = [control("error", error_fields(ending.error))] if ending.error else []
    retry_ms = ending.retry_ms if code.reconnect else None
    bye = {"code": int(code), "reason": code.name.lower(), "reconnect": code.reconnect, "retry_ms": retry_ms}
    return [*error, control("bye", bye)]
