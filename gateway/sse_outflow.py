"""What a reader of server-sent events is sent: the same writer over the same cursor as a socket's, in other words.

Reading, order, bounds and stalls are ``outflow``'s. Here is how each thing is written, and that one run's stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from carrel.v1 import execution_pb2
from gateway.encoding import Frame
from gateway.hub import Feed
from gateway.log_reader import LogReader
from gateway.outflow import Flow, Outflow, Pipe
from gateway.ring import Cursor, Place
from gateway.sockets import Ending
from gateway.sse import block, entry_block, heartbeat, last_words
from gateway.tally import Tally

__all__ = ["ChunkedPipe", "Course", "SseOutflow"]

_TERMINAL: Final = "run_completed"


class ChunkedPipe:
    """The transport of a response whose body is in chunks (RFC 9112 §7.1): each write is one.

    Past aiohttp's own writer, which has no bound of its own on what it holds for a peer that does not read.
    """

    def __init__(self, transport: asyncio.Transport, tally: Tally, *, chunked: bool) -> None:
        self._transport = transport
        self._tally = tally
        self._chunked = chunked

    def write(self, data: bytes) -> None:
        """See ``Pipe``, as for the rest."""
        if data:
            self._tally.bytes_sent += len(data)
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


@dataclass(frozen=True, slots=True)
class Course:
    """What a stream runs along; as for ``Outflow``, and ``on_end`` is called when nothing more is to come."""

    pipe: Pipe
    feed: Feed
    log: LogReader
    cursor: Cursor
    flow: Flow
    tally: Tally
    on_end: Callable[[], None]


class SseOutflow(Outflow):
    """A stream's writer. It ends itself when the terminal event of the cursor's run is written."""

    def __init__(self, course: Course) -> None:
        flow = replace(course.flow, batch=False)
        super().__init__(course.pipe, course.feed, course.log, course.cursor, flow, tally=course.tally)
        self._on_end = course.on_end
        self._ended = False

    # As statistics see it.

    @property
    def stalled(self) -> bool:
        """Whether the transport takes no more at the moment."""
        return self._pipe.get_write_buffer_size() > self._flow.full_bytes

    @property
    def unacknowledged(self) -> int:
        """None: these readers do not acknowledge."""
        return 0

    @property
    def window_full(self) -> bool:
        """Never: there is none."""
        return False

    # What is sent.

    def say(self, kind: str, **fields: Any) -> None:
        """Tell something after what was said before; ``connected`` carries its position."""
        place = Place(fields["epoch"], fields["offset"], fields["event_id"]) if kind == "connected" else None
        self.put(block(kind, fields, place))

    def beat(self) -> None:
        """Give a sign of life."""
        self.put(heartbeat(self.place))

    async def flush(self) -> None:
        """Write what was said, and wait until the peer has taken everything.

        Raises:
            Stalled: The peer takes nothing.
        """
        self._pipe.write(self.take_rest())
        self._flow = replace(self._flow, full_bytes=0)
        await self._drained()

    def farewell(self, ending: Ending) -> None:
        """Say that the stream ends before its time, and why."""
        self.put(last_words(ending))

    def gone(self, run: execution_pb2.Run) -> None:
        """The stream's run has ended and the log will never have more of it: nothing to say, it has been read."""

    def put(self, text: bytes) -> None:
        """Send blocks that are made already, after what was said before."""
        self._controls.append(text)
        self._woken.set()

    def _next(self) -> Sequence[bytes]:
        return () if self._ended else super()._next()

    def _wires(self, items: Sequence[Frame | Place]) -> list[bytes]:
        cursor, written = self._cursor, list[bytes]()
        for item in items:
            if isinstance(item, Place):
                written.append(block("through", item._asdict(), item))
                continue
            written.append(entry_block(item, cursor.place.epoch))
            if cursor.run_id == item.run_id and item.event_type == _TERMINAL:
                self._ended = True
                self._on_end()
                break
        return written

    def _reset(self, reason: str) -> bytes:
        _ = super()._reset(reason)  # which counts it, and lets the reader know of it
        place = self._cursor.place
        return block("reset", {"reason": reason, "epoch": place.epoch, "offset": place.offset}, place)

    def _gap(self, first: int, last: int) -> bytes:
        return block("gap", {"from": first, "to": last})
