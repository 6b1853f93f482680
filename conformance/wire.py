"""A bare WebSocket client for scenarios: sends what it is told, keeps what comes, checks what holds for each frame.

It has no rules of its own about positions, and never reconnects.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from conformance.report import BreachError, expect

__all__ = ["EVENT_FIELDS", "ClosedError", "Frame", "Socket", "events_of"]

Frame = dict[str, Any]

EVENT_FIELDS: Final[Mapping[str, type]] = {
    "event_type": str,
    "event_id": str,
    "offset": int,
    "user_id": str,
    "thread_id": str,
    "run_id": str,
    "request_id": str,
    "agent_name": str,
    "attempt": int,
    "timestamp": str,
    "data": dict,
}
_SUBPROTOCOL: Final = "carrel.v1"


class ClosedError(BreachError):
    """The connection ended where a frame was waited for."""


class Socket:
    """One connection. ``patience_s`` is how long a frame is waited for where nothing else is said."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, patience_s: float = 10.0) -> None:
        self._ws = ws
        self._patience_s = patience_s
        self._events: deque[Frame] = deque()
        self.seen: list[Frame] = []

    @property
    def subprotocol(self) -> str | None:
        """What was agreed on."""
        return self._ws.protocol

    @classmethod
    async def open(
        cls, http: aiohttp.ClientSession, url: str, token: str = "", path: str = "/ws", patience_s: float = 10.0
    ) -> Socket:
        """Connect, with the token as a header if there is one.

        Raises:
            aiohttp.WSServerHandshakeError: It was refused before the upgrade.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        ws = await http.ws_connect(
            url + path, headers=headers, protocols=(_SUBPROTOCOL,), max_msg_size=16 * 1024 * 1024, autoping=True
        )
        return cls(ws, patience_s)

    async def __aenter__(self) -> Socket:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ws.close()

    async def send(self, **frame: Any) -> None:
        """Send a frame."""
        await self.send_text(json.dumps(frame))

    async def send_text(self, text: str) -> None:
        """Send any text."""
        await self._ws.send_str(text)

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        await self._ws.send_bytes(data)

    async def next(self, within_s: float | None = None) -> Frame:
        """The next frame.

        Raises:
            ClosedError: The connection ended.
            TimeoutError: None came.
        """
        message = await self._ws.receive(within_s or self._patience_s)
        if message.type is not aiohttp.WSMsgType.TEXT:
            last = self.seen[-1] if self.seen else None
            raise ClosedError(f"the connection ended with code {self._ws.close_code}; the last frame was {last}")
        return self._checked(message.data)

    def _checked(self, text: str) -> Frame:
        frame: Frame = json.loads(text)
        expect(isinstance(frame, dict), f"a frame is no JSON object: {text[:80]}")
        expect(("type" in frame) != ("event_type" in frame), f"a frame has not exactly one kind of name: {text[:80]}")
        if not self.seen:
            expect(frame.get("type") in {"connected", "error", "bye"}, f"the first frame is {text[:80]}")
        if frame.get("type") == "bye":
            code = frame.get("code")
            if not isinstance(code, int):
                raise BreachError("bye has no code")
            expect(frame.get("reconnect") is (code < 4500), f"bye says reconnect: {frame.get('reconnect')} for {code}")
        self.seen.append(frame)
        return frame

    async def control(self, kind: str, within_s: float | None = None) -> Frame:
        """The next control frame of a kind; events that come before it are kept for ``event``."""
        async with asyncio.timeout(within_s or self._patience_s):
            while True:
                frame = await self.next(within_s)
                if "event_type" in frame:
                    self._events.extend(events_of(frame))
                elif frame["type"] == kind:
                    return frame
                elif frame["type"] == "error":
                    raise BreachError(f"{kind} was waited for and an error came: {frame}")

    async def answer(self, client_ref: str) -> Frame:
        """The control frame that answers a request."""
        async with asyncio.timeout(self._patience_s):
            while True:
                frame = await self.next()
                if "event_type" in frame:
                    self._events.extend(events_of(frame))
                elif frame.get("client_ref") == client_ref:
                    return frame

    async def event(self, within_s: float = 20.0) -> Frame:
        """The next event, out of a batch too; control frames before it are in ``seen``."""
        async with asyncio.timeout(within_s):
            while not self._events:
                self._events.extend(events_of(await self.next(within_s)))
        return self._events.popleft()

    async def events(self, count: int, within_s: float = 20.0) -> list[Frame]:
        """So many events."""
        return [await self.event(within_s) for _ in range(count)]

    async def quiet(self, seconds: float) -> None:
        """Nothing comes for so long but heartbeats.

        Raises:
            BreachError: Something does.
        """
        expect(not self._events, f"{len(self._events)} events came where none was due")
        try:
            async with asyncio.timeout(seconds):
                while True:
                    frame = await self.next(seconds + 1)
                    expect(frame.get("type") in {"ping", "run_state"}, f"{str(frame)[:120]} came where nothing was due")
        except TimeoutError:
            return

    async def end(self, within_s: float = 10.0) -> int:
        """Read to the end; the close code, which must be that of ``bye`` if one came."""
        async with asyncio.timeout(within_s):
            while True:
                message = await self._ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._checked(message.data)
        code = self._ws.close_code or 1006
        byes = [frame for frame in self.seen if frame.get("type") == "bye"]
        if byes:
            expect(self.seen[-1] is byes[-1], "bye was not the last frame")
            expect(byes[-1]["code"] == code, f"bye said {byes[-1]['code']}, and the close code is {code}")
        return code


def events_of(frame: Frame) -> list[Frame]:
    """The events of a frame: one, a batch's, or none. Batches are checked against what they say of themselves."""
    kind = frame.get("event_type")
    if kind is None:
        return []
    if kind != "event_batch":
        return [frame]
    if frame.get("compressed"):
        packed = bytes.fromhex(frame["events_compressed"])
        expect(frame["compressed_size"] == len(packed), f"compressed_size is not {len(packed)}")
        data = gzip.decompress(packed)
        expect(frame["original_size"] == len(data), f"original_size is not {len(data)}")
        events = json.loads(data)
    else:
        events = frame["events"]
    expect(frame["batch_size"] == len(events), f"batch_size is {frame['batch_size']} for {len(events)} events")
    expect(1 < len(events) <= 256, f"a batch has {len(events)} events")
    return list(events)
