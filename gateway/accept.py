"""TCP connections from their accept on: counted, and closed unless a request's head comes in time.

aiohttp times what happens between requests; what a peer does before its first one is bounded here. Not what follows an
upgrade: that is the handshake's and the session's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, cast

import orjson
from aiohttp import web

from carrel.errors import CarrelError, http_status
from gateway.limits import AcceptLimits

__all__ = ["Accepted", "note_request", "upgraded"]

_REASONS: Final = {429: "Too Many Requests", 503: "Service Unavailable"}


class Accepted(asyncio.Protocol):
    """One TCP connection, around aiohttp's protocol of it.

    Args:
        serve: Makes aiohttp's protocol.
        limits: What counts the connection.
        head_s: How long the head of the first request may take.
    """

    def __init__(self, serve: Callable[[], asyncio.Protocol], limits: AcceptLimits, head_s: float) -> None:
        self._serve = serve
        self._limits = limits
        self._head_s = head_s
        self._held = ExitStack()
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
            self._held.enter_context(self._limits.accepted(self.address))
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
        self._held.close()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def in_time(self) -> None:
        """A whole head has come."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    @contextmanager
    def upgraded(self) -> Iterator[None]:
        """While the block lasts it counts for its address as a socket, which the handshake has counted."""
        with self._limits.upgraded(self.address):
            yield


@web.middleware
async def note_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The middleware that tells a connection that its first request has begun."""
    accepted = _accepted(request)
    if accepted is not None:
        accepted.in_time()
    return await handler(request)


@contextmanager
def upgraded(request: web.Request) -> Iterator[None]:
    """The request's connection is a socket while the block lasts."""
    with ExitStack() as held:
        if (accepted := _accepted(request)) is not None:
            held.enter_context(accepted.upgraded())
        yield


def _accepted(request: web.Request) -> Accepted | None:
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
