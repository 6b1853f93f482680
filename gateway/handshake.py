"""From a request for a socket to a session: origin, limits, login, the upgrade, the first frame, the place to begin.

Whatever can be refused before the upgrade is refused by an HTTP status; after it, by an ``error`` and a close code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from aiohttp import hdrs, web

from carrel.errors import CarrelError, DrainingError, FrameError, InvalidRequestError, PermissionDeniedError, TokenError
from carrel.ids import check_minted_id, new_id
from gateway.accept import upgraded
from gateway.close_codes import CloseCode, close_code_for
from gateway.frames import Connect, connect_options
from gateway.limits import Network, client_address
from gateway.login import Login, bearer_token
from gateway.outflow import Flow, Outflow
from gateway.parts import Parts
from gateway.positioning import Positioning
from gateway.session import Session, SessionOptions
from gateway.sockets import MAX_MESSAGE_BYTES, SUBPROTOCOL, Ending, Socket, close_socket, read_frame
from servicekit.logs import get_logger

__all__ = ["Handshake", "HandshakeOptions"]

_log = get_logger("gateway.handshake")
_THREAD_HEADER: Final = "thread-id"


@dataclass(frozen=True, slots=True)
class HandshakeOptions:
    """Args:
    connect_s: How long a connection without a header may take until its ``connect``.
    flow: How connections are written to.
    session: How sessions live.
    trusted_proxies: Whose X-Forwarded-For is believed.
    allow_batch: Whether a client that asks for batches gets them.
    """

    connect_s: float = 15.0
    flow: Flow = field(default_factory=Flow)
    session: SessionOptions = field(default_factory=SessionOptions)
    trusted_proxies: Sequence[Network] = ()
    allow_batch: bool = True


class Handshake:
    """Handles ``GET /ws`` and ``GET /ws/{user_id}``."""

    def __init__(self, parts: Parts, positioning: Positioning, options: HandshakeOptions) -> None:
        self._parts = parts
        self._positioning = positioning
        self._options = options

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection from its request to its end.

        Raises:
            CarrelError: It is refused before the upgrade.
        """
        if self._parts.connections.draining:
            raise DrainingError("this gateway is shutting down", advice="connect again", retry_after_s=1)
        self._parts.origins.check(request.headers.get(hdrs.ORIGIN))
        ws = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=MAX_MESSAGE_BYTES,
            heartbeat=self._options.session.heartbeat_s,
            timeout=self._options.session.close_s,
        )
        _check_upgrade(request, ws)
        address = client_address(
            request.remote, request.headers.getall("X-Forwarded-For", []), self._options.trusted_proxies
        )
        thread_id = _thread_of(request)
        with ExitStack() as held:
            held.enter_context(self._parts.limits.connection(address))
            login = self._login_of(request)
            if login is not None:
                _check_path(request, login)
                held.enter_context(self._parts.limits.user(login.user_id))
            held.enter_context(upgraded(request))
            await ws.prepare(request)
            transport = request.transport
            if transport is not None:
                with self._parts.connections.opened(socket := Socket(ws, transport)):
                    await self._serve(request, socket, held, login, Connect(thread_id=thread_id))
        return ws

    def _login_of(self, request: web.Request) -> Login | None:
        token = bearer_token(request.headers.get(hdrs.AUTHORIZATION))
        return self._parts.logins.verify(token) if token else None

    async def _serve(
        self, request: web.Request, socket: Socket, held: ExitStack, login: Login | None, asked: Connect
    ) -> None:
        by_header = login is not None
        try:
            if login is None:
                login, asked = await self._first_frame(request, socket.ws, asked)
                held.enter_context(self._parts.limits.user(login.user_id))
        except CarrelError as error:
            code = CloseCode.HANDSHAKE_TIMEOUT if isinstance(error, _TooLateError) else close_code_for(error)
            await close_socket(socket, Ending(code, error), within_s=self._options.session.close_s)
            return
        except _Gone:
            return
        await self._session(socket, login, asked, by_header=by_header)

    async def _first_frame(
        self, request: web.Request, ws: web.WebSocketResponse, asked: Connect
    ) -> tuple[Login, Connect]:
        """The login and the options of a ``connect`` frame."""
        try:
            async with asyncio.timeout(self._options.connect_s):
                message = await ws.receive()
        except TimeoutError:
            raise _TooLateError(f"no connect frame came within {self._options.connect_s:g} s") from None
        if message.type.name in {"CLOSE", "CLOSING", "CLOSED", "ERROR"}:
            raise _Gone
        frame = read_frame(message)
        if frame.type != "connect":
            raise TokenError("the first frame must be connect with a token, since there is no Authorization header")
        options = connect_options(frame)
        if options.socket_token:
            login = await self._parts.socket_tokens.redeem(options.socket_token)
        else:
            login = self._parts.logins.verify(options.token)
        _check_path(request, login)
        thread_id = options.thread_id or asked.thread_id
        return login, Connect(thread_id=thread_id, resume=options.resume, batch=options.batch)

    async def _session(self, socket: Socket, login: Login, asked: Connect, *, by_header: bool) -> None:
        session = Session(
            new_id("conn"),
            login,
            asked.thread_id,
            logins=self._parts.logins,
            runs=self._parts.runs,
            positioning=self._positioning,
            options=self._options.session,
        )
        with self._parts.hub.join(login, session) as feed, self._parts.connections.session(session):
            try:
                start = await self._positioning.find(login, feed, asked.resume, asked.thread_id)
            except CarrelError as error:
                ending = Ending(close_code_for(error), error, retry_ms=1000)
                await close_socket(socket, ending, within_s=self._options.session.close_s)
                return
            flow = replace(self._options.flow, batch=asked.batch and self._options.allow_batch)
            out = Outflow(socket.transport, feed, self._parts.log, start.cursor, flow)
            await session.run(socket, feed, out, start, may_connect=by_header)


class _TooLateError(FrameError):
    """No ``connect`` came in time."""

    code = "HANDSHAKE_TIMEOUT"
    default_advice = "send connect first, or an Authorization header with the upgrade"


class _Gone(Exception):  # noqa: N818 -- an outcome, and no error of ours
    """The peer left before it said anything."""


def _check_upgrade(request: web.Request, ws: web.WebSocketResponse) -> None:
    if not ws.can_prepare(request):
        raise InvalidRequestError(
            "this address takes WebSocket connections only", advice="open it with a WebSocket client, version 13"
        )


def _check_path(request: web.Request, login: Login) -> None:
    user_id = request.match_info.get("user_id")
    if user_id is not None and user_id != login.user_id:
        raise PermissionDeniedError(
            "the address names another user than the token", advice="connect to /ws, or to your own /ws/{user_id}"
        )


def _thread_of(request: web.Request) -> str:
    thread_id = request.headers.get(_THREAD_HEADER)
    return check_minted_id(thread_id, _THREAD_HEADER) if thread_id else ""
