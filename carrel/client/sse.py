"""Server-Sent Events: bytes to blocks, as the HTML standard has them, and a stream that comes back by itself.

The rules for what is given, and once, are ``reading.py``'s, the same as on the socket. Back-pressure is the caller's
pace: nothing is read ahead of what is asked for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from carrel.client.backoff import Backoff
from carrel.client.decoding import parse_object
from carrel.client.models import Event, Position
from carrel.client.notices import Notice
from carrel.client.reading import AstrayError, Reader
from carrel.errors import CarrelError, InvalidPositionError, ProtocolError, UnavailableError

__all__ = ["Block", "SseParser", "last_event_id", "read_stream"]

_MAX_BLOCK: Final = 8 * 1024 * 1024
_BROKEN_IN_A_ROW: Final = 3
_FIRST_WORD_S: Final = 30.0
_SILENCES: Final = 2.5

Open = Callable[[str], AbstractAsyncContextManager[aiohttp.ClientResponse]]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream. ``id`` and ``data`` are None when the block has none."""

    event: str = "message"
    data: str | None = None
    id: str | None = None


class SseParser:
    """Takes bytes as they come, split anywhere, and gives whole blocks."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._lines: list[str] = []
        self._size = 0
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Block]:
        """The blocks that these bytes complete.

        Raises:
            ProtocolError: A block is larger than any that the protocol allows, or not UTF-8.
        """
        self._rest += data
        self._size += len(data)
        while (line := self._line()) is not None:
            if line:
                self._lines.append(line)
            elif self._lines:
                lines, self._lines, self._size = self._lines, [], len(self._rest)
                yield _block(lines)
        if self._size > _MAX_BLOCK:
            raise ProtocolError("the gateway sent a block of events that does not end")

    def _line(self) -> str | None:
        rest = self._rest
        end = next((at for at, byte in enumerate(rest) if byte in b"\r\n"), -1) if b"\r" in rest else rest.find(b"\n")
        # A \r at the very end may be half of a \r\n.
        if end < 0 or (rest[end] == 0x0D and end + 1 == len(rest)):
            return None
        length = 2 if rest[end : end + 2] == b"\r\n" else 1
        raw = bytes(rest[:end])
        del rest[: end + length]
        if not self._begun:
            self._begun, raw = True, raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ProtocolError("the gateway sent events that are not UTF-8") from None


def _block(lines: list[str]) -> Block:
    fields: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name, []).append(value.removeprefix(" "))
    ids = [value for value in fields.get("id", ()) if "\0" not in value]
    return Block(
        fields.get("event", ["message"])[-1] or "message",
        "\n".join(fields["data"]) if "data" in fields else None,
        ids[-1] if ids else None,
    )


def last_event_id(position: Position) -> str:
    """The position as ``Last-Event-ID`` takes it: one that nothing can be compared with asks for all that is kept."""
    return str(position) if position.usable else ":0:"


async def read_stream(
    open_stream: Open, reader: Reader, backoff: Backoff, over: Callable[[], Awaitable[bool]], *, ends: bool
) -> AsyncIterator[Event | Notice]:
    """A stream's events and notices, over as many connections as it takes.

    Args:
        open_stream: Opens it after a ``Last-Event-ID``, empty for the beginning; raises what the gateway refuses.
        reader: Knows the position.
        backoff: How often and how fast to come back.
        over: Whether nothing more can come, asked when a stream ended without saying why.
        ends: Whether the stream is one run's, which ends with its terminal event.

    Raises:
        CarrelError: It was refused, or could not be opened again.
    """
    tries, asked = _Tries(backoff), ""
    while True:
        seen, problem, wrong = reader.position, "", False
        try:
            async with open_stream(asked) as response:
                if response.status == 204:
                    return
                async for item in _one(response, reader):
                    yield item
                    if ends and isinstance(item, Event) and item.terminal:
                        return
            bye = reader.bye
            if bye is not None and not bye.reconnect:
                raise reader.refusal(bye.code)
            if bye is None and await over():
                return
            problem = "the gateway ended the stream"
        except (AstrayError, ProtocolError) as error:
            problem, wrong = str(error), True
        except CarrelError as error:
            if not error.retryable:
                raise
            problem = error.message
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = str(error) or "nothing came for longer than its heartbeat"
        await asyncio.sleep(tries.delay_s(problem, wrong, reader.position != seen, reader.retry_s))
        asked = last_event_id(reader.position) if reader.resume() else ""


class _Tries:
    """Counts what came to nothing, and says how long to wait."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._broken = 0

    def delay_s(self, problem: str, wrong: bool, moved: bool, retry_s: float) -> float:
        """Seconds to wait after a connection that ended for ``problem``; ``moved`` says that it brought something.

        Raises:
            CarrelError: It has been tried often enough.
        """
        self._broken = (1 if moved else self._broken + 1) if wrong else 0
        if self._broken >= _BROKEN_IN_A_ROW:
            raise ProtocolError(problem, advice="coming back changes nothing; tell the gateway's operator")
        self._failures = 1 if moved else self._failures + 1
        delay = self._backoff.delay_s(self._failures, retry_s)
        if delay is None:
            raise UnavailableError(f"the stream cannot be read: {problem} (tried {self._failures} times)")
        return delay


async def _one(response: aiohttp.ClientResponse, reader: Reader) -> AsyncIterator[Event | Notice]:
    """What one connection brings."""
    reader.begin()
    parser, silence = SseParser(), _FIRST_WORD_S
    while True:
        async with asyncio.timeout(silence):
            data = await response.content.readany()
        if not data:
            return
        for block in parser.feed(data):
            frame = _frame(block)
            if frame is None:
                continue
            if frame.get("type") == "connected":
                silence = _silence(frame)
                for notice in reader.connected(frame):
                    yield notice
                continue
            for item in reader.take(frame):
                if not isinstance(item, Position):
                    yield item


def _frame(block: Block) -> dict[str, Any] | None:
    """The block as the frame that a socket would send; None when it says nothing."""
    if block.data is not None:
        body = parse_object(block.data)
        if block.event == "bye" and isinstance(body.get("error"), dict):
            body = {**body, "reason": body["error"].get("message") or body.get("reason")}
        return body if "event_type" in body else {**body, "type": block.event}
    if block.id is None:
        return None
    try:
        place = Position.parse(block.id)
    except InvalidPositionError:
        raise ProtocolError("the gateway sent an id that is no position") from None
    if not (place.epoch and place.usable):
        return None
    # A sign of life whose id is further than the last event: what lies between is others'.
    return {"type": "through", "epoch": place.epoch, "offset": place.offset, "event_id": place.event_id}


def _silence(frame: dict[str, Any]) -> float:
    beat = frame.get("heartbeat")
    known = isinstance(beat, int | float) and math.isfinite(beat) and beat > 0
    return max(_SILENCES * (float(beat) if known and beat is not None else 30.0), 1.0)
