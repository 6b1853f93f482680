"""One long-lived stream of batches to the next hop, kept open whatever happens to that hop.

It coalesces: whatever its source has when a write ends goes into the next message, so an idle process adds no delay
and a busy one batches by itself. It promises nothing about events: the source keeps what is unacknowledged, and is told
to begin again on every new connection. Emit and Publish are both such streams. It is neither a queue nor a retry policy
for calls.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import grpc

from carrel.errors import CarrelError
from carrel.v1.events_pb2 import ProducerAck, ProducerEvents
from servicekit.addresses import has_copies
from servicekit.logs import get_logger
from servicekit.tasks import FailureHandler, TaskOwner, end_service

__all__ = ["BidiCall", "ReliableStream", "Source", "StreamOptions", "StreamStatistics", "stream_age_s"]

_log: Final = get_logger(__name__)

_AGE_S: Final = 25 * 60.0
# Among copies a stream is opened anew this often, so that one that is new gets its share within half a minute.
_AGE_AMONG_COPIES_S: Final = 20.0

Req = TypeVar("Req", contravariant=True)
Resp = TypeVar("Resp", covariant=True)


class Source(Protocol):
    """What a stream carries: it holds the items until they are acknowledged. Every method runs on the loop, at once."""

    def bind(self, wake: Callable[[], None]) -> None:
        """Learn what to call when something new can be taken."""

    def restart(self) -> None:
        """A new connection: nothing of what was taken before is known to have arrived, so offer it again."""

    def take(self, max_items: int, max_bytes: int) -> Sequence[ProducerEvents]:
        """The items of the next message, one at least if there is any; empty when there is nothing to send."""
        ...

    def acknowledge(self, acks: Iterable[ProducerAck]) -> None:
        """The next hop's word on items of the present connection."""


class BidiCall(Protocol[Req, Resp]):
    """The part of a grpc.aio bidirectional call that is used here; tests put a scripted one in its place."""

    async def wait_for_connection(self) -> None: ...
    async def write(self, request: Req) -> None: ...
    async def read(self) -> Resp | Any: ...
    async def done_writing(self) -> None: ...
    def cancel(self) -> bool: ...


class _Acks(Protocol):
    @property
    def acks(self) -> Iterable[ProducerAck]: ...


AckResponse = TypeVar("AckResponse", bound=_Acks)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Bounds of a message and times of a connection, in bytes and seconds.

    A lost connection is opened again at once, then after ``first_delay_s``, doubling up to ``max_delay_s``, each delay
    shortened by up to a half at random. After ``max_age_s`` a connection is replaced, so that load balancers and
    certificates get their turn; ``close_grace_s`` is how long the next hop then has to acknowledge what it got.
    ``alert_after`` failures in a row, over ``alert_after_s`` or longer, are an error to be looked at; trying goes on
    for ever.
    """

    max_items: int = 128
    max_bytes: int = 512 * 1024
    connect_timeout_s: float = 5.0
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0
    max_age_s: float = _AGE_S
    close_grace_s: float = 1.0
    alert_after: int = 3
    alert_after_s: float = 5.0


def stream_age_s(target: str) -> float:
    """``max_age_s`` for a next hop at this ``PeerAddress``."""
    return _AGE_AMONG_COPIES_S if has_copies(target) else _AGE_S


@dataclass(slots=True)
class StreamStatistics:
    """Counts since the start."""

    messages: int = 0
    items: int = 0
    connections: int = 0
    losses: int = 0


class ReliableStream(Generic[Req, AckResponse]):
    """Keeps one bidirectional call to the next hop open and moves a source's items over it.

    Args:
        open_call: Starts the call, for example ``stub.Emit``.
        request: Builds one message from items, for example ``lambda items: EmitRequest(items=items)``.
        source: What to send, and who hears the acknowledgements.
        name: The next hop's name, for logs.
        on_state: Called with True when a connection is there and with False when it is lost.
        on_failure: Called when the stream ends by a fault of ours (never by the peer's).

    Use it as an async context manager; on leaving, the call is cancelled; what is unacknowledged stays with the source.
    """

    def __init__(
        self,
        open_call: Callable[[], BidiCall[Req, AckResponse]],
        request: Callable[[Sequence[ProducerEvents]], Req],
        source: Source,
        *,
        name: str,
        options: StreamOptions | None = None,
        on_state: Callable[[bool], None] | None = None,
        on_failure: FailureHandler = end_service,
    ) -> None:
        self._open = open_call
        self._request = request
        self._source = source
        self._name = name
        self._options = options or StreamOptions()
        self._on_state = on_state
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._heard = False
        self._was_up = False
        self._half_close = False
        # A peer that was never there is not lost: both may be starting.
        self._told = True
        self._tasks = TaskOwner(on_failure)
        self._runner: asyncio.Task[None] | None = None
        self.statistics = StreamStatistics()
        source.bind(self._wake.set)

    @property
    def connected(self) -> bool:
        """Whether a connection is open now."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Wait until a connection is open."""
        await self._up.wait()

    async def __aenter__(self) -> Self:
        self._runner = self._tasks.start(self._run(), f"stream to {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the connection and stops reconnecting. Legal before the start, and more than once."""
        await self._tasks.aclose()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        failures, alerted, away_since = 0, False, clock()
        while True:
            opened = clock()
            await self._connection()
            # A connection that opens only to break at once must not reset the delay, or it is retried in a tight loop.
            if self._heard or (self._was_up and clock() - opened > self._options.max_delay_s):
                failures, alerted, away_since = 0, False, clock()
            failures += 1
            if not alerted and self._is_alarming(failures, clock() - away_since):
                alerted = True
                away = round(clock() - away_since, 3)
                _log.error("the next hop stays away", peer=self._name, failures=failures, seconds=away)
            await asyncio.sleep(self._delay(failures))

    def _is_alarming(self, failures: int, seconds: float) -> bool:
        return failures >= self._options.alert_after and seconds >= self._options.alert_after_s

    def _delay(self, failures: int) -> float:
        if failures <= 1:
            return 0.0
        longest = min(self._options.max_delay_s, self._options.first_delay_s * 2.0 ** min(failures - 2, 16))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads load, guards nothing

    async def _connection(self) -> None:
        """One connection from its opening to its end."""
        self._heard = self._was_up = self._half_close = False
        try:
            call = self._open()
        except CarrelError as nobody:  # is known at all
            if self._up.is_set():
                self._set_up(False)
            self._lost(nobody)
            return
        # In a task of its own: a call that the peer cancels raises CancelledError, which here must not mean us.
        talk = asyncio.create_task(self._talk(call))
        try:
            await asyncio.wait({talk})
        finally:
            call.cancel()
            await _stop(talk)
            # One that is replaced because it is old is as good as there.
            if self._up.is_set() and not self._half_close:
                self._set_up(False)
        error = None if talk.cancelled() else talk.exception()
        if error is not None and not isinstance(error, grpc.RpcError | asyncio.InvalidStateError | TimeoutError):
            raise error
        if not self._half_close:
            self._lost(error)

    def _lost(self, error: BaseException | None) -> None:
        self.statistics.losses += 1
        # Once for each time it was there: an absent peer is tried again every two seconds.
        if not self._told:
            self._told = True
            _log.warning("stream lost", peer=self._name, reason=_reason(error))

    async def _talk(self, call: BidiCall[Req, AckResponse]) -> None:
        async with asyncio.timeout(self._options.connect_timeout_s):
            await call.wait_for_connection()
        self._source.restart()
        self.statistics.connections += 1
        self._set_up(True)
        self._was_up = True
        self._told = False
        writer = asyncio.create_task(self._write(call))
        reader = asyncio.create_task(self._read(call))
        try:
            age = self._options.max_age_s * random.uniform(0.9, 1.0)  # noqa: S311 -- spreads load, guards nothing
            done, _ = await asyncio.wait({writer, reader}, timeout=age, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._half_close = True
                self._wake.set()
                await asyncio.wait({reader}, timeout=self._options.close_grace_s)
        finally:
            await _stop(reader)
            await _stop(writer)
        # The reader knows the call's status; the writer knows only that it is over.
        errors = [task.exception() for task in (reader, writer) if not task.cancelled()]
        for error in errors:
            if error is not None:
                raise error

    async def _write(self, call: BidiCall[Req, AckResponse]) -> None:
        take, wake, statistics = self._source.take, self._wake, self.statistics
        max_items, max_bytes = self._options.max_items, self._options.max_bytes
        while not self._half_close:
            items = take(max_items, max_bytes)
            if items:
                statistics.messages += 1
                statistics.items += len(items)
                await call.write(self._request(items))
            else:
                wake.clear()
                await wake.wait()
        await call.done_writing()

    async def _read(self, call: BidiCall[Req, AckResponse]) -> None:
        acknowledge = self._source.acknowledge
        while (response := await call.read()) is not grpc.aio.EOF:
            self._heard = True
            acknowledge(response.acks)

    def _set_up(self, up: bool) -> None:
        (self._up.set if up else self._up.clear)()
        if self._on_state is not None:
            self._on_state(up)


async def _stop(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        # Seen, so that asyncio does not report it: whoever needs the reason has asked for it, or asks again.
        task.exception()


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "ended by the peer"
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
