"""A user's WebSocket client: runs, and events that survive a lost connection, each once and in order.

It reconnects by itself with its position (full jitter, a bounded number of times in a row), drops what it has given
already, and repeats unanswered commands, which are idempotent by their ``client_ref``. What the frames mean is
``frames.py``'s; the protocol is docs/protocol.md. Not for internal services: they use ``InternalClient``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from carrel.client.asking import accepted_of, execute_fields
from carrel.client.backoff import Backoff
from carrel.client.models import Accepted, Event, Position
from carrel.client.reading import Notice, Reader
from carrel.error_base import from_dict
from carrel.errors import CarrelError, DeadlineError, Status, TokenError, UnavailableError
from carrel.ids import new_id

__all__ = ["Notice", "SocketClient"]

SUBPROTOCOL: Final = "carrel.v1"
_QUEUED: Final = 1000
_MAX_MESSAGE: Final = 8 * 1024 * 1024
_STEADY_AFTER_S: Final = 5.0
_NEVER_RECONNECT: Final = 4500
_RETRY_HTTP: Final = frozenset({429, 500, 502, 503, 504})
_CONNECT_S: Final = 15.0
_SILENCES: Final = 2.5

TokenSource = str | Callable[[], str | Awaitable[str]]


@dataclass(slots=True)
class _Command:
    """A frame that waits for its answer."""

    text: str
    answer: asyncio.Future[dict[str, Any]]


class SocketClient:
    """One user's connection.

    Args:
        url: The gateway, ``http://host:port`` or ``https://…``.
        token: The user's token, or what gives a fresh one for each connection.
        thread_id: Only events of this thread; also the thread of runs that name none.
        resume: Where to go on reading; ``Position()`` for everything that is kept; None for what comes from now on.
        batch: Ask for ``event_batch`` frames.
        backoff: How often and how fast to reconnect.
        patient: Whether the first connection is tried again, too, when it fails.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        thread_id: str = "",
        resume: Position | None = None,
        batch: bool = False,
        backoff: Backoff | None = None,
        patient: bool = False,
    ) -> None:
        self._url = url.rstrip("/") + "/ws"
        self._token = token
        self._options = {name: value for name, value in (("thread_id", thread_id), ("batch", batch)) if value}
        self._backoff = backoff or Backoff()
        self._patient = patient
        self.reader = Reader(resume, filtered=bool(thread_id))
        self.reconnects = 0
        self.connection_id = ""
        self._items: asyncio.Queue[Event | Notice | None] = asyncio.Queue(_QUEUED)
        self._commands: dict[str, _Command] = {}
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: CarrelError | None = None

    @property
    def position(self) -> Position:
        """The place after the last event that was received; give it as ``resume`` to go on from there."""
        return self.reader.position

    async def __aenter__(self) -> Self:
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(), name=f"socket to {self._url}")
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connection. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._fail(UnavailableError("the client was closed"))

    # What a user asks for.

    async def execute(  # noqa: PLR0913 -- one for each field of the request
        self,
        message: str,
        *,
        params: Mapping[str, Any] | None = None,
        pipeline: Sequence[str] = (),
        thread_id: str = "",
        strategy: str = "",
        client_ref: str = "",
        bound: bool = False,
        timeout_s: float = 30.0,
    ) -> Accepted:
        """Ask for a run; returns once it is admitted. A lost connection meanwhile neither loses nor doubles it.

        Args:
            message: What is wanted.
            params: Parameters for the agents.
            pipeline: One agent, or several, which are put in order; empty for the deployment's default.
            thread_id: The conversation; a new one when empty.
            strategy: What to do about a run that the thread has already: reject, enqueue, interrupt or rollback.
            client_ref: Names the request: within 24 h the same one gives the same run. Minted when empty.
            bound: The run ends when the connection that asked for it does, a lost one too.
            timeout_s: How long to wait for the answer, lost connections included.

        Raises:
            CarrelError: It was refused, or not answered in time.
        """
        ref = client_ref or new_id("ref")
        fields = execute_fields(
            message,
            params=dict(params or {}),
            pipeline=list(pipeline),
            thread_id=thread_id,
            strategy=strategy,
            bound=bound,
        )
        return accepted_of(await self._ask(ref, {"type": "agent_execute", **fields}, timeout_s), ref)

    async def cancel(self, run_id: str, reason: str = "", timeout_s: float = 10.0) -> str:
        """Ask for a run's end; the run's status then.

        Raises:
            CarrelError: There is no such run, or no answer came in time.
        """
        frame = {"type": "agent_cancel", "run_id": run_id, **({"reason": reason} if reason else {})}
        return str((await self._ask(new_id("ref"), frame, timeout_s)).get("status", ""))

    async def provide_input(self, run_id: str, input_id: str, value: object, timeout_s: float = 10.0) -> str:
        """Answer a run's question; the run's status then. The same answer may be given twice.

        Raises:
            NotWaitingError: The run does not wait for it (any more).
            InvalidInputError: The answer does not fit the question's schema.
            CarrelError: There is no such run, or no answer came in time.
        """
        frame = {"type": "input_provide", "run_id": run_id, "input_id": input_id, "value": value}
        return str((await self._ask(new_id("ref"), frame, timeout_s)).get("status", ""))

    async def ping(self, timeout_s: float = 10.0) -> None:
        """Return once the gateway has answered.

        Raises:
            CarrelError: No answer came in time.
        """
        await self._ask(new_id("ref"), {"type": "ping"}, timeout_s)

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send any frame as it is, for what has no method here; its answer, if any, is a notice.

        Raises:
            UnavailableError: There is no connection at this moment.
        """
        if self._socket is None or self._socket.closed:
            raise UnavailableError("there is no connection at this moment")
        await self._socket.send_str(orjson.dumps(frame).decode())

    async def events(self) -> AsyncIterator[Event]:
        """Events as they come, until the client is closed.

        Raises:
            CarrelError: The connection was refused, or could not be made again.
        """
        async for item in self.items():
            if isinstance(item, Event):
                yield item

    async def items(self) -> AsyncIterator[Event | Notice]:
        """Events, and notices about them: ``reset``, ``gap``, ``error`` and whatever else answers no command.

        Raises:
            CarrelError: The connection was refused, or could not be made again.
        """
        while True:
            item = await self._items.get()
            if item is None:
                # For the next reader, who learns the same.
                self._items.put_nowait(None)
                assert self._failure is not None
                raise self._failure
            yield item

    # Commands.

    async def _ask(self, ref: str, frame: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        failures = 0
        last: CarrelError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._ask_once(ref, frame)
                    except CarrelError as error:
                        # The gateway's own neighbours may be away for a moment; the same ref makes asking again safe.
                        if error.status is not Status.UNAVAILABLE or self._failure is not None:
                            raise
                        last = error
                        failures += 1
                        delay = self._backoff.delay_s(failures, error.retry_after_s or 0.0)
                        if delay is None:
                            raise
                        await asyncio.sleep(delay)
        except TimeoutError:
            if last is not None:
                # It was answered, and that says more than how long was waited.
                raise last from None
            raise DeadlineError(f"no answer to {frame['type']} came within {timeout_s:g} s") from None

    async def _ask_once(self, ref: str, frame: dict[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        text = orjson.dumps({**frame, "client_ref": ref}).decode()
        command = _Command(text, asyncio.get_running_loop().create_future())
        self._commands[ref] = command
        try:
            if self._socket is not None and not self._socket.closed:
                # When it fails, the command is sent again on the next connection.
                with contextlib.suppress(ConnectionError):
                    await self._socket.send_str(text)
            return await command.answer
        finally:
            if self._commands.get(ref) is command:
                del self._commands[ref]

    # The connection's life.

    async def _live(self) -> None:
        failures = 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                began = asyncio.get_running_loop().time()
                seen = self.reader.position
                try:
                    problem = await self._connection(session)
                except CarrelError as error:
                    self._fail(error)
                    return
                lasted = asyncio.get_running_loop().time() - began
                steady = self.reader.position != seen or lasted >= _STEADY_AFTER_S
                failures = 1 if steady and self._connected_once else failures + 1
                delay = self._backoff.delay_s(failures, self.reader.retry_s)
                if delay is None or not (self._connected_once or self._patient):
                    self._fail(_unreachable(self._url, problem, failures))
                    return
                await asyncio.sleep(delay)

    @property
    def _connected_once(self) -> bool:
        return self._ready is not None and self._ready.done()

    async def _connection(self, session: aiohttp.ClientSession) -> str:
        """One connection from its beginning to its end; why it ended.

        Raises:
            CarrelError: Connecting again would end the same way.
        """
        token = await self._fresh_token()
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await session.ws_connect(
                    self._url, protocols=(SUBPROTOCOL,), max_msg_size=_MAX_MESSAGE, timeout=aiohttp.ClientWSTimeout(1.0)
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _RETRY_HTTP:
                return f"HTTP status {error.status}"
            raise _refused(error.status) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return str(error) or type(error).__name__
        self._socket = socket
        try:
            self.reader.begin()
            await socket.send_str(orjson.dumps(self._connect_frame(token)).decode())
            await self._read(socket)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return str(error) or type(error).__name__
        finally:
            self._socket = None
            await socket.close()
        if socket.close_code is not None and socket.close_code >= _NEVER_RECONNECT:
            raise self.reader.refusal(socket.close_code)
        return f"the connection was closed with code {socket.close_code}"

    async def _fresh_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        token = self._token()
        return await token if inspect.isawaitable(token) else token

    def _connect_frame(self, token: str) -> dict[str, Any]:
        return {"type": "connect", "token": token, **self._options, **self.reader.resume()}

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        silence = _CONNECT_S
        while True:
            message = await socket.receive(silence)
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            frame = orjson.loads(message.data)
            if frame.get("type") == "connected":
                silence = max(_SILENCES * float(frame.get("heartbeat") or 30.0), 1.0)
                self.connection_id = str(frame.get("connection_id", ""))
                self.reader.connected(frame)
                await self._on_connected(socket)
                continue
            command = self._commands.get(frame.get("client_ref") or "") if "type" in frame else None
            if command is not None:
                _answer(command, frame)
                continue
            for item in self.reader.take(frame):
                await self._items.put(item)

    async def _on_connected(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        for command in list(self._commands.values()):
            await socket.send_str(command.text)
        if self._connected_once:
            self.reconnects += 1
        elif self._ready is not None:
            self._ready.set_result(None)

    def _fail(self, error: CarrelError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for command in self._commands.values():
            if not command.answer.done():
                command.answer.set_exception(error)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            # Whoever entered the client raises it; nobody else need look at the future.
            self._ready.exception()
        if self._items.full():
            self._items.get_nowait()
        self._items.put_nowait(None)


def _answer(command: _Command, frame: dict[str, Any]) -> None:
    if command.answer.done():
        return
    if frame["type"] == "error":
        command.answer.set_exception(from_dict(frame))
    else:
        command.answer.set_result(frame)


def _refused(status: int) -> CarrelError:
    if status == 401:
        return TokenError("the gateway does not accept the token")
    return CarrelError(
        f"the gateway refused the connection with HTTP status {status}",
        advice="is the address that of a gateway, and the token that of its user?",
    )


def _unreachable(url: str, problem: str, failures: int) -> UnavailableError:
    tries = "once" if failures == 1 else f"{failures} times"
    return UnavailableError(
        f"the gateway at {url.removesuffix('/ws')} cannot be reached: {problem} (tried {tries})",
        advice="start it with `carrel up`, or name another with --url",
    )
