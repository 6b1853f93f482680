"""One lean WebSocket client on a raw transport: a few hundred bytes each, so that ten thousand fit beside a gateway.

Not a client to copy: it trusts its server, and knows only what the cases send and count.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import orjson

__all__ = ["HerdClient", "text_frame"]

_PONG: Final = b"\x8a\x80\x00\x00\x00\x00"
_HEAD: Final = (
    "GET /ws HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
)


def text_frame(**body: Any) -> bytes:
    """A client's text frame under the mask of zeros, which leaves the text as it is."""
    payload = orjson.dumps(body)
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\x00\x00\x00\x00" + payload


class HerdClient(asyncio.Protocol):
    """Connects with a header token and, when it has a position, resumes from it; counts what comes.

    Args:
        host: For the Host header.
        token: The login.
        on_change: Told "connected", and "lost" or "refused" when a connection ends after that or before.
        options: More fields of its ``connect`` frame.
    """

    __slots__ = ("_buffer", "_on_change", "connected", "epoch", "event_id", "host", "offset", "options", "repeated",
                 "settled", "token", "transport", "upgraded")  # fmt: skip

    def __init__(
        self, host: str, token: str, on_change: Callable[[HerdClient, str], None], options: dict[str, Any]
    ) -> None:
        self.host = host
        self.token = token
        self.options = options
        self._on_change = on_change
        self._buffer = b""
        self.transport: asyncio.Transport | None = None
        self.upgraded = False
        self.connected = False
        # Resolved when an attempt to connect has ended, one way or the other.
        self.settled: asyncio.Future[None] | None = None
        self.epoch = self.event_id = ""
        self.offset = 0
        # Events that were not the next one; stays 0 unless something is broken.
        self.repeated = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self.transport = cast(asyncio.Transport, transport)
        self._buffer, self.upgraded = b"", False
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(_HEAD.format(host=self.host, token=self.token, key=key).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave word."""
        self.transport = None
        word, self.connected = "lost" if self.connected else "refused", False
        self._settle()
        self._on_change(self, word)

    def data_received(self, data: bytes) -> None:
        """Answer pings, follow the position."""
        self._buffer = self._buffer + data if self._buffer else data
        if not self.upgraded and not self._upgrade():
            return
        for opcode, payload in self._frames():
            if opcode == 1:
                self._text(orjson.loads(payload))
            elif opcode == 9 and self.transport is not None:
                self.transport.write(_PONG)
            elif opcode == 8 and self.transport is not None:
                self.transport.close()

    def _settle(self) -> None:
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)

    def _upgrade(self) -> bool:
        head, ends, rest = self._buffer.partition(b"\r\n\r\n")
        if not ends:
            return False
        if not head.startswith(b"HTTP/1.1 101"):
            assert self.transport is not None
            self.transport.close()
            return False
        self.upgraded, self._buffer = True, rest
        resume = {"resume": {"epoch": self.epoch, "offset": self.offset, "event_id": self.event_id}}
        asked = {**self.options, **(resume if self.epoch and self.event_id else {})}
        if asked and self.transport is not None:
            self.transport.write(text_frame(type="connect", **asked))
        return True

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            size, head = buffer[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            if len(buffer) < at + head + size:
                break
            yield buffer[at] & 15, buffer[at + head : at + head + size]
            at += head + size
        self._buffer = buffer[at:]

    def _text(self, frame: dict[str, Any]) -> None:
        kind = frame.get("type")
        if kind in {"connected", "reset"}:
            resumes = bool(self.epoch)
            self.epoch = frame["epoch"]
            if kind == "reset" or not resumes:
                self.offset, self.event_id = frame["offset"], frame.get("event_id", "")
            if kind == "connected" and not self.connected:
                self._settle()
                self.connected = True
                self._on_change(self, "connected")
        elif "event_type" in frame:
            for event in frame["events"] if frame["event_type"] == "event_batch" else (frame,):
                if event["offset"] != self.offset + 1:
                    self.repeated += 1
                self.offset, self.event_id = event["offset"], event["event_id"]
