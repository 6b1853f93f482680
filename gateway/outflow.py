"""What one connection is sent: its control frames, and its user's events from the cursor on, by one writer.

Everything goes out through here, so frames never interleave and their order is one. Bounded: a piece of the log, a few
control frames, and what the transport holds. A peer that takes nothing for the delivery timeout raises ``Stalled``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from carrel.errors import CarrelError
from gateway.encoding import Frame, control, event_batch
from gateway.hub import Feed
from gateway.log_reader import LogReader, Piece
from gateway.ring import Cursor, Place, Taken
from servicekit.logs import get_logger

__all__ = ["Flow", "Outflow", "Pipe", "Stalled"]

_log = get_logger("gateway.outflow")

_EVENTS: Final = 256
_BYTES: Final = 64 * 1024
_CONTROLS: Final = 64
_RETRY_S: Final = 0.25
# A full buffer is looked at this often: there is no public way to be told, and only peers that are slow pay for it.
_LOOK_S: Final = 0.01


class Stalled(Exception):  # noqa: N818 -- an outcome, and no error of ours
    """The peer has taken nothing for the delivery timeout."""


class Pipe(Protocol):
    """The way to the peer; asyncio's transports are one."""

    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def is_closing(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Flow:
    """How a connection is written to.

    Args:
        batch: Several events that are due together go as one ``event_batch``.
        stall_s: How long a full buffer may go without shrinking.
        full_bytes: What the transport may hold before writing waits.
    """

    batch: bool = False
    stall_s: float = 5.0
    full_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Reading:
    """A piece on its way: for which cursor, and under which version of the ring it was asked for."""

    task: asyncio.Task[Piece]
    cursor: Cursor
    version: int


class Outflow:
    """One connection's writer. ``wake`` and ``say`` may be called at any time; ``run`` does the writing.

    ``on_reset`` is called for each ``reset`` that the client is sent.
    """

    def __init__(self, pipe: Pipe, feed: Feed, log: LogReader, cursor: Cursor, flow: Flow) -> None:
        self._pipe = pipe
        self._feed = feed
        self._log = log
        self._cursor = cursor
        self._flow = flow
        self._controls: deque[bytes] = deque()
        self._woken = asyncio.Event()
        self._said = asyncio.Event()
        self._reading: _Reading | None = None
        self.on_reset: Callable[[], None] = lambda: None
        self.wake = self._woken.set

    @property
    def place(self) -> Place:
        """Where the connection is."""
        return self._cursor.place

    def say(self, kind: str, **fields: Any) -> None:
        """Send a control frame after those said before."""
        self._controls.append(control(kind, fields))
        self._woken.set()

    async def room(self) -> None:
        """Wait until few control frames are unsent: nobody may go on answering a peer that does not read."""
        while len(self._controls) >= _CONTROLS:
            self._said.clear()
            await self._said.wait()

    def move(self, cursor: Cursor, *, batch: bool) -> None:
        """Go on from another cursor: the client has said where it is."""
        self._cursor = cursor
        self._flow = Flow(batch, self._flow.stall_s, self._flow.full_bytes)

    def begin(self, piece: Piece, version: int) -> None:
        """Send a piece that has been read already, while the ring was of this version."""
        self._controls.extend(self._from_piece(piece, version))
        self._woken.set()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            Stalled: The peer takes nothing.
        """
        try:
            while not self._pipe.is_closing():
                self._woken.clear()
                parts = [*self._take_controls(), *self._next()]
                if parts:
                    self._pipe.write(parts[0] if len(parts) == 1 else b"".join(parts))
                    if self._pipe.get_write_buffer_size() > self._flow.full_bytes:
                        await self._drained()
                elif not self._woken.is_set():
                    await self._woken.wait()
        finally:
            if self._reading is not None:
                self._reading.task.cancel()
                await asyncio.wait([self._reading.task])

    def take_rest(self) -> bytes:
        """Control frames that are still unsent, for whoever closes."""
        return b"".join(self._take_controls())

    def _take_controls(self) -> list[bytes]:
        taken = list(self._controls)
        if taken:
            self._controls.clear()
            self._said.set()
        return taken

    # Events.

    def _next(self) -> Sequence[bytes]:
        if self._reading is not None:
            return self._from_log(self._reading) if self._reading.task.done() else ()
        cursor, ring = self._cursor, self._feed.ring
        taken = cursor.take(ring, _EVENTS, _BYTES)
        if isinstance(taken, list):
            if cursor.place.offset < ring.top_offset:
                # There is more: come round again after this has been written.
                self._woken.set()
            return self._wires(taken)
        if taken is Taken.NEW_EPOCH:
            cursor.move(Place(ring.epoch, cursor.place.offset, cursor.place.event_id), ring.version)
            self._woken.set()
            return [self._reset("epoch_changed")]
        if taken is Taken.READ_LOG:
            self._read_log()
        return ()

    def _wires(self, items: Sequence[Frame | Place]) -> list[bytes]:
        if not self._flow.batch:
            return [item.wire if isinstance(item, Frame) else _through(item) for item in items]
        return list(_batched(items))

    def _reset(self, reason: str) -> bytes:
        self.on_reset()
        place = self._cursor.place
        return control("reset", {"reason": reason, "epoch": place.epoch, "offset": place.offset})

    def _gap(self, first: int, last: int) -> bytes:
        return control("gap", {"from": first, "to": last})

    # Off the ring.

    def _read_log(self, after_s: float = 0.0) -> None:
        task = asyncio.create_task(self._piece(after_s), name="gateway log reading")
        task.add_done_callback(lambda _: self._woken.set())
        self._reading = _Reading(task, self._cursor, self._feed.ring.version)

    async def _piece(self, after_s: float) -> Piece:
        if after_s:
            await asyncio.sleep(after_s)
        return await self._log.read(self._feed.login, self._cursor.place)

    def _from_log(self, reading: _Reading) -> Sequence[bytes]:
        self._reading = None
        self._woken.set()
        if reading.cursor is not self._cursor:
            return ()
        try:
            piece = reading.task.result()
        except CarrelError as error:
            # The connection stays: what is missing is in the log, and comes when the log can be read again.
            _log.info("the log cannot be read", code=error.code)
            self._read_log(_RETRY_S)
            return ()
        parts = self._from_piece(piece, reading.version)
        if not piece.frames and not parts and self._cursor.is_off(self._feed.ring):
            # Neither has what comes next: ask again, but not in a circle.
            self._read_log(_RETRY_S)
        return parts

    def _from_piece(self, piece: Piece, version: int) -> list[bytes]:
        cursor, parts = self._cursor, list[bytes]()
        if piece.reset:
            cursor.move(piece.place, version)
            parts.append(self._reset(piece.reset))
        else:
            cursor.version = version
        if not piece.frames:
            return parts
        due, first = cursor.place.offset + 1, piece.frames[0].offset
        if first > due:
            parts.append(self._gap(due, first - 1))
        return parts + self._wires(cursor.advance(piece.frames))

    # The peer.

    async def _drained(self) -> None:
        """Wait until the transport's buffer is no longer full."""
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        size, since, look = self._pipe.get_write_buffer_size(), loop.time(), _LOOK_S / 10
        while size > self._flow.full_bytes and not self._pipe.is_closing():
            await asyncio.sleep(look)
            look = min(_LOOK_S, look * 2)
            now = self._pipe.get_write_buffer_size()
            if now < size:
                size, since = now, loop.time()
            elif loop.time() - since > self._flow.stall_s:
                raise Stalled


def _through(place: Place) -> bytes:
    return control("through", {"epoch": place.epoch, "offset": place.offset, "event_id": place.event_id})


def _batched(items: Sequence[Frame | Place]) -> Iterator[bytes]:
    pending: list[Frame] = []
    for item in items:
        if isinstance(item, Frame):
            pending.append(item)
            continue
        yield from _batch(pending)
        pending = []
        yield _through(item)
    yield from _batch(pending)


def _batch(frames: list[Frame]) -> Iterator[bytes]:
    if len(frames) > 1:
        yield event_batch(frames)
    elif frames:
        yield frames[0].wire
