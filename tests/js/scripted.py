"""A gateway for the JavaScript client's tests, whose scripts are JSON: what is in its log, and what goes wrong.

Tests in Node and pages in a browser make gateways of their own, ``POST /scripts`` with a ``Script``'s fields, and find
each under ``/{id}`` (the socket at ``/{id}/ws``, streams of events at ``/{id}/api/…/events``). ``GET /{id}/told`` says
what clients did, ``POST /{id}/commit`` adds to the log and ``POST /{id}/change`` changes the script. It keeps the
protocol wherever the script does not say otherwise; ``wrong`` in what it tells names what clients must not do. The
repository's files are served as they are under ``/files``, so that a page has no other origin.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any

from aiohttp import web

from conformance.client.frames import Frame, batch
from conformance.client.kept import Kept
from tests.support.stack import ROOT

__all__ = ["Gateway", "Script", "scripted_gateways"]


@dataclass
class Script(Kept):
    """What clients meet.

    Args:
        ack_ms: How long a full window may stay without an ``ack``; 0 for ever.
        tokens: Those that are good, or socket tokens; empty for all.
        expires_ms: How long a login lasts without a ``refresh``; 0 for ever.
        plans: What goes wrong with connections, by their number; the last one goes on for those after, if ``repeat``.
        repeat: See ``plans``.
        answers: What requests are answered with, one after the other; null for the connection's end. Then: accepted.
        runs: What ``GET /api/runs/{run_id}`` knows.
    """

    ack_ms: int = 0
    tokens: list[str] = field(default_factory=list)
    expires_ms: int = 0
    plans: list[Frame] = field(default_factory=list)
    repeat: bool = False
    answers: list[Frame | None] = field(default_factory=list)
    runs: dict[str, Frame] = field(default_factory=dict)


class _OverError(Exception):
    """The connection is over."""


class Gateway:
    """One script at work."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.attempts: list[float] = []
        self.connects: list[Frame] = []
        self.acks: list[tuple[int, int]] = []
        self.requests: list[Frame] = []
        self.refreshed: list[str] = []
        self.wrong: list[str] = []
        self.ahead = 0
        self.sent = 0
        self.changed = asyncio.Condition()

    def told(self) -> Frame:
        """What clients did."""
        names = ("attempts", "connects", "acks", "requests", "refreshed", "wrong", "ahead", "sent")
        return {name: getattr(self, name) for name in names}

    def plan(self, number: int) -> Frame:
        """What goes wrong with this connection."""
        plans = self.script.plans
        if number < len(plans):
            return plans[number]
        return plans[-1] if plans and self.script.repeat else {}

    async def above(self, offset: int) -> None:
        """Until the log has more than that."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.script.top > offset)

    async def note(self) -> None:
        """Something about the log or acknowledgements is new."""
        async with self.changed:
            self.changed.notify_all()

    async def commit(self, events: list[Frame]) -> None:
        """Add to the log."""
        self.script.log += events
        await self.note()

    async def change(self, changes: Frame) -> None:
        """Change the script."""
        for name, value in changes.items():
            setattr(self.script, name, value)
        await self.note()


class _Line:
    """One connection of a socket."""

    def __init__(self, gateway: Gateway, ws: web.WebSocketResponse, request: web.Request, number: int) -> None:
        self._gateway = gateway
        self._script = gateway.script
        self._plan = gateway.plan(number)
        self._ws = ws
        self._request = request
        self._number = number
        self._frames = 0
        self._silent = False
        self._at = self._acked = self._window = 0
        self._options: Frame = {}
        self._expires = asyncio.Event()

    async def serve(self) -> None:
        first = await self._receive()
        self._gateway.connects.append(first)
        login = first.get("token") or first.get("socket_token")
        if self._script.tokens and login not in self._script.tokens:
            why = {"code": "TOKEN", "status": "UNAUTHENTICATED", "message": "no valid token", "advice": "log in again"}
            await self._ws.send_json({"type": "error", **why, "retryable": False})
            await self._end({"code": 4500, "reason": "bad_token"})
        self._options = first
        await self._greet(first)
        works = [self._events(), self._read(), self._beat(), self._age(), self._watch()]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _greet(self, connect: Frame) -> None:
        begun = self._script.begin(connect, self._number)
        self._at = self._acked = begun.at
        self._window = begun.window
        for frame in begun.frames:
            await self._send(frame)
        for frame in self._plan.get("greet", []):
            await self._send(frame)

    # What is sent.

    async def _events(self) -> None:
        script, thread = self._script, self._options.get("thread_id", "")
        while True:
            async with self._gateway.changed:
                await self._gateway.changed.wait_for(lambda: self._script.top > self._at and self._room > 0)
            most = min(script.batch if self._options.get("batch") else 1, self._room)
            events = script.after(self._at, most)
            self._at += len(events)
            self._gateway.ahead = max(self._gateway.ahead, self._at - self._acked)
            for part in script.of_thread(events, thread):
                if isinstance(part, list):
                    await self._spoilt(part)
                else:
                    await self._send(part)

    async def _spoilt(self, events: list[Frame]) -> None:
        """Send them as they are, or as the plan has it: something before one, or in place of it, or nothing."""
        without = self._plan.get("without", [])
        say = {item["at"]: item for item in self._plan.get("say", [])}
        rest: list[Frame] = []
        for item in events:
            here = say.get(item["offset"])
            if here is not None:
                await self._pack(rest)
                rest = []
                for text in here["texts"]:
                    await self._send(text)
                if here.get("becomes"):
                    await self._gateway.change(here["becomes"])
            if item["offset"] not in without and not (here and here.get("instead")):
                rest.append(item)
        await self._pack(rest)

    async def _pack(self, events: list[Frame]) -> None:
        if len(events) == 1:
            await self._send(events[0])
        elif events:
            await self._send(batch(events, compress=bool(self._options.get("compress"))))

    @property
    def _room(self) -> int:
        return self._window - (self._at - self._acked) if self._window else 10**9

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._script.heartbeat)
            await self._send({"type": "ping", "epoch": self._script.epoch, "offset": self._at, "top": self._script.top})

    async def _age(self) -> None:
        while True:
            self._expires.clear()
            try:
                seconds = self._script.expires_ms / 1000 or None
                async with asyncio.timeout(seconds):
                    await self._expires.wait()
            except TimeoutError:
                await self._end({"code": 4002, "reason": "expired", "retry_ms": 1})

    async def _watch(self) -> None:
        """End the connection whose window stays full."""
        while True:
            async with self._gateway.changed:
                await self._gateway.changed.wait_for(lambda: self._script.ack_ms > 0 and self._room <= 0)
            acked = self._acked
            await asyncio.sleep(self._script.ack_ms / 1000)
            if self._room <= 0 and self._acked == acked:
                await self._end({"code": 4005, "reason": "ack_timeout", "retry_ms": 1})

    async def _send(self, sent: Frame | str) -> None:
        await self._cut_here()
        self._frames += 1
        self._gateway.sent += 1
        await self._ws.send_str(sent if isinstance(sent, str) else json.dumps(sent))
        await self._gateway.note()
        await self._cut_here()

    async def _cut_here(self) -> None:
        cut = self._plan.get("cut") or {}
        if cut.get("after") != self._frames:
            return
        if cut["how"] == "silence":
            self._silent = True
            await asyncio.sleep(3600)
        if cut["how"] == "bye":
            await self._end(cut["bye"])
        if cut["how"] == "code":
            await self._end(None, cut["code"])
        self._cut(cut["how"] == "halfway")

    def _cut(self, halfway: bool) -> None:
        transport = self._request.transport
        if transport is not None and halfway:
            # A frame of 100 bytes, of which 20 come.
            transport.write(b"\x81\x64" + b'{"event_type": "agen')
            transport.close()
        elif transport is not None:
            transport.abort()
        raise _OverError

    async def _end(self, bye: Frame | None, code: int = 0) -> None:
        if bye is not None:
            code = bye["code"]
            await self._ws.send_json({"type": "bye", "reconnect": code < 4500, **bye})
        await self._ws.close(code=code)
        raise _OverError

    # What comes.

    async def _receive(self) -> Frame:
        message = await self._ws.receive()
        if message.type is not web.WSMsgType.TEXT:
            raise _OverError
        frame: Frame = json.loads(message.data)
        return frame

    async def _read(self) -> None:
        while True:
            frame = await self._receive()
            kind = frame["type"]
            if kind == "ack":
                await self._ack(frame["offset"])
            elif kind == "refresh":
                self._gateway.refreshed.append(frame["token"])
                self._expires.set()
                lasts = self._script.expires_ms / 1000 or 3600
                await self._ws.send_json({"type": "refreshed", "expires_at": time.time() + lasts})
            elif kind == "ping":
                if not self._silent:
                    await self._ws.send_json({"type": "pong", **_ref(frame)})
            else:
                await self._answer(frame)

    async def _answer(self, frame: Frame) -> None:
        self._gateway.requests.append(frame)
        if self._script.answers:
            answer = self._script.answers.pop(0)
            if answer is None:
                self._cut(halfway=False)
        else:
            run = {"run_id": frame.get("run_id", "run-1"), "status": "RUNNING"}
            kinds = {"agent_cancel": "cancel_accepted", "input_provide": "input_accepted"}
            answer = {"type": kinds.get(frame["type"], "run_accepted"), "thread_id": "t", "request_id": "q", **run}
        await self._ws.send_json({**(answer or {}), **_ref(frame)})

    async def _ack(self, offset: int) -> None:
        self._gateway.acks.append((self._number, offset))
        if not self._window or offset > self._at:
            self._gateway.wrong.append(f"ack {offset} of events up to {self._at}, with a window of {self._window}")
        self._acked = max(self._acked, offset)
        await self._gateway.note()


def _ref(frame: Frame) -> Frame:
    return {"client_ref": frame["client_ref"]} if "client_ref" in frame else {}


# Server-sent events.


async def _stream(gateway: Gateway, request: web.Request) -> web.StreamResponse:
    """The log, or one run's events, from ``Last-Event-ID``; plans cut it as they do sockets."""
    plan, script = gateway.plan(len(gateway.attempts)), gateway.script
    gateway.attempts.append(time.monotonic())
    run_id = request.match_info.get("run_id", "")
    asked = request.headers.get("Last-Event-ID", "")
    resume: Frame | None = {"offset": 0} if run_id else None
    if asked:
        epoch, offset, event_id = asked.split(":", 2)
        resume = {"epoch": epoch, "offset": int(offset), "event_id": event_id}
    gateway.connects.append({"resume": resume, "token": request.headers.get("Authorization", "")[7:]})
    at, reason = script.start(resume)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    cut, count = plan.get("cut") or {}, 0

    async def send(event: str, body: Frame | None, place: str) -> None:
        nonlocal count
        count += 1
        lines = [f"id: {place}"] if place else []
        if body is not None:
            lines += [f"event: {event}", f"data: {json.dumps(body, ensure_ascii=False)}"]
        await response.write(("\n".join(lines) + "\n\n").encode())
        if cut.get("after") == count and request.transport is not None:
            if cut["how"] == "halfway":
                await response.write(b"event: agent_mess")
            if cut["how"] != "end":
                request.transport.abort()
            raise _OverError

    with suppress(_OverError, ConnectionError):
        place = {"epoch": script.epoch, "offset": at, "event_id": script.id_at(at)}
        head = {**place, "recovered": resume is not None and not reason, "heartbeat": script.heartbeat}
        await send("connected", head, f"{script.epoch}:{at}:{place['event_id']}")
        if reason:
            await send("reset", {"reason": reason, "epoch": script.epoch, "offset": at}, f"{script.epoch}:{at}:")
        while True:
            await gateway.above(at)
            item = script.log[at + 1 - script.first]
            at = item["offset"]
            if run_id in ("", item["run_id"]):
                await send(item["event_type"], item, f"{script.epoch}:{at}:{item['event_id']}")
                if run_id and item["event_type"] == "run_completed":
                    break
    return response


# The server.


class _Server:
    def __init__(self) -> None:
        self._gateways: dict[str, Gateway] = {}
        self._lines: set[asyncio.Task[Any]] = set()

    @contextmanager
    def _line(self) -> Iterator[None]:
        """What the present task does is ended with the server: what waits for a client's end may wait for ever."""
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        try:
            yield
        finally:
            self._lines.discard(task)

    async def aclose(self) -> None:
        """End the connections."""
        lines = list(self._lines)
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)

    def _of(self, request: web.Request) -> Gateway:
        return self._gateways[request.match_info["id"]]

    async def make(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"g{len(self._gateways)}"
        self._gateways[name] = Gateway(
            Script(**{item.name: body[item.name] for item in fields(Script) if item.name in body})
        )
        return web.json_response({"id": name})

    async def told(self, request: web.Request) -> web.Response:
        return web.json_response(self._of(request).told())

    async def commit(self, request: web.Request) -> web.Response:
        await self._of(request).commit(await request.json())
        return web.json_response({})

    async def change(self, request: web.Request) -> web.Response:
        await self._of(request).change(await request.json())
        return web.json_response({})

    async def run(self, request: web.Request) -> web.Response:
        run = self._of(request).script.runs.get(request.match_info["run_id"])
        why = {"code": "UNKNOWN_RUN", "status": "NOT_FOUND", "message": "there is no such run", "retryable": False}
        return web.json_response(run) if run else web.json_response({"error": why}, status=404)

    async def events(self, request: web.Request) -> web.StreamResponse:
        with self._line():
            return await _stream(self._of(request), request)

    async def socket(self, request: web.Request) -> web.StreamResponse:
        gateway = self._of(request)
        number = len(gateway.attempts)
        gateway.attempts.append(time.monotonic())
        if becomes := gateway.plan(number).get("becomes"):
            await gateway.change(becomes)
        if status := gateway.plan(number).get("refuse"):
            return web.json_response({"error": {"code": "REFUSED", "message": "as the script says"}}, status=status)
        ws = web.WebSocketResponse(protocols=("carrel.v1",), autoclose=False, timeout=0.2)
        try:
            await ws.prepare(request)
        except ConnectionError:
            # It left before it was answered.
            return web.Response()
        with self._line(), suppress(_OverError, ConnectionError):
            await _Line(gateway, ws, request, number).serve()
        return ws

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>tests</title>", content_type="text/html")


@asynccontextmanager
async def scripted_gateways() -> AsyncIterator[str]:
    """Serve them for the length of the block; the address."""
    server, app = _Server(), web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_get("/page", server.page)
    app.router.add_static("/files/clients", ROOT / "clients")
    app.router.add_static("/files/tests/js", ROOT / "tests" / "js")
    app.router.add_post("/scripts", server.make)
    app.router.add_get("/{id}/told", server.told)
    app.router.add_post("/{id}/commit", server.commit)
    app.router.add_post("/{id}/change", server.change)
    app.router.add_get("/{id}/ws", server.socket)
    app.router.add_get("/{id}/api/runs/{run_id}", server.run)
    app.router.add_get("/{id}/api/runs/{run_id}/events", server.events)
    app.router.add_get("/{id}/api/events", server.events)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await server.aclose()
        await runner.cleanup()
