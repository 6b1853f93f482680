"""One connection of a socket client: its login, what it reads, what it acknowledges, its fresh tokens, its end.

Connecting again is ``websocket.py``'s. ``run`` always ends by raising: ``LostError`` when coming back can help.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import aiohttp
import orjson

from carrel.client.commands import Commands
from carrel.client.decoding import parse_object
from carrel.client.inbox import Inbox
from carrel.client.login import Login
from carrel.client.models import Event, Position
from carrel.client.notices import Notice, Reset
from carrel.client.reading import AstrayError, Reader
from carrel.errors import CarrelError, FrameError, ProtocolError, Status, TokenError, TokenExpiredError

__all__ = ["Link", "LinkOptions", "LostError"]

SUBPROTOCOL: Final = "carrel.v1"
_MAX_MESSAGE: Final = 8 * 1024 * 1024
_NEVER_RECONNECT: Final = 4500
_TOO_BIG: Final = 1009
_RETRY_HTTP: Final = frozenset({429, 500, 502, 503, 504})
_CONNECT_S: Final = 15.0
_CLOSE_S: Final = 0.5
_SILENCES: Final = 2.5
# How long an acknowledgement may wait for more to go with it.
_ACK_S: Final = 0.05
_AGAIN_S: Final = 1.0


class LostError(Exception):
    """The connection ended, and coming back can help.

    ``retry_s`` is what the gateway asked for; ``broken`` says that it broke the protocol; ``at_once`` that there is
    nothing to wait for.
    """

    def __init__(self, problem: str, *, retry_s: float = 0.0, broken: bool = False, at_once: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_s = retry_s
        self.broken = broken
        self.at_once = at_once


@dataclass(slots=True)
class LinkOptions:
    """Args:
    url: Of the socket.
    thread_id: The one thread that is wanted, or empty.
    batch: Whether events that are due together may come in one frame.
    compress: Whether such frames may be compressed.
    acknowledge: Whether to ask for a window, and acknowledge.
    plain: Set when the gateway knows neither of the two.
    """

    url: str
    thread_id: str = ""
    batch: bool = True
    compress: bool = True
    acknowledge: bool = True
    plain: bool = False


class Link:
    """Args:
    options: What to ask for; ``plain`` is set here.
    login: Gives tokens.
    reader: Knows the position.
    inbox: Gets what comes.
    commands: Get their answers.
    on_connected: Called once the gateway has said where the stream begins.
    """

    def __init__(
        self,
        options: LinkOptions,
        login: Login,
        reader: Reader,
        inbox: Inbox,
        commands: Commands,
        on_connected: Callable[[], None],
    ) -> None:
        self._options = options
        self._login = login
        self._reader = reader
        self._inbox = inbox
        self._commands = commands
        self._on_connected = on_connected
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._acked = 0
        self._due = asyncio.Event()
        self._enough = asyncio.Event()
        self._beside: set[asyncio.Task[None]] = set()
        self.connection_id = ""
        # Events that the gateway sends at most without an acknowledgement; 0 when it does not count.
        self.window = 0

    async def send(self, text: str) -> None:
        """Send a frame, if there is a connection."""
        if self._socket is not None and not self._socket.closed:
            # One that fails is about to be noticed by whoever reads.
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await self._socket.send_str(text)

    @property
    def open(self) -> bool:
        """Whether the gateway has said ``connected``, and the connection has not ended since."""
        return bool(self.connection_id) and self._socket is not None and not self._socket.closed

    async def run(self, session: aiohttp.ClientSession) -> NoReturn:
        """One connection from its beginning to its end.

        Raises:
            LostError: It ended; coming back can help.
            CarrelError: It ended, and coming back would end the same way.
        """
        token = await self._token()
        socket = await self._open(session)
        self._socket = socket
        try:
            self._reader.begin()
            await socket.send_str(orjson.dumps(self._connect_frame(token)).decode())
            await self._read(socket)
        except AstrayError as error:
            raise LostError(str(error), broken=True) from None
        except ProtocolError as error:
            raise LostError(error.message, broken=True) from None
        except TimeoutError:
            raise LostError("nothing came from the gateway for longer than its heartbeat") from None
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(str(error) or type(error).__name__) from None
        finally:
            self._socket = None
            await self._stop()
            await socket.close()
        raise self._ending(socket.close_code)

    async def _token(self) -> str:
        try:
            return await self._login.token()
        except CarrelError as error:
            if error.retryable:
                raise LostError(f"no token could be had: {error.message}") from None
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LostError(f"no token could be had: {error or type(error).__name__}") from None

    async def _open(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await session.ws_connect(
                    self._options.url,
                    protocols=(SUBPROTOCOL,),
                    max_msg_size=_MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _RETRY_HTTP:
                raise LostError(f"HTTP status {error.status}", retry_s=_retry_after(error.headers)) from None
            raise _refused(error.status) from None
        except aiohttp.InvalidURL:
            raise CarrelError(
                f"{self._options.url} is no address", advice="write http://host:port or https://host:port"
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LostError(str(error) or f"it did not answer within {_CONNECT_S:g} s") from None

    def _connect_frame(self, token: str) -> dict[str, Any]:
        options = self._options
        frame: dict[str, Any] = {"type": "connect", "token": token}
        if options.thread_id:
            frame["thread_id"] = options.thread_id
        if options.batch:
            frame["batch"] = True
        if not options.plain:
            if options.batch and options.compress:
                frame["compress"] = True
            if options.acknowledge:
                # What is here already is in nobody's window but the application's.
                frame["ack"] = {"window": max(1, self._inbox.room)}
        return {**frame, **self._reader.resume()}

    # Reading.

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        silence = _CONNECT_S
        while True:
            # With a window the gateway stops by itself, and answers and heartbeats still get through. Without one, all
            # that can be done is to read no more, until it is full again beyond all measure.
            await self._inbox.emptied(2 if self.window else 1)
            message = await socket.receive(silence)
            if message.type is aiohttp.WSMsgType.BINARY:
                raise ProtocolError("the gateway sent a binary message")
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            frame = parse_object(message.data)
            if frame.get("type") == "connected":
                silence = await self._connected(socket, frame)
            elif not self.connection_id and frame.get("type") not in {"error", "bye"}:
                raise ProtocolError("the gateway did not begin with `connected`")
            elif frame.get("type") == "refreshed":
                self._refreshed(frame)
            elif not self._commands.answer(frame):
                self._take(frame, len(message.data))

    async def _connected(self, socket: aiohttp.ClientWebSocketResponse, frame: Mapping[str, Any]) -> float:
        first = self._reader.resume() == {}
        notices = self._reader.connected(frame)
        if first:
            self._inbox.begin(self._reader.position)
        for notice in notices:
            self._inbox.put(notice, self._reader.position)
        self._acked = self._reader.heard
        self.connection_id = str(frame.get("connection_id") or "?")
        window = frame.get("ack_window")
        self.window = window if type(window) is int and window > 0 else 0
        if self.window:
            self._inbox.on_done = self._note
            self._start(self._acknowledge(socket), "acknowledgements")
        if self._login.renewable:
            self._start(self._refresh(socket), "fresh tokens")
        for text in self._commands.texts:
            await socket.send_str(text)
        self._on_connected()
        heartbeat = frame.get("heartbeat")
        beat = float(heartbeat) if isinstance(heartbeat, int | float) and math.isfinite(heartbeat) else 0.0
        return max(_SILENCES * (beat or 30.0), 1.0)

    def _take(self, frame: Mapping[str, Any], size: int) -> None:
        # The whole message's size goes to the first of its events: what is counted is what arrived.
        for item in self._reader.take(frame):
            if isinstance(item, Reset):
                self._acked = self._reader.heard
            if isinstance(item, Position):
                self._inbox.put(None, item, size)
            elif isinstance(item, Event | Notice):
                self._inbox.put(item, self._reader.position, size)
            size = 0
        if self.window:
            self._note()

    # Acknowledging what the application has worked on.

    def _ackable(self) -> int:
        """How many offsets can be acknowledged beyond those that have been."""
        done = self._inbox.done
        if done.epoch != self._reader.position.epoch:
            return 0
        return min(done.offset, self._reader.heard) - self._acked

    def _note(self) -> None:
        new = self._ackable()
        if new > 0:
            self._due.set()
            if new * 4 >= self.window:
                self._enough.set()

    async def _acknowledge(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._due.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ACK_S):
                    await self._enough.wait()
            self._due.clear()
            self._enough.clear()
            new = self._ackable()
            if new > 0:
                self._acked += new
                await self.send(orjson.dumps({"type": "ack", "offset": self._acked}).decode())

    # Tokens.

    async def _refresh(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while (wait_s := self._login.refresh_in_s()) is not None:
            await asyncio.sleep(max(wait_s, _AGAIN_S))
            before = self._login.current
            try:
                token = await self._login.token()
            except (CarrelError, aiohttp.ClientError, OSError, TimeoutError):
                # There is time to try again; when there is none left the gateway says so, and the next connection asks.
                continue
            if token != before:
                await self.send(orjson.dumps({"type": "refresh", "token": token}).decode())

    def _refreshed(self, frame: Mapping[str, Any]) -> None:
        expires_at = frame.get("expires_at")
        if isinstance(expires_at, int | float) and math.isfinite(expires_at):
            self._login.expires_at = float(expires_at)

    # The end.

    def _start(self, work: Any, name: str) -> None:
        self._beside.add(asyncio.create_task(work, name=f"{name} of {self._options.url}"))

    async def _stop(self) -> None:
        self._inbox.on_done = lambda: None
        tasks, self._beside = self._beside, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ending(self, code: int | None) -> LostError | CarrelError:
        reader = self._reader
        bye = reader.bye
        for_good = code is not None and (code >= _NEVER_RECONNECT or code == _TOO_BIG)
        if not for_good and (bye is None or bye.reconnect):
            why = bye.reason if bye is not None and bye.reason else f"code {code}"
            return LostError(f"the gateway closed the connection ({why})", retry_s=reader.retry_s)
        error = reader.refusal(code or 0)
        if not self.connection_id and not self._options.plain and isinstance(error, FrameError):
            # A gateway of an earlier release: it knows neither windows nor compression, and says so like this.
            self._options.plain = True
            return LostError("the gateway does not know this `connect`", at_once=True)
        if isinstance(error, TokenExpiredError) and self._login.renewable:
            return LostError("the token ended before it arrived")
        return error


def _retry_after(headers: Mapping[str, str] | None) -> float:
    text = (headers or {}).get("Retry-After", "")
    return float(min(int(text), 3600)) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _refused(status: int) -> CarrelError:
    if status == 401:
        return TokenError("the gateway does not accept the token")
    advice = "is the address that of a gateway, and the token that of its user?"
    error = CarrelError(f"the gateway refused the connection with HTTP status {status}", advice=advice)
    if status == 403:
        error.status = Status.PERMISSION_DENIED
    return error
