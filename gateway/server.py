"""The listening gateway: binds its address, serves, and drains in order. What it serves is built in app."""

from __future__ import annotations

import asyncio
import errno
from typing import Final

from aiohttp import web
from aiohttp.log import server_logger

from carrel.errors import InvalidConfigurationError, StartupError
from gateway.accept import Accepted, note_request
from gateway.connections import Connections
from gateway.limits import AcceptLimits
from gateway.malformed import MalformedRequests
from servicekit.health import Readiness
from servicekit.logs import get_logger

__all__ = ["GatewayServer"]

_log = get_logger("gateway.server")

# Tokens of identity providers reach 8 KiB and more.
_MAX_HEADER_BYTES: Final = 24 * 1024
_BACKLOG: Final = 1024
# Between two requests; longer than the proxies that are used keep theirs. Not put off by the half of a request.
_KEEPALIVE_S: Final = 75.0


class GatewayServer:
    """One HTTP server; a ``Running`` of servicekit.lifecycle.

    Args:
        app: What is served.
        listen: ``host:port``.
        connections: Open sockets.
        readiness: Turned on with the listening, off with the drain.
        drain_s: How long sockets may take to close.
        limits: Counts TCP connections.
        head_s: How long the first request's head may take.
    """

    def __init__(
        self,
        app: web.Application,
        listen: str,
        connections: Connections,
        readiness: Readiness,
        drain_s: float,
        *,
        limits: AcceptLimits,
        head_s: float,
    ) -> None:
        app.middlewares.insert(0, note_request)
        self._malformed = MalformedRequests()
        self._app = app
        self._host, self._port = _parse(listen)
        self._connections = connections
        self._readiness = readiness
        self._drain_s = drain_s
        self._limits = limits
        self._head_s = head_s
        self._listener: asyncio.Server | None = None
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=_KEEPALIVE_S,
            shutdown_timeout=min(drain_s, 5.0),
            max_field_size=_MAX_HEADER_BYTES,
            # A socket token may be a part of the address, and holds all of its login.
            max_line_size=_MAX_HEADER_BYTES,
        )
        self._started = False
        self._draining: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port`` with the actual port."""
        return f"{self._host}:{self._port}"

    def routes(self) -> list[web.AbstractRoute]:
        """Everything that is served."""
        return list(self._app.router.routes())

    @property
    def connections(self) -> int:
        """Sockets that are open."""
        return len(self._connections)

    async def start(self) -> int:
        """Listen and serve; the actual port. Idempotent.

        Raises:
            StartupError: The address cannot be listened on.
        """
        if not self._started:
            server_logger.addFilter(self._malformed)
            await self._runner.setup()
            serve = self._runner.server
            assert serve is not None
            try:
                self._listener = await asyncio.get_running_loop().create_server(
                    lambda: Accepted(serve, self._limits, self._head_s),
                    self._host.strip("[]"),
                    self._port,
                    backlog=_BACKLOG,
                )
            except OSError as error:
                raise _cannot_listen(self.address, error) from error
            self._port = self._listener.sockets[0].getsockname()[1]
            self._started = True
            self._readiness.set_open(True)
        return self._port

    async def drain(self) -> None:
        """Readiness off, every connection told to go, then the rest cut. Idempotent, and legal before the start."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._stop(), name="gateway drain")
        await asyncio.shield(self._draining)

    def hasten(self) -> None:
        """End a drain now."""
        self._connections.cut()

    async def _stop(self) -> None:
        self._readiness.set_open(False)
        _log.info("draining", connections=len(self._connections))
        await self._connections.drain(self._drain_s)
        await self._connections.aclose()
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()
        server_logger.removeFilter(self._malformed)


def _parse(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidConfigurationError(
            f"the address {listen!r} is not host:port", advice="write CARREL_GATEWAY_LISTEN=127.0.0.1:8080"
        )
    return host, int(port)


def _cannot_listen(address: str, error: OSError) -> StartupError:
    advice = "set CARREL_GATEWAY_LISTEN to an address of this machine"
    if error.errno == errno.EADDRINUSE:
        advice = "another process uses the port (`ss -ltnp` shows which): stop it, or set CARREL_GATEWAY_LISTEN"
    return StartupError(
        f"cannot listen on {address}: {error.strerror or error}",
        advice=advice,
        phase="READINESS",
        what=f"the address {address}",
    )
