"""A gateway that follows a script: one user's log, and what goes wrong on each connection.

It keeps the protocol (positions are compared, windows kept, batches packed) wherever the script does not say otherwise.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from conformance.client.frames import TOKEN, Cut, Frame, Sent, batch
from conformance.client.kept import Kept

__all__ = ["Script", "ScriptedGateway", "serving"]


@dataclass
class Script(Kept):
    """What a connection meets. Connections and attempts are numbered from 0.

    Args:
        refuse: HTTP status that an attempt is answered with, 0 for none.
        greet: What is sent for ``connected``, ``reset`` and the like.
        spoil: What is sent for an event or a batch.
        bye: The last frames and the close code of a connection after so many events: (events, frame or None, code).
        answer: What a request is answered with; None for silence, a Cut for the connection's end.
    """

    refuse: Callable[[int], int] = lambda _: 0
    greet: Callable[[int, Frame], list[Sent]] = lambda _, frame: [frame]
    spoil: Callable[[int, Frame], list[Sent]] = lambda _, frame: [frame]
    bye: Callable[[int], tuple[int, Frame | None, int] | None] = lambda _: None
    answer: Callable[[int, Frame], Frame | Cut | None] = lambda _, __: None


class _EndedError(Exception):
    """The connection is over."""


class ScriptedGateway:
    """Plays a script, and keeps what clients did: ``connects``, ``acks``, ``requests`` and when attempts were made."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.url = ""
        self.attempts: list[float] = []
        self.connects: list[Frame] = []
        self.acks: list[tuple[int, int]] = []
        self.requests: list[Frame] = []
        self.wrong: list[str] = []
        self.unacknowledged = 0
        self.greeted = 0
        self.lines: set[_Line] = set()
        self._changed = asyncio.Condition()

    async def commit(self, *events: Frame) -> None:
        """Add to the log."""
        async with self._changed:
            self.script.log += events
            self._changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /ws`` and ``GET /ws/{user_id}``."""
        number = len(self.attempts)
        self.attempts.append(time.monotonic())
        await self.told()
        if status := self.script.refuse(number):
            return web.json_response({"error": {"code": "REFUSED", "message": "as the script says"}}, status=status)
        ws = web.WebSocketResponse(protocols=("carrel.v1",), autoclose=False)
        await ws.prepare(request)
        line = _Line(self, ws, request, number)
        self.lines.add(line)
        try:
            await line.serve()
        except (_EndedError, ConnectionError):
            pass
        finally:
            self.lines.discard(line)
        return ws

    async def attempted(self, count: int, within_s: float = 15.0) -> None:
        """Until so many connections have been tried."""
        async with asyncio.timeout(within_s):
            await self.wait(lambda: len(self.attempts) >= count)

    async def wait_for_connects(self, count: int, within_s: float = 15.0) -> None:
        """Until so many connections have been greeted."""
        async with asyncio.timeout(within_s):
            await self.wait(lambda: self.greeted >= count)

    async def acknowledged(self, offset: int, within_s: float = 5.0) -> None:
        """Until an acknowledgement has come that goes so far."""
        async with asyncio.timeout(within_s):
            await self.wait(lambda: any(acked >= offset for _, acked in self.acks))

    def rewind(self, offset: int) -> None:
        """The log lost its end: open connections learn it by their next heartbeat, and get nothing more."""
        for line in self.lines:
            line.rewind(offset)

    async def wait(self, holds: Callable[[], bool]) -> None:
        """Until something about the log or acknowledgements holds."""
        async with self._changed:
            await self._changed.wait_for(holds)

    async def greeted_one(self) -> None:
        """A connection knows where it begins."""
        async with self._changed:
            self.greeted += 1
            self._changed.notify_all()

    async def told(self) -> None:
        """An attempt or an acknowledgement has come."""
        async with self._changed:
            self._changed.notify_all()


class _Line:
    """One connection."""

    def __init__(self, gateway: ScriptedGateway, ws: web.WebSocketResponse, request: web.Request, number: int) -> None:
        self._gateway = gateway
        self._script = gateway.script
        self._ws = ws
        self._request = request
        self._number = number
        self._at = 0
        self._acked = 0
        self._window = 0
        self._options: Frame = {}
        self._told: int | None = None

    async def serve(self) -> None:
        async with asyncio.timeout(10):
            first = await self._frame()
        header = self._request.headers.get("Authorization", "")
        if first.get("type") != "connect" or TOKEN not in (first.get("token"), header.removeprefix("Bearer ")):
            why = {"code": "TOKEN", "status": "UNAUTHENTICATED", "message": "no valid token", "advice": "log in again"}
            await self._ws.send_json({"type": "error", **why, "retryable": False})
            await self._end({"type": "bye", "code": 4500, "reason": "bad_token", "reconnect": False}, 4500)
        self._options = first
        self._gateway.connects.append(first)
        begun = self._script.begin(first, self._number)
        self._at = self._acked = begun.at
        self._window = begun.window
        for frame in begun.frames:
            await self._send(self._script.greet(self._number, frame))
        await self._gateway.greeted_one()
        tasks = [asyncio.create_task(work) for work in (self._events(), self._read(), self._beat())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def rewind(self, offset: int) -> None:
        """Tell the next heartbeat that the log ends there, and send nothing beyond it."""
        self._told = offset

    # What is sent.

    async def _events(self) -> None:
        script, thread = self._script, self._options.get("thread_id", "")
        bye = script.bye(self._number)
        left = bye[0] if bye is not None else 10**9
        while left > 0:
            await self._gateway.wait(lambda: self._due > 0 and self._room > 0)
            most = min(script.batch if self._options.get("batch") else 1, self._room, left)
            events = script.after(self._at, most)
            self._at += len(events)
            for frame in self._frames(events, thread):
                await self._send(script.spoil(self._number, frame))
            left -= len(events)
            self._gateway.unacknowledged = max(self._gateway.unacknowledged, self._at - self._acked)
        assert bye is not None
        await self._end(bye[1], bye[2])

    @property
    def _due(self) -> int:
        if self._told is not None:
            return 0
        return self._script.top - self._at

    @property
    def _room(self) -> int:
        return self._window - (self._at - self._acked) if self._window else 10**9

    def _frames(self, events: list[Frame], thread: str) -> list[Frame]:
        if not thread:
            return [batch(events, compress=bool(self._options.get("compress")))] if len(events) > 1 else events
        frames: list[Frame] = []
        for part in self._script.of_thread(events, thread):
            frames += part if isinstance(part, list) else [part]
        return frames

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._script.heartbeat)
            ping = {
                "type": "ping",
                "epoch": self._script.epoch,
                "offset": self._at if self._told is None else self._told,
            }
            await self._send(self._script.greet(self._number, ping))

    async def _send(self, parts: list[Sent]) -> None:
        for part in parts:
            if part is Cut.SILENCE:
                await asyncio.sleep(3600)
            if isinstance(part, Cut):
                self._cut(halfway=part is Cut.HALFWAY)
            await self._ws.send_str(part if isinstance(part, str) else json.dumps(part))

    def _cut(self, *, halfway: bool) -> None:
        transport = self._request.transport
        if transport is not None:
            if halfway:
                # A frame of 100 bytes, of which 20 come.
                transport.write(b"\x81\x64" + b'{"event_type": "agen')
                transport.close()
            else:
                transport.abort()
        raise _EndedError

    async def _end(self, bye: Frame | None, code: int) -> None:
        if bye is not None:
            await self._ws.send_json(bye)
        await self._ws.close(code=code)
        raise _EndedError

    # What comes.

    async def _frame(self) -> Frame:
        message = await self._ws.receive()
        if message.type is not web.WSMsgType.TEXT:
            raise _EndedError
        frame: Frame = json.loads(message.data)
        return frame

    async def _read(self) -> None:
        while True:
            frame = await self._frame()
            match frame.get("type"):
                case "ack":
                    await self._ack(frame["offset"])
                case "ping":
                    await self._ws.send_json({"type": "pong", **_ref(frame)})
                case "agent_execute":
                    self._gateway.requests.append(frame)
                    answer = self._script.answer(self._number, frame)
                    if isinstance(answer, Cut):
                        self._cut(halfway=answer is Cut.HALFWAY)
                    elif answer is not None:
                        await self._ws.send_json({**answer, **_ref(frame)})
                case kind:
                    self._gateway.wrong.append(f"{kind} came after connect")

    async def _ack(self, offset: int) -> None:
        self._gateway.acks.append((self._number, offset))
        if not self._window:
            self._gateway.wrong.append("ack without a window")
        elif offset > self._at:
            self._gateway.wrong.append(f"ack {offset} of events up to {self._at}")
        self._acked = max(self._acked, offset)
        await self._gateway.told()


def _ref(frame: Frame) -> Frame:
    return {"client_ref": frame["client_ref"]} if "client_ref" in frame else {}


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[ScriptedGateway]:
    """Serve the script on a free port of this machine."""
    gateway = ScriptedGateway(script)
    app = web.Application()
    app.router.add_get("/ws", gateway.handle)
    app.router.add_get("/ws/{user_id}", gateway.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    gateway.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield gateway
    finally:
        await runner.cleanup()
