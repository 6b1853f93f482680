"""From a request for a socket to a session: origin, limits, login, the upgrade, the first frame, the place to begin.

Whatever can be refused before the upgrade is refused by an HTTP status; after it, by an ``error`` and a close code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from aiohttp import hdrs, web

from carrel.errors import CarrelError, DrainingError, FrameError, PermissionDeniedError, TokenError
from carrel.ids import check_minted_id, new_id
from gateway.accept import Detached, accepted_of
from gateway.close_codes import CloseCode, close_code_for
from gateway.doctor_users import acting
from gateway.frames import Connect, connect_options
from gateway.headers import single_header
from gateway.held import Held
from gateway.jitter import retry_ms, window_ms
from gateway.limits import Network, client_address
from gateway.login import Login, bearer_token
from gateway.outflow import Flow
from gateway.parts import Parts
from gateway.positioning import Positioning
from gateway.session import Session, SessionOptions, SessionParts
from gateway.sockets import Ending, Socket, read_frame
from gateway.terms import Terms
from gateway.upgrade import check_upgrade
from gateway.wheel import Wheel

__all__ = ["Handshake", "HandshakeOptions"]

_THREAD_HEADER: Final = "thread-id"
_HEADERS: Final = {"Server": "carrel"}


@dataclass(frozen=True, slots=True)
class HandshakeOptions:
    """Args:
    connect_s: How long a connection without a header may take until its ``connect``.
    terms: How connections are written to, and what they may ask for.
    session: How sessions live.
    trusted_proxies: Whose X-Forwarded-For is believed.
    """

    connect_s: float = 15.0
    terms: Terms = field(default_factory=Terms)
    session: SessionOptions = field(default_factory=SessionOptions)
    trusted_proxies: Sequence[Network] = ()

    @property
    def flow(self) -> Flow:
        """How a connection is written to that asks for nothing."""
        return self.terms.flow


class Handshake:
    """Handles ``GET /ws`` and ``GET /ws/{user_id}``."""

    def __init__(self, parts: Parts, positioning: Positioning, options: HandshakeOptions) -> None:
        self._parts = parts
        self._positioning = positioning
        self._options = options
        self._shared = SessionParts(
            parts.logins,
            parts.runs,
            parts.log,
            positioning,
            parts.connections,
            options.terms,
            Wheel(options.session.heartbeat_s),
            parts.tally,
            options.session,
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Take the request's connection over, if it may become a socket. What follows is no part of the request.

        Raises:
            CarrelError: It is refused before the upgrade.
        """
        if self._parts.connections.draining:
            raise DrainingError("this gateway is shutting down", advice="connect again", retry_after_s=1)
        self._parts.origins.check(single_header(request, hdrs.ORIGIN))
        upgrade = check_upgrade(request, allow_deflate=self._options.terms.deflates)
        address = client_address(
            request.remote, request.headers.getall("X-Forwarded-For", []), self._options.trusted_proxies
        )
        thread_id = _thread_of(request)
        with Held() as held:
            held.enter(self._parts.limits.connection(address))
            login = await self._login_of(request)
            if login is not None:
                check_path(request.match_info.get("user_id"), login)
                held.enter(self._parts.limits.user(login.user_id))
            transport = request.transport
            if transport is not None and not transport.is_closing():
                socket = Socket(transport, self._options.terms.flow.full_bytes, upgrade.deflate_bits)
                accepted_of(request).take_over(request, upgrade.response(_HEADERS), socket)
                held.enter(self._parts.connections.opened(socket))
                self._parts.tally.accepted += 1
                arrival = _Arrival(socket, held.pop_all(), request.match_info.get("user_id"), thread_id)
                _ = self._parts.connections.start(self._serve(arrival, login), "handshake")
        return Detached()

    async def _login_of(self, request: web.Request) -> Login | None:
        token = bearer_token(single_header(request, hdrs.AUTHORIZATION))
        if not token:
            return None
        return acting(await self._parts.logins.verified(token), request, self._parts.logins)

    async def _serve(self, arrival: _Arrival, login: Login | None) -> None:
        """From the upgrade to the session, which then holds what the arrival holds."""
        socket, close_s = arrival.socket, self._options.session.close_s
        with arrival.held:
            try:
                asked = Connect(thread_id=arrival.thread_id)
                by_header = login is not None
                if login is None:
                    login, asked = await self._first_frame(arrival)
                    arrival.held.enter(self._parts.limits.user(login.user_id))
                await self._session(arrival, login, asked, by_header=by_header)
            except _Gone:
                return
            except CarrelError as error:
                code = CloseCode.HANDSHAKE_TIMEOUT if isinstance(error, _TooLateError) else close_code_for(error)
                # A bridge that is away refuses everybody who comes.
                wait_ms = retry_ms(window_ms(len(self._parts.connections)))
                await socket.close(Ending(code, error, wait_ms), within_s=close_s)
            except BaseException:
                socket.abort()
                raise

    async def _first_frame(self, arrival: _Arrival) -> tuple[Login, Connect]:
        """The login and the options of a ``connect`` frame."""
        try:
            async with asyncio.timeout(self._options.connect_s):
                message = await arrival.socket.first_message()
        except TimeoutError:
            raise _TooLateError(f"no connect frame came within {self._options.connect_s:g} s") from None
        if message is None:
            raise _Gone
        frame = read_frame(message)
        if frame.type != "connect":
            raise TokenError("the first frame must be connect with a token, since there is no Authorization header")
        options = connect_options(frame)
        if options.socket_token:
            login = await self._parts.socket_tokens.redeem(options.socket_token)
        else:
            login = await self._parts.logins.verified(options.token)
        check_path(arrival.user_id, login)
        return login, replace(options, thread_id=options.thread_id or arrival.thread_id)

    async def _session(self, arrival: _Arrival, login: Login, asked: Connect, *, by_header: bool) -> None:
        socket, held, terms = arrival.socket, arrival.held, self._options.terms
        session = Session(new_id("conn"), login, asked.thread_id, self._shared)
        feed = held.enter(self._parts.hub.join(login, session))
        held.enter(self._parts.connections.session(session))
        # It may have been signed out, or its user revoked, since it was verified; from here on that finds the session.
        self._parts.logins.check(login)
        start = await self._positioning.find(login, feed, asked.resume, asked.thread_id)
        if socket.lost:
            return
        flow, window = terms.flow_for(asked, socket.deflate_bits, login.user_id), terms.window_for(asked)
        session.begin(socket, feed, start, flow, window, held.pop_all(), may_connect=by_header)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A connection after its upgrade: what it holds, and what its request said."""

    socket: Socket
    held: Held
    user_id: str | None
    thread_id: str


class _TooLateError(FrameError):
    """No ``connect`` came in time."""

    code = "HANDSHAKE_TIMEOUT"
    default_advice = "send connect first, or an Authorization header with the upgrade"


class _Gone(Exception):  # noqa: N818 -- an outcome, and no error of ours
    """The peer left before it said anything."""


def check_path(user_id: str | None, login: Login) -> None:
    """Raises:
    PermissionDeniedError: The address names another user than the login's.
    """
    if user_id is not None and user_id != login.user_id:
        raise PermissionDeniedError(
            "the address names another user than the token", advice="connect to /ws, or to your own /ws/{user_id}"
        )


def _thread_of(request: web.Request) -> str:
    thread_id = request.headers.get(_THREAD_HEADER)
    return check_minted_id(thread_id, _THREAD_HEADER) if thread_id else ""
