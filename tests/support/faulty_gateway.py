"""A gateway with one fault: it hands everything on to a real one, but for what a test has planted.

    async with faulty_gateway(stack.url, Fault(answer=…)) as url: ...

Requests, server-sent events and sockets pass as they are where the fault does not touch them. Not for load.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

_KEPT = ("authorization", "content-type", "prefer", "thread-id", "last-event-id", "origin", "carrel-doctor-user")

Json = dict[str, Any]


@dataclass
class Asked:
    """A request on its way: a fault may change the headers before it is handed on."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def user(self) -> str:
        """The doctor's user that it is for."""
        return self.headers.get("Carrel-Doctor-User", "")


@dataclass
class Fault:
    """What goes wrong. ``memory`` is the fault's own, for one examination.

    ``ask`` may change a request, ``answer`` the status and the body of an answer, ``frame`` puts frames in the place of
    one that goes to a user's socket, ``line`` lines in the place of one of a stream of server-sent events.
    """

    ask: Callable[[Asked, Json], None] = lambda asked, memory: None
    answer: Callable[[Asked, int, bytes, Json], tuple[int, bytes]] = lambda asked, status, body, memory: (status, body)
    frame: Callable[[str, Json, Json], list[Json]] = lambda user, frame, memory: [frame]
    line: Callable[[str, bytes, Json], list[bytes]] = lambda user, line, memory: [line]
    memory: Json = field(default_factory=dict)


class _Gateway:
    def __init__(self, url: str, fault: Fault, session: aiohttp.ClientSession) -> None:
        self._url, self._fault, self._session = url, fault, session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() in _KEPT}
        asked = Asked(request.method, request.path_qs, headers)
        self._fault.ask(asked, self._fault.memory)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, asked)
        body = await request.read()
        async with self._session.request(
            asked.method, self._url + asked.path, data=body or None, headers=asked.headers
        ) as answer:
            if answer.content_type == "text/event-stream":
                return await self._stream(request, asked, answer)
            status, data = self._fault.answer(asked, answer.status, await answer.read(), self._fault.memory)
            kept = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
            return web.Response(status=status, body=data, headers=kept)

    async def _stream(self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with suppress(ConnectionError):  # the reader has had enough
            async for line in answer.content:
                for each in self._fault.line(asked.user, line, self._fault.memory):
                    await response.write(each)
        return response

    async def _socket(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        try:
            upstream = await self._session.ws_connect(
                self._url + asked.path, headers=asked.headers, protocols=("carrel.v1",)
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status)
        async with upstream:
            ws = web.WebSocketResponse(protocols=("carrel.v1",))
            await ws.prepare(request)
            pumps = [asyncio.create_task(self._up(ws, upstream)), asyncio.create_task(self._down(ws, upstream, asked))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await ws.close()
        return ws

    async def _up(self, ws: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type is aiohttp.WSMsgType.TEXT:
                await upstream.send_str(message.data)

    async def _down(self, ws: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse, asked: Asked) -> None:
        memory: Json = {"shared": self._fault.memory}
        async for message in upstream:
            if message.type is aiohttp.WSMsgType.TEXT:
                for frame in self._fault.frame(asked.user, json.loads(message.data), memory):
                    await ws.send_json(frame)


@asynccontextmanager
async def faulty_gateway(url: str, fault: Fault) -> AsyncIterator[str]:
    """Its address, for the length of the block."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", _Gateway(url, fault, session).handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def changed(body: bytes, change: Callable[[Json], Mapping[str, Any] | None]) -> bytes:
    """A JSON body after a change, in place or by what is returned."""
    value = json.loads(body)
    return json.dumps(change(value) or value).encode()
