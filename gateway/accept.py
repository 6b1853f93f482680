"""TCP connections from their accept on: counted, and closed unless a request's head comes in time.

aiohttp times what happens between requests; what a peer does before its first one is bounded here. After an upgrade the
connection is passed on to its socket.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from carrel.errors import CarrelError, http_status
from gateway.held import Held, Taken
from gateway.limits import AcceptLimits
from gateway.sockets import Socket

__all__ = ["Accepted", "Detached", "accepted_of", "note_request", "upgraded"]

_REASONS: Final = {429: "Too Many Requests", 503: "Service Unavailable"}


class Accepted(asyncio.Protocol):
    """One TCP connection, around aiohttp's protocol of it, or the socket that has taken it over.

    Args:
        serve: Makes aiohttp's protocol.
        limits: What counts the connection.
        head_s: How long the head of the first request may take.
    """

    __slots__ = ("_counted", "_head_s", "_inner", "_late", "_limits", "_serve", "address")

    def __init__(self, serve: Callable[[], asyncio.Protocol], limits: AcceptLimits, head_s: float) -> None:
        self._serve = serve
        self._limits = limits
        self._head_s = head_s
        self._counted = Held()
        self._inner: asyncio.Protocol | None = None
        self._late: asyncio.TimerHandle | None = None
        self.address = ""

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        """Count it and pass it on, or refuse it."""
        # uvloop's is no subclass of it.
        transport = cast(asyncio.Transport, made)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        try:
            self._counted.enter(self._limits.accepted(self.address))
        except CarrelError as error:
            transport.write(_refusal(error))
            transport.close()
            return
        self._late = asyncio.get_running_loop().call_later(self._head_s, transport.abort)
        self._inner = self._serve()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``, as for the rest."""
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.in_time()
        self._counted.close()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def in_time(self) -> None:
        """A whole head has come."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def upgraded(self) -> Taken[None]:
        """It counts for its address as a socket from now on, which the handshake has counted."""
        return self._limits.upgraded(self.address)

    def take_over(self, request: web.BaseRequest, response: bytes, socket: Socket) -> None:
        """Answer the request, and let the socket be the connection's protocol instead of aiohttp's, which ends.

        aiohttp's objects and tasks of the connection are let go: they are most of what an idle socket would cost.
        """
        inner, transport = self._inner, socket.transport
        assert inner is not None
        serving: Any = inner
        # What came behind the request is the socket's; aiohttp would take it for the next request.
        early, serving._message_tail = serving._message_tail, b""  # noqa: SLF001 -- it has no public way
        # Without a transport it closes none when its handler returns; then it is told that its connection has ended.
        serving.transport = None
        request.task.add_done_callback(lambda _: inner.connection_lost(None))
        self._counted.enter(self.upgraded())
        self._inner = socket
        transport.write(response)
        if early:
            # At once: the loop may read more of them before anything that is left for its next turn.
            socket.data_received(early)


class Detached(web.StreamResponse):
    """What a handler returns whose connection has been taken over: aiohttp sends nothing for it."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Nothing: the response has been sent."""
        self.force_close()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing."""


@web.middleware
async def note_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The middleware that tells a connection that its first request has begun."""
    accepted = _accepted(request)
    if accepted is not None:
        accepted.in_time()
    return await handler(request)


def upgraded(request: web.Request) -> Taken[None]:
    """The request's connection counts as a socket from now on, though aiohttp goes on serving it."""
    found = _accepted(request)
    return found.upgraded() if found is not None else Taken(None, lambda: None)


def accepted_of(request: web.BaseRequest) -> Accepted:
    """The connection of a request."""
    found = _accepted(request)
    assert found is not None
    return found


def _accepted(request: web.BaseRequest) -> Accepted | None:
    protocol: Any = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, Accepted) else None


def _refusal(error: CarrelError) -> bytes:
    status, body = http_status(error), orjson.dumps({"error": error.to_dict()})
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {max(1, math.ceil(error.retry_after_s or 1))}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
