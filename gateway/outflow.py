"""What one connection is sent: its control frames, and its user's events from the cursor on, by one writer.

Everything goes out through here, so frames never interleave and their order is one. Bounded: a piece of the log, a few
control frames, what the transport holds, and, for a client that acknowledges, its window. A peer that takes nothing for
the delivery timeout raises ``Stalled``. How a socket is written to without a task of its own is socket_outflow's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from carrel.errors import CarrelError
from gateway.encoding import Frame, control
from gateway.flow import Flow, Pipe, Rest, Stalled, Waker
from gateway.hub import Feed
from gateway.log_reader import LogReader, Piece
from gateway.ring import Cursor, Place, Taken
from gateway.tally import Tally
from gateway.window import Window
from servicekit.logs import get_logger

__all__ = ["Flow", "Outflow", "Pipe", "Stalled", "Waker", "nothing"]

_log = get_logger("gateway.outflow")

_EVENTS: Final = 256
_BYTES: Final = 64 * 1024
_CONTROLS: Final = 64
_RETRY_S: Final = 0.25
# A full buffer is looked at this often where nobody tells of its emptying, and only for peers that are slow.
_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Reading:
    """A piece on its way: for which cursor, and under which version of the ring it was asked for."""

    task: asyncio.Task[Piece]
    cursor: Cursor
    version: int


class Outflow:
    """One connection's writer. ``wake`` and ``say`` may be called at any time; ``run`` does the writing.

    ``on_reset`` is called for each ``reset`` that the client is sent.

    Args:
        pipe: Where it writes.
        feed: The user's newest entries.
        log: Where the others are read.
        cursor: Where it begins.
        flow: How it writes.
        tally: Where it counts.
        window: Bounds what is unacknowledged; None for a client that does not acknowledge.
    """

    __slots__ = (
        "_began_ns", "_controls", "_cursor", "_feed", "_flow", "_log", "_pipe", "_reading", "_rest", "_said", "_tally",
        "_traced", "_window", "_woken", "on_reset",
    )  # fmt: skip

    def __init__(
        self,
        pipe: Pipe,
        feed: Feed,
        log: LogReader,
        cursor: Cursor,
        flow: Flow,
        *,
        tally: Tally | None = None,
        window: Window | None = None,
    ) -> None:
        self._pipe = pipe
        self._feed = feed
        self._log = log
        self._cursor = cursor
        self._flow = flow
        self._tally = tally or Tally()
        self._window = window
        self._controls: list[bytes] = []
        self._said: asyncio.Future[None] | None = None
        self._reading: _Reading | None = None
        self._rest: Rest | None = None
        # Entries of kept traces that are about to be written.
        self._traced: list[tuple[str, int]] | None = None
        self._began_ns = time.time_ns()
        self._woken: Waker = self._waker()
        self.on_reset: Callable[[], None] = nothing

    def _waker(self) -> Waker:
        return asyncio.Event()

    def wake(self) -> None:
        """There may be something new in the feed."""
        self._woken.set()

    @property
    def place(self) -> Place:
        """Where the connection is."""
        return self._cursor.place

    @property
    def lag(self) -> int:
        """How many entries of the log have not been sent."""
        return max(0, self._feed.ring.top_offset - self._cursor.place.offset)

    def say(self, kind: str, **fields: Any) -> None:
        """Send a control frame after those said before."""
        self._controls.append(control(kind, fields))
        self._woken.set()

    @property
    def has_room(self) -> bool:
        """Whether few control frames are unsent."""
        return len(self._controls) < _CONTROLS

    async def room(self) -> None:
        """Wait until few control frames are unsent: nobody may go on answering a peer that does not read."""
        while not self.has_room:
            if self._said is None:
                self._said = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._said)

    def move(self, cursor: Cursor, flow: Flow, window: Window | None) -> None:
        """Go on from another cursor, on other terms: the client has said where it is, and what it wants."""
        self._cursor = cursor
        self._flow = flow
        self._window = window
        self._rest = None

    def begin(self, piece: Piece, version: int) -> None:
        """Send a piece that has been read already, while the ring was of this version."""
        self._controls.extend(self._from_piece(piece, version))
        self._woken.set()

    def acknowledge(self, offset: int) -> bool:
        """The client has taken in everything up to ``offset``; nothing for one that did not ask to acknowledge.

        Returns:
            Whether that made room in the window.

        Raises:
            FrameError: It cannot have.
        """
        if self._window is None:
            return False
        self._tally.acks += 1
        roomier = self._window.acknowledge(offset, self._cursor.place.offset)
        if roomier:
            self._woken.set()
        return roomier

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            Stalled: The peer takes nothing.
        """
        woken = self._woken
        assert isinstance(woken, asyncio.Event)
        try:
            while not self._pipe.is_closing():
                woken.clear()
                if parts := self._parts():
                    self._pipe.write(parts[0] if len(parts) == 1 else b"".join(parts))
                    self._trace()
                    if self._pipe.get_write_buffer_size() > self._flow.full_bytes:
                        await self._drained()
                elif not woken.is_set():
                    await woken.wait()
        finally:
            if self._reading is not None:
                self._reading.task.cancel()
                await asyncio.wait([self._reading.task])

    def take_rest(self) -> bytes:
        """Control frames that are still unsent, for whoever closes."""
        return b"".join(self._take_controls())

    def _parts(self) -> list[bytes]:
        """What is to be written next."""
        return [*self._take_controls(), *self._next()]

    def _take_controls(self) -> list[bytes]:
        if not self._controls:
            return []
        taken, self._controls = self._controls, []
        if self._said is not None:
            self._said.set_result(None)
            self._said = None
        return taken

    # Events.

    def _next(self) -> Sequence[bytes]:
        events, size = _EVENTS, _BYTES
        if (window := self._window) is not None:
            if window.full:
                return ()
            events = min(events, window.most_events - window.events)
            size = min(size, window.most_bytes - window.bytes)
        parts: list[bytes] = []
        if self._reading is not None:
            if not self._reading.task.done():
                return ()
            parts = self._from_log(self._reading)
        items = self._due(events, size)
        if isinstance(items, bytes):
            return [*parts, items]
        self._count(items)
        return [*parts, *self._wires(items)] if items else parts

    def _due(self, events: int, size: int) -> Sequence[Frame | Place] | bytes:
        """Items that come next, up to so many and so large; or the ``reset`` that does."""
        cursor, ring = self._cursor, self._feed.ring
        if (rest := self._rest) is not None:
            if cursor.version == ring.version:
                frames = rest.take(events, size)
                if rest.at == len(rest.frames):
                    self._rest = None
                self._woken.set()
                return cursor.advance(frames)
            self._rest = None
        if self._reading is not None:
            return ()
        taken = cursor.take(ring, events, size)
        if isinstance(taken, list):
            self._tally.ring_reads += 1
            if cursor.place.offset < ring.top_offset:
                # There is more: come round again after this has been written.
                self._woken.set()
            return taken
        if taken is Taken.NEW_EPOCH:
            cursor.move(Place(ring.epoch, cursor.place.offset, cursor.place.event_id), ring.version)
            self._woken.set()
            return self._reset("epoch_changed")
        if taken is Taken.READ_LOG:
            self._read_log()
        return ()

    def _count(self, items: Sequence[Frame | Place]) -> None:
        window = self._window
        for item in items:
            if isinstance(item, Frame):
                self._tally.events_sent += 1
                if item.trace is not None:
                    if self._traced is None:
                        self._traced = []
                    self._traced.append(item.trace)
                if window is not None:
                    window.sent(item.offset, len(item.wire))

    def _trace(self) -> None:
        """What was about to be written has been."""
        if self._traced is not None:
            traced, self._traced = self._traced, None
            self._feed.delivered(traced, self._began_ns)

    def _wires(self, items: Sequence[Frame | Place]) -> list[bytes]:
        if not self._flow.batch:
            return [item.wire if isinstance(item, Frame) else _through(item) for item in items]
        return list(self._batched(items))

    def _batched(self, items: Sequence[Frame | Place]) -> Iterator[bytes]:
        pending: list[Frame] = []
        for item in items:
            if isinstance(item, Frame):
                pending.append(item)
                continue
            yield from self._batch(pending)
            pending = []
            yield _through(item)
        yield from self._batch(pending)

    def _batch(self, frames: list[Frame]) -> Iterator[bytes]:
        if len(frames) > 1:
            batch, tally = self._feed.batch(frames, compress=self._flow.compress), self._tally
            tally.batches_sent += 1
            tally.batches_compressed += batch.saved > 0
            tally.bytes_saved += batch.saved
            yield batch.wire
        elif frames:
            yield frames[0].wire

    def _reset(self, reason: str) -> bytes:
        self.on_reset()
        self._tally.resets += 1
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
        self._tally.log_reads += 1
        return await self._log.read(self._feed.login, self._cursor.place)

    def _from_log(self, reading: _Reading) -> list[bytes]:
        self._reading = None
        self._woken.set()
        if reading.cursor is not self._cursor:
            return []
        try:
            piece = reading.task.result()
        except CarrelError as error:
            # The connection stays: what is missing is in the log, and comes when the log can be read again.
            _log.info("the log cannot be read", code=error.code)
            self._tally.log_read_failures += 1
            self._read_log(_RETRY_S)
            return []
        parts = self._from_piece(piece, reading.version)
        if not parts and self._rest is None and self._cursor.off(self._feed.ring):
            # Neither has what comes next: ask again, but not in a circle.
            self._read_log(_RETRY_S)
        return parts

    def _from_piece(self, piece: Piece, version: int) -> list[bytes]:
        cursor, parts = self._cursor, list[bytes]()
        if piece.reset:
            cursor.move(piece.place, version)
            if self._window is not None:
                self._window.restart()
            parts.append(self._reset(piece.reset))
        else:
            cursor.version = version
        if not piece.frames:
            return parts
        self._tally.log_entries_read += len(piece.frames)
        due, first = cursor.place.offset + 1, piece.frames[0].offset
        if first > due:
            self._tally.gaps += 1
            parts.append(self._gap(due, first - 1))
        self._rest = Rest(piece.frames)
        return parts

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


def nothing() -> None:
    """What a callback does that nobody has set."""
