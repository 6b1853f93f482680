"""The endpoint that Prometheus reads: ``GET /metrics``, over the plainest HTTP there is, and nothing else.

Bounded against whoever connects: few connections at once, a small request within a few seconds, a response that is
taken within a few more, one request for each connection. As many again are told that there are too many; whoever comes
beyond those is cut off, so that no flood takes the descriptors that the service needs. It has no login: it listens
where scrapers are let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from carrel.errors import StartupError
from servicekit.logs import get_logger
from servicekit.telemetry.exposition import render
from servicekit.telemetry.meters import Meters

__all__ = ["Endpoint", "EndpointLimits", "serve_metrics"]

_log: Final = get_logger("servicekit.metrics")
_SETTING: Final = "CARREL_TELEMETRY__METRICS_LISTEN"


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """Args:
    connections: The most at once; as many further ones are told so and closed, and others cut off.
    request_bytes: The largest head of a request.
    read_s: How long it may take to come.
    write_s: How long the response may take to be taken.
    """

    connections: int = 8
    request_bytes: int = 8192
    read_s: float = 5.0
    write_s: float = 10.0


class Endpoint:
    """Serves one process's metrics. ``address`` is known once it listens."""

    def __init__(self, meters: Meters, limits: EndpointLimits | None = None) -> None:
        self._meters = meters
        self._limits = limits or EndpointLimits()
        self._open: set[asyncio.Task[None]] = set()
        self._refused: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self, listen: str) -> None:
        """Listen at ``host:port``.

        Raises:
            StartupError: The address cannot be had.
        """
        host, _, port = listen.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._connected, host.strip("[]"), int(port), limit=self._limits.request_bytes, backlog=16
            )
        except OSError as error:
            raise _cannot_listen(listen, error) from error
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        """Listen no more and end what is open. Idempotent."""
        if self._server is not None:
            self._server.close()
        left = self._open | self._refused
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: asyncio would tell of each task that is cancelled at the end as of an error.
        served = len(self._open) < self._limits.connections
        among = self._open if served else self._refused
        if len(among) >= self._limits.connections:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer, served=served), name="scraper")
        among.add(task)
        task.add_done_callback(among.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, served: bool) -> None:
        try:
            if served:
                await self._serve(reader, writer)
            else:
                await self._answer(reader, writer, 503, b"too many scrapers at once\n")
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that is slow, gone, or none: it comes again
        finally:
            # Not `close`, which would wait for a peer that does not read.
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.read_s):
            head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            await self._answer(reader, writer, 404, b"there is only /metrics here\n")
        elif method not in {"GET", "HEAD"}:
            await self._answer(reader, writer, 405, b"read it with GET\n")
        else:
            collected = await self._meters.collect()
            text, content_type = await asyncio.to_thread(render, collected, _accepted(fields))
            await self._answer(reader, writer, 200, text, content_type, head_only=method == "HEAD")

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        *,
        head_only: bool = False,
    ) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        async with asyncio.timeout(self._limits.write_s):
            writer.write(head.encode("latin-1") + (b"" if head_only else body))
            # All of it has gone to the kernel before the connection is cut.
            writer.transport.set_write_buffer_limits(0)
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            await _closed_by_peer(reader)


_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@asynccontextmanager
async def serve_metrics(meters: Meters, listen: str, limits: EndpointLimits | None = None) -> AsyncIterator[Endpoint]:
    """The endpoint for the length of the block.

    Raises:
        StartupError: The address cannot be had.
    """
    endpoint = Endpoint(meters, limits)
    await endpoint.start(listen)
    _log.info("metrics can be read", address=endpoint.address)
    try:
        yield endpoint
    finally:
        await endpoint.aclose()


def _accepted(fields: list[str]) -> str:
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


async def _closed_by_peer(reader: asyncio.StreamReader) -> None:
    """The peer has what was sent when it closes; cutting before that would throw away what it has not read yet."""
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass


def _cannot_listen(listen: str, error: OSError) -> StartupError:
    used = error.errno == errno.EADDRINUSE
    return StartupError(
        f"metrics cannot be served at {listen}: {'the address is in use' if used else error.strerror or error}",
        advice=f"set {_SETTING} to a free address of this machine, or to off",
    )
