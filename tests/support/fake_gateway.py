"""A gateway made of one list: logs of events, scripted ends of connections. Speaks the protocol as far as clients see.

It checks nothing that clients must not rely on, and knows one user.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "a.good.token"


def event(offset: int, kind: str = "agent_thinking", **changes: Any) -> dict[str, Any]:
    """A log event as the socket sends it."""
    return {
        "event_type": kind,
        "event_id": f"ev-{offset}",
        "offset": offset,
        "user_id": "alice",
        "thread_id": "t",
        "run_id": "r",
        "request_id": "q",
        "agent_name": "data",
        "attempt": 1,
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "data": {"text": str(offset)},
    } | changes


@dataclass
class FakeGateway:
    """``log`` is what there is; ``cut_after`` ends connection number i after so many events, ``None`` never.

    ``answer`` answers command number i (from 1): with a frame, with silence (empty), or by closing (None).
    ``window`` is what it grants of the window that a client asks for, 0 for none; ``batch`` how many events go into a
    frame, compressed when the client takes that. ``old`` knows none of these, as the first release. ``spoil`` puts what
    it returns in the place of a frame that is about to be sent on connection number i.
    """

    url: str = ""
    epoch: str = "e1"
    log: list[dict[str, Any]] = field(default_factory=list)
    cut_after: list[int | None] = field(default_factory=list)
    close_code: int = 4000
    refuse: Callable[[int], int] = lambda _: 0
    heartbeat: float = 30.0
    connects: list[dict[str, Any]] = field(default_factory=list)
    executed: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[dict[str, Any], int], dict[str, Any] | None] | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    attempts: int = 0
    window: int = 0
    batch: int = 1
    old: bool = False
    spoil: Callable[[int, dict[str, Any]], list[dict[str, Any] | str]] = lambda _, frame: [frame]
    acked: int = 0
    ahead: int = 0
    sent: int = 0
    wrong_acks: list[int] = field(default_factory=list)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)
    expires_at: float = 0.0

    async def append(self, *events: dict[str, Any]) -> None:
        """New events at the top."""
        async with self.changed:
            self.log += events
            self.changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /ws``."""
        self.attempts += 1
        if status := self.refuse(self.attempts):
            return web.json_response({}, status=status)
        ws = web.WebSocketResponse(protocols=("carrel.v1",))
        await ws.prepare(request)
        connect = await ws.receive_json()
        number = len(self.connects)
        self.connects.append(connect)
        self.sockets.append(ws)
        if self.old and not isinstance(connect.get("ack", False), bool):
            await ws.send_json({"type": "error", "code": "FRAME", "status": "INVALID_ARGUMENT", "message": "ack"})
            await ws.close(code=4501)
            return ws
        if connect["token"].partition(".")[0] != TOKEN.partition(".")[0]:
            await ws.send_json({"type": "error", "code": "TOKEN", "status": "UNAUTHENTICATED", "message": "bad token"})
            await ws.close(code=4500)
            return ws
        start = self._start(connect.get("resume"))
        reset = start is None
        at = start or 0
        window = min(self.window, connect.get("ack", {}).get("window", self.window)) if "ack" in connect else 0
        await self._say(
            ws,
            number,
            {
                "type": "connected",
                "connection_id": f"c{number}",
                "epoch": self.epoch,
                "offset": at,
                "recovered": not reset,
                "heartbeat": self.heartbeat,
                **({"ack_window": window} if window else {}),
            },
        )
        if reset:
            await self._say(ws, number, {"type": "reset", "reason": "epoch_changed", "epoch": self.epoch, "offset": 0})
        limit = self.cut_after[number] if number < len(self.cut_after) else None
        self.acked = self.sent = at
        sending = asyncio.create_task(self._send(ws, number, at, limit, window or 10**9))
        try:
            async for message in ws:
                await self._frame(ws, message.json())
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return ws

    def _start(self, resume: dict[str, Any] | None) -> int | None:
        if resume is None:
            return len(self.log)
        if resume["offset"] == 0:
            return 0
        known = resume["epoch"] == self.epoch and resume["offset"] <= len(self.log)
        return resume["offset"] if known and self.log[resume["offset"] - 1]["event_id"] == resume["event_id"] else None

    async def _say(self, ws: web.WebSocketResponse, number: int, frame: dict[str, Any]) -> None:
        for sent in self.spoil(number, frame):
            await ws.send_str(sent if isinstance(sent, str) else json.dumps(sent))

    async def _send(self, ws: web.WebSocketResponse, number: int, at: int, limit: int | None, window: int) -> None:
        stop = None if limit is None else at + limit
        while at != stop:
            async with self.changed:
                while len(self.log) <= at or at - self.acked >= window:
                    await self.changed.wait()
            most = min(self.batch, self.acked + window - at, 10**9 if stop is None else stop - at)
            events = self.log[at : at + most]
            self.sent = at + len(events)
            compress = self.connects[number].get("compress")
            await self._say(ws, number, events[0] if len(events) == 1 else batch(events, compress=bool(compress)))
            at += len(events)
            self.ahead = max(self.ahead, at - self.acked)
        await ws.send_json({"type": "bye", "code": self.close_code, "reconnect": True, "retry_ms": 1})
        await ws.close(code=self.close_code)

    async def _frame(self, ws: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        if frame["type"] == "ping":
            await ws.send_json({"type": "pong", "client_ref": frame["client_ref"]})
            return
        if frame["type"] == "ack":
            if frame["offset"] > self.sent:
                self.wrong_acks.append(frame["offset"])
            async with self.changed:
                self.acked = max(self.acked, frame["offset"])
                self.changed.notify_all()
            return
        if frame["type"] == "refresh":
            self.refreshed.append(frame["token"])
            await ws.send_json({"type": "refreshed", "expires_at": self.expires_at})
            return
        self.executed.append(frame)
        if self.answer is not None:
            body = self.answer(frame, len(self.executed))
            if body is None:
                await ws.close(code=4000)
                return
        else:
            body = {"type": "run_accepted", "run_id": "r", "thread_id": "t", "request_id": "q", "status": "RUNNING"}
        if body:
            await ws.send_json({**body, "client_ref": frame["client_ref"]})


def batch(events: list[dict[str, Any]], *, compress: bool = False) -> dict[str, Any]:
    """Several events as one frame."""
    frame: dict[str, Any] = {"event_type": "event_batch", "batch_size": len(events), "compressed": compress}
    if not compress:
        return {**frame, "events": events}
    data = json.dumps(events).encode()
    packed = gzip.compress(data)
    sizes = {"original_size": len(data), "compressed_size": len(packed)}
    return {**frame, "events_compressed": packed.hex(), **sizes}


@asynccontextmanager
async def fake_gateway(**options: Any) -> AsyncIterator[FakeGateway]:
    """Serve one for the length of the block."""
    gateway = FakeGateway(**options)
    app = web.Application()
    app.router.add_get("/ws", gateway.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    gateway.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield gateway
    finally:
        await runner.cleanup()
