"""One test user's calls to the gateways, bytes as they come: statuses are findings here, and no errors.

Not ``carrel.client``, which repairs and retries: a check wants to see what a plain client sees. All that a user is
shown is kept, up to a bound, so that a check can look for what is another's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from carrel.error_base import from_dict
from carrel.errors import CarrelError, ProtocolError, UnavailableError
from carrel.ids import new_id

__all__ = ["Answer", "Socket", "User", "engine_error", "from_answer"]

_MAX_SEEN: Final = 8 << 20
_CALL_S: Final = 15.0
_UNENDED: Final = frozenset({"QUEUED", "RUNNING", "WAITING", "FINISHING"})


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """The body; an empty object when it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def __str__(self) -> str:
        error = self.json.get("error") or {}
        return (
            f"{self.status} {error.get('code', '')} {error.get('message', '')}".strip() if error else str(self.status)
        )


class User:
    """One test user.

    Args:
        user_id: The user.
        headers: What logs them in.
        urls: Gateways, which calls go round among.
        prefix: How the ids of threads begin that are made here.
    """

    def __init__(self, user_id: str, headers: Mapping[str, str], urls: Sequence[str], prefix: str) -> None:
        self.user_id = user_id
        self.urls = list(urls)
        self.prefix = prefix
        self.headers = dict(headers)
        self.seen: list[bytes] = []
        self._seen_bytes = 0
        self._next = itertools.cycle(self.urls)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        self._session = aiohttp.ClientSession(headers=self.headers, timeout=timeout, trust_env=False)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections; open within the block."""
        assert self._session is not None, "use it within `async with`"
        return self._session

    def new_thread(self) -> str:
        """An id for a thread that is cleaned up afterwards."""
        return f"{self.prefix}{new_id('t')}"

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request.

        Raises:
            UnavailableError: The gateway cannot be reached.
        """
        url = next(self._next)
        try:
            async with self.session.request(method, url + path, json=body, headers=headers) as response:
                answer = Answer(response.status, await response.read(), dict(response.headers))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(url, error) from None
        self.note(answer.body)
        return answer

    async def get(self, path: str) -> Answer:
        """``GET``."""
        return await self.call("GET", path)

    async def execute(
        self, agent: str, message: str, params: Mapping[str, Any], *, thread: str = "", wait: bool = True
    ) -> Answer:
        """``POST /api/agents/execute`` with the documents' three fields and parameters."""
        body = {"message": message, "agent_name": agent, "thread_id": thread or self.new_thread(), "params": params}
        return await self.call("POST", "/api/agents/execute", body, {} if wait else {"Prefer": "respond-async"})

    async def ended(self, run_id: str, within_s: float) -> dict[str, Any]:
        """The run once it has ended; as it is when the time is up."""
        return await self.until(run_id, lambda run: str(run.get("status")) not in _UNENDED, within_s)

    async def until(self, run_id: str, holds: Any, within_s: float) -> dict[str, Any]:
        """The run once something holds of it; as it is when the time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while True:
            run = (await self.get(f"/api/runs/{run_id}")).json
            if holds(run) or loop.time() >= until:
                return run
            await asyncio.sleep(0.05)

    async def log(self, within_s: float, last: str) -> list[dict[str, Any]]:
        """The user's kept events over server-sent events, up to the one that ends the run ``last``."""
        events: list[dict[str, Any]] = []
        url = next(self._next)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self.session.get(f"{url}/api/events?from=oldest") as response:
                async for line in response.content:
                    self.note(line)
                    if not line.startswith(b"data: "):
                        continue
                    event = _object(line.removeprefix(b"data: "))
                    if "event_type" in event:
                        events.append(event)
                    if event.get("event_type") == "run_completed" and event.get("run_id") == last:
                        break
        return events

    @asynccontextmanager
    async def socket(
        self, path: str = "/ws", *, connect: Mapping[str, Any] | None = None, **headers: str
    ) -> AsyncIterator[Socket]:
        """A socket that reads for the length of the block. ``headers`` are further ones, ``_`` for ``-``.

        Raises:
            UnavailableError: The gateway cannot be reached, or refuses it.
        """
        url = next(self._next)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            ws = await self.session.ws_connect(url + path, protocols=("carrel.v1",), headers=named)
        except aiohttp.WSServerHandshakeError as error:
            raise _no_socket(url, error.status) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(url, error) from None
        socket = Socket(ws, self)
        reading = asyncio.create_task(socket.read())
        try:
            if connect is not None:
                await ws.send_json({"type": "connect", **connect})
            yield socket
        finally:
            await ws.close()
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def refused(self, path: str, **headers: str) -> int:
        """The status with which a socket is refused; 101 when it is not."""
        try:
            async with self.session.ws_connect(next(self._next) + path, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(self.urls[0], error) from None

    def note(self, data: bytes) -> None:
        """Keep what the user was shown."""
        if self._seen_bytes + len(data) <= _MAX_SEEN:
            self.seen.append(data)
            self._seen_bytes += len(data)

    def was_shown(self, words: str) -> bool:
        """Whether any of it holds these words."""
        return any(words.encode() in data for data in self.seen)


class Socket:
    """What a connection has received, and a wait for more."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, user: User) -> None:
        self._ws = ws
        self._user = user
        self._changed = asyncio.Condition()
        self.frames: list[dict[str, Any]] = []
        self.ended = False

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events among the frames, batches opened."""
        opened = (event for frame in self.frames for event in frame.get("events", [frame]))
        return [event for event in opened if event.get("event_type") not in {None, "event_batch"}]

    def controls(self, kind: str) -> list[dict[str, Any]]:
        """Control frames of a type."""
        return [frame for frame in self.frames if frame.get("type") == kind]

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame."""
        await self._ws.send_json(dict(frame))

    async def read(self) -> None:
        """Read until the connection ends."""
        try:
            async for message in self._ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._user.note(message.data.encode())
                    async with self._changed:
                        self.frames.append(_object(message.data))
                        self._changed.notify_all()
        finally:
            async with self._changed:
                self.ended = True
                self._changed.notify_all()

    async def wait(self, holds: Any, within_s: float) -> bool:
        """Wait until something holds of this socket; whether it does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._changed:
                _ = await self._changed.wait_for(lambda: bool(holds(self)) or self.ended)
        return bool(holds(self))

    async def run_over(self, run_id: str, within_s: float) -> bool:
        """Wait for a run's last event."""
        return await self.wait(
            lambda s: any(e["event_type"] == "run_completed" and e["run_id"] == run_id for e in s.events), within_s
        )


def engine_error(answer: Answer) -> dict[str, Any]:
    """The error of a refusal; an empty object when there is none."""
    error = answer.json.get("error")
    return error if isinstance(error, dict) else {}


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise ProtocolError("the gateway sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("the gateway sent JSON that is no object")
    return value


def _away(url: str, error: Exception) -> UnavailableError:
    said = str(error) or type(error).__name__
    return UnavailableError(f"the gateway at {url} cannot be reached: {said}", advice="start it, or name another --url")


def _no_socket(url: str, status: int) -> UnavailableError:
    """The gateway answers, and does not let a test user's socket in."""
    if status == 429:
        advice = (
            "a test user has a few sockets open at once, all from this address: raise CARREL_GATEWAY_LIMITS__PER_USER "
            "or CARREL_GATEWAY_LIMITS__PER_ADDRESS, or see what else connects from here"
        )
    else:
        advice = "the gateway's log says why; a proxy in front must let WebSockets through"
    return UnavailableError(f"the gateway at {url} refuses a socket with {status}", advice=advice)


def from_answer(answer: Answer) -> CarrelError:
    """A refusal as an error of the tree."""
    try:
        return from_dict(answer.json["error"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return UnavailableError(f"HTTP status {answer.status}", advice="is this the address of a gateway?")
