"""Server-sent events over the users' logs: one run's events to its end, or everything of a user as it happens.

Here is what comes before the stream: who asks, what for, where it begins. The stream itself is ``gateway.sse_session``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import hdrs, web

from carrel.errors import CarrelError, DrainingError, InvalidRequestError, TokenError
from carrel.ids import check_id, check_minted_id, new_id
from carrel.v1 import execution_pb2
from gateway.accept import upgraded
from gateway.close_codes import close_code_for
from gateway.doctor_users import acting
from gateway.handshake import HandshakeOptions
from gateway.headers import single_header
from gateway.hub import Feed
from gateway.limits import client_address
from gateway.log_reader import LogReader, RunLog
from gateway.login import Login, bearer_token
from gateway.parts import Parts
from gateway.positioning import Positioning, Start
from gateway.rest.http import query
from gateway.ring import Cursor, Place
from gateway.runs import TERMINAL
from gateway.sse import first_words, parse_position
from gateway.sse_outflow import ChunkedPipe, Course, SseOutflow
from gateway.sse_session import EventStream, StreamOptions

__all__ = ["EventHandlers", "StreamLog", "StreamOf"]


_POSITION: Final = "last_event_id"
_TOKEN: Final = "socket_token"
_HEADER: Final = "Last-Event-ID"
_MEDIA_TYPE: Final = "text/event-stream"
_EVERYTHING: Final = Place("", 0)
_HEADERS: Final = {
    hdrs.CONTENT_TYPE: f"{_MEDIA_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    # Proxies of the nginx family gather a response before they pass it on, unless told not to.
    "X-Accel-Buffering": "no",
}


class StreamLog(LogReader, RunLog, Protocol):
    """Reads a stream's log."""


@dataclass(frozen=True, slots=True)
class StreamOf:
    """What a stream is of: everything of the user's, one thread, or one run; and the position to go on from.

    ``outflow`` makes what writes it; ``log`` is what it is read by, where it is not by what all streams are.
    """

    resume: Place | None = None
    thread_id: str = ""
    run: execution_pb2.Run | None = None
    outflow: Callable[[Course], SseOutflow] = SseOutflow
    log: StreamLog | None = None

    @property
    def run_id(self) -> str:
        return self.run.run_id if self.run is not None else ""


class EventHandlers:
    """Args:
    parts: What they work with.
    positioning: Finds where streams begin.
    options: How connections are written to, and how they live.
    """

    def __init__(self, parts: Parts, positioning: Positioning, options: HandshakeOptions) -> None:
        self._parts = parts
        self._positioning = positioning
        self._options = options
        self._stream_options = StreamOptions(options.session.heartbeat_s, options.session.close_s)

    async def of_run(self, request: web.Request) -> web.StreamResponse:
        """``GET /api/runs/{run_id}/events``: from the run's first event to its last."""
        with ExitStack() as held:
            login, asked = await self.admit(request, held, (_POSITION, _TOKEN))
            resume = _position(request, asked)
            run_id = check_id(request.match_info["run_id"], "run_id")
            run = await self._parts.runs.get(login, run_id)
            # After nothing at all means the same as without a position: from the run's first event.
            resume = None if resume == _EVERYTHING else resume
            return await self.stream(request, login, StreamOf(resume, run=run))

    async def of_user(self, request: web.Request) -> web.StreamResponse:
        """``GET /api/events``: all of the user's events, or a thread's, from now on or from a position."""
        with ExitStack() as held:
            login, asked = await self.admit(request, held, (_POSITION, _TOKEN, "thread_id", "from"))
            thread_id = check_minted_id(asked["thread_id"], "thread_id") if "thread_id" in asked else ""
            resume = _position(request, asked)
            return await self.stream(
                request, login, StreamOf(resume or _beginning(asked.get("from", "now")), thread_id)
            )

    async def admit(
        self, request: web.Request, held: ExitStack, known: Collection[str]
    ) -> tuple[Login, Mapping[str, str]]:
        """The login and the query, once there is room for the connection.

        Raises:
            CarrelError: It is refused.
        """
        if self._parts.connections.draining:
            raise DrainingError("this gateway is shutting down", advice="connect again", retry_after_s=1)
        forwarded = request.headers.getall("X-Forwarded-For", [])
        address = client_address(request.remote, forwarded, self._options.trusted_proxies)
        held.enter_context(self._parts.limits.connection(address))
        login = await self._login_of(request)
        held.enter_context(self._parts.limits.user(login.user_id))
        held.enter_context(upgraded(request))
        return login, query(request, known)

    async def _login_of(self, request: web.Request) -> Login:
        token = bearer_token(single_header(request, hdrs.AUTHORIZATION))
        if token:
            return acting(await self._parts.logins.verified(token), request, self._parts.logins)
        single_use = request.query.get(_TOKEN, "")
        if not single_use:
            raise TokenError(
                "there is neither an Authorization header nor a socket_token",
                advice="send the header, or get a token for an EventSource from POST /api/socket-tokens",
            )
        return await self._parts.socket_tokens.redeem(single_use)

    async def stream(self, request: web.Request, login: Login, asked: StreamOf) -> web.StreamResponse:
        stream = EventStream(new_id("sse"), login, self._parts, self._stream_options, asked.run_id)
        with self._parts.hub.join(login, stream) as feed, self._parts.connections.session(stream):
            # The run was asked for since the login was verified; from here on a revocation finds the stream.
            self._parts.logins.check(login)
            try:
                start = await self._find(login, feed, asked)
            except CarrelError as error:
                # An EventSource comes back by itself after a stream, and never after a refusal.
                start = None
                stream.end(close_code_for(error), error)
            if start is not None and await self._nothing_left(login, asked, start):
                # What tells an EventSource not to come back.
                return web.Response(status=204, headers={hdrs.CACHE_CONTROL: "no-store"})
            response = web.StreamResponse(headers=_HEADERS)
            response.force_close()
            await response.prepare(request)
            # Together with the head, which aiohttp holds back until something follows.
            await response.write(first_words())
            transport = request.transport
            if transport is not None:
                with self._parts.connections.opened(_Open(transport)):
                    await self._serve(response, transport, stream, feed, start, asked)
        return response

    async def _find(self, login: Login, feed: Feed, asked: StreamOf) -> Start:
        if asked.run is not None and asked.resume is None:
            return await self._positioning.of_run(login, feed, asked.run_id, asked.log or self._parts.run_log)
        start = await self._positioning.find(login, feed, asked.resume, asked.thread_id)
        start.cursor.run_id = asked.run_id
        return start

    async def _nothing_left(self, login: Login, asked: StreamOf, start: Start) -> bool:
        """Whether a reader that comes back has had all of a run, to its end."""
        if asked.run is None or asked.resume is None or not start.recovered or asked.run.state not in TERMINAL:
            return False
        try:
            extent = await self._parts.run_log.extent(login, asked.run_id)
        except CarrelError:
            return False
        return extent is None or (extent.sealed and asked.resume.offset >= extent.last_offset)

    async def _serve(
        self,
        response: web.StreamResponse,
        transport: asyncio.Transport,
        stream: EventStream,
        feed: Feed,
        start: Start | None,
        asked: StreamOf,
    ) -> None:
        _cut_if_silent(transport, 2 * self._stream_options.heartbeat_s)
        cursor = start.cursor if start is not None else Cursor(feed.ring.top, feed.ring.version)
        tally = self._parts.tally
        tally.accepted += 1
        pipe = ChunkedPipe(transport, tally, chunked="chunked" in response.headers.get(hdrs.TRANSFER_ENCODING, ""))
        log = asked.log or self._parts.log
        course = Course(pipe, feed, log, cursor, self._options.flow, tally, on_end=stream.finish)
        await stream.run(response, transport, asked.outflow(course), start)


@dataclass(frozen=True, slots=True)
class _Open:
    """The connection, as a drain cuts it."""

    transport: asyncio.Transport


def _cut_if_silent(transport: asyncio.Transport, after_s: float) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing: readers say nothing that would be missed."""
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after_s * 1000))


def _position(request: web.Request, asked: Mapping[str, str]) -> Place | None:
    # The header is the newer one: an EventSource sends it when it comes back, beside the address that it began with.
    header, parameter = request.headers.get(_HEADER, ""), asked.get(_POSITION, "")
    # An empty one is a page's that has none yet. A wrong one is told, though the other counts.
    older = parse_position(parameter, _POSITION) if parameter else None
    return parse_position(header, _HEADER) if header else older


def _beginning(name: str) -> Place | None:
    if name not in {"now", "oldest"}:
        problem = "must be now or oldest"
        raise InvalidRequestError(f"from {problem}", fields={"from": problem})
    return _EVERYTHING if name == "oldest" else None
