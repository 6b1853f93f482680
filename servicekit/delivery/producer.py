"""A producer of events: numbers them, keeps each until the log has it, goes back when the next hop asks for it.

One attempt of one stage is a producer, and so is a run's outbox. This is the only way into the emitter for a stream of
events (``Notify`` is for single ones). It neither validates nor sanitizes: that is the emitter's work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import orjson

from carrel.errors import CarrelError, DeadlineError, DrainingError, InvalidEventError, TooLargeError
from carrel.events import EVENTS
from carrel.ids import new_id
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.events_pb2 import Event, ProducerAck, ProducerEvents, Refusal, RefusalReason
from servicekit.delivery.refusals import refusal_error, retry_after_s
from servicekit.delivery.window import Window

__all__ = ["HARD_EVENT_BYTES", "Outlet", "Position", "Producer", "ProducerOptions", "Row"]

HARD_EVENT_BYTES: Final = 262_144
_CONTEXT_BYTES: Final = 640  # about what an item's context with its ticket takes on the wire

_FATAL: Final = frozenset(
    {
        RefusalReason.REFUSAL_REASON_STALE_FENCE,
        RefusalReason.REFUSAL_REASON_SEALED,
        RefusalReason.REFUSAL_REASON_INVALID,
        RefusalReason.REFUSAL_REASON_PERMISSION_DENIED,
    }
)
_LOGIN: Final = frozenset({RefusalReason.REFUSAL_REASON_TICKET_EXPIRED, RefusalReason.REFUSAL_REASON_UNAUTHENTICATED})


class Outlet(Protocol):
    """Where a producer's items go: ``ProducerStream``, or a test's own."""

    def register(self, producer: Producer) -> None:
        """Route acknowledgements of this producer to it."""

    def forget(self, producer: Producer) -> None:
        """Stop doing so."""

    def ready(self, producer: Producer) -> None:
        """The producer has something to send."""


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    """Bounds and delays of a producer.

    ``max_unacknowledged`` events or ``max_bytes`` of data are held at most; beyond, ``emit`` leaves out what may be
    left out and waits with the rest. ``settle_s`` is how long refusals of one and the same pass are collected before
    sending again. ``max_logins`` is how many fresh tickets are tried in a row when the next hop knows none of them.
    """

    max_unacknowledged: int = 200
    max_bytes: int = 4 * 1024 * 1024
    max_item_events: int = 100
    max_item_bytes: int = 256 * 1024
    settle_s: float = 0.01
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0
    max_logins: int = 5


class Position(NamedTuple):
    """Where the last acknowledged event is in the user's log; offset 0 when that is not known."""

    epoch: str
    offset: int


class Row(NamedTuple):
    """An event's identity when it was numbered before it came here; ``timestamp_ns`` is Unix time."""

    number: int
    event_id: str
    timestamp_ns: int


class Producer:
    """Sends one producer's events and survives every loss between here and the log.

    Args:
        outlet: The process's stream to the emitter.
        producer_id: Unique for the user: ``<run_id>:<stage>:<attempt>``, or ``<run_id>:outbox``.
        context: The run's context with its ticket, or a callable that gives the newest one.
        fence: The run's fencing number.
        attempt: The stage's attempt, from 1; 0 for a run's own events.
        on_expired: Called when the ticket has expired and ``context`` has no newer one: answer with ``refresh``.

    ``hops`` are the seconds that the last acknowledged events were at the emitter, until the log's word was there, and
    at the bridge, until they were durable.

    ``dead`` is a future whose *result* is the error that ended the producer for good: a newer holder of the run
    (``StaleFenceError``), the run's end (``SealedLogError``), a malformed item or a refused identity.
    """

    def __init__(
        self,
        outlet: Outlet,
        producer_id: str,
        context: UserExecutionContext | Callable[[], UserExecutionContext],
        *,
        fence: int = 0,
        attempt: int = 0,
        options: ProducerOptions | None = None,
        on_expired: Callable[[], None] | None = None,
    ) -> None:
        self.producer_id = producer_id
        self.fence = fence
        self.attempt = attempt
        self._outlet = outlet
        self._provider = context if callable(context) else None
        self._context = context() if callable(context) else context
        self.user_id = self._context.user_id
        self._options = options or ProducerOptions()
        self._on_expired = on_expired
        self._window = Window()
        self._gap_at = 0  # the number at which a gap is to be declared
        self._shed = 0
        self._failures = 0
        self._logins = 0
        self._position = Position("", 0)
        self.hops = (0.0, 0.0)
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        self._waits_for_ticket = False
        self._closed = False
        self.queued = False  # the outlet's own mark
        self.dead: asyncio.Future[CarrelError] = asyncio.get_running_loop().create_future()
        outlet.register(self)

    @property
    def acknowledged(self) -> int:
        """The number of the last event that is in the log."""
        return self._window.acked

    @property
    def emitted(self) -> int:
        """The number of the last event emitted."""
        return self._window.next - 1

    @property
    def position(self) -> Position:
        """Where the last acknowledged event is in the user's log."""
        return self._position

    async def emit(
        self,
        event_type: str,
        data: Mapping[str, Any] | bytes,
        *,
        agent_name: str = "",
        context: UserExecutionContext | None = None,
        traceparent: str = "",
        row: Row | None = None,
    ) -> int:
        """Take one event; returns its number at once while there is room, 0 when it was left out.

        Args:
            event_type: A kind of the events table.
            data: A JSON object, or its encoded bytes.
            agent_name: The agent that the event speaks of; empty for a run's own events.
            context: The child's context, for a child's event; its ticket is kept as fresh as the producer's.
            traceparent: W3C trace context of the moment it happened.
            row: For events numbered elsewhere (an outbox): the first sets the start, the others follow it without a
                hole; a number that was there already is ignored. Such events are never left out.

        Raises:
            CarrelError: The producer is dead (the same error as ``dead``'s result) or closed.
            TooLargeError: The data is over the hard bound of every event.
            InvalidEventError: The data is no JSON, or the row's number leaves a hole.
        """
        self._check()
        event = Event(event_type=event_type, agent_name=agent_name, traceparent=traceparent)
        if not self._gate.locked() and not self._full():
            return self._add(event, data, context, row)
        kind = EVENTS.get(event_type)
        if row is None and kind is not None and kind.sheddable:
            self._shed += 1
            return 0
        # A lock wakes its waiters in the order they came, which is the order their events are to be numbered in.
        async with self._gate:
            await self._until(lambda: not self._full())
            return self._add(event, data, context, row)

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until everything emitted so far is in the log; returns the last number that is.

        Raises:
            DeadlineError: Not within ``timeout`` seconds. Nothing is lost; it goes on being sent.
            CarrelError: The producer died, or was closed.
        """
        target = self.emitted
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: self._window.acked >= target)
        except TimeoutError:
            raise DeadlineError(
                "the log has not acknowledged every event in time", advice="wait for it again"
            ) from None
        return self._window.acked

    def refresh(self, context: UserExecutionContext) -> None:
        """Use this context from now on, and its ticket for every event held."""
        self._context = context
        if self._waits_for_ticket:
            self._resume()

    async def aclose(self) -> None:
        """Stop sending; what is unacknowledged is given up. ``flush`` first where that matters."""
        if not self._closed:
            self._closed = True
            self._end()

    # What the outlet calls.

    @property
    def sendable(self) -> bool:
        """Whether there is something to send now."""
        return self._pause is None and self._window.unsent and not self._closed and not self.dead.done()

    def restart(self) -> bool:
        """A new connection: send everything held again. Whether there is anything to send now."""
        self._window.rewind(0)
        return self.sendable

    def take(self) -> tuple[ProducerEvents, int] | None:
        """The next run of consecutive events with one context, with its size; None when there is nothing to send."""
        if not self.sendable:
            return None
        part = self._window.slice(self._options.max_item_events, self._options.max_item_bytes)
        item = ProducerEvents(
            context=part.context or self._context,
            producer_id=self.producer_id,
            fence=self.fence,
            attempt=self.attempt,
            events=part.events,
            declare_gap=part.first == self._gap_at,
        )
        if part.context is not None:
            item.context.ticket = self._context.ticket
        return item, part.size + _CONTEXT_BYTES

    def acknowledge(self, ack: ProducerAck) -> None:
        """The next hop's word on this producer."""
        if self._window.release(ack.through):
            self._failures = self._logins = 0
            self._position = Position(ack.epoch, ack.offset)
            self.hops = (ack.emitter_micros / 1_000_000, ack.log_micros / 1_000_000)
            self._changed.set()
        # A refusal under another fence is for a former holder of the run, which writes under the same producer_id.
        if ack.HasField("refusal") and ack.fence in (0, self.fence) and not self.dead.done():
            self._refused(ack.refusal)

    def _refused(self, refusal: Refusal) -> None:
        if refusal.reason in _FATAL:
            self._die(refusal_error(refusal))
            return
        if refusal.reason in _LOGIN:
            self._window.rewind(0)
        else:
            self._window.rewind(refusal.last_number)
        # Every item on its way when the first was refused is refused too; sending again at once would be repeated for
        # each of them.
        if self._pause is not None:
            return
        if refusal.reason in _LOGIN:
            self._log_in(refusal)
        elif refusal.reason == RefusalReason.REFUSAL_REASON_GAP:
            if refusal.last_number < self._window.acked:
                # The log lost its tail, and these events are gone from here too: it must record the hole.
                self._gap_at = self._window.acked + 1
            self._sleep(self._options.settle_s)
        else:
            self._failures += 1
            delay = self._options.first_delay_s * 2.0 ** min(self._failures - 1, 16)
            self._sleep(max(retry_after_s(refusal), min(delay, self._options.max_delay_s)))

    def _log_in(self, refusal: Refusal) -> None:
        if refusal.reason == RefusalReason.REFUSAL_REASON_UNAUTHENTICATED:
            self._logins += 1
            if self._logins > self._options.max_logins:
                self._die(refusal_error(refusal))
                return
        if self._provider is not None:
            fresh = self._provider()
            if fresh.ticket != self._context.ticket:
                self._context = fresh
                self._sleep(self._options.settle_s)
                return
        # Without a fresh ticket the old one is tried again: the clocks may differ, or the keys may be reloaded by then.
        self._waits_for_ticket = True
        self._sleep(self._options.max_delay_s)
        if self._on_expired is not None:
            self._on_expired()

    def _sleep(self, delay: float) -> None:
        spread = delay * random.uniform(1.0, 1.25)  # noqa: S311 -- spreads load, guards nothing
        self._pause = asyncio.get_running_loop().call_later(spread, self._resume)

    def _resume(self) -> None:
        self._unpause()
        if self.sendable:
            self._outlet.ready(self)

    def _unpause(self) -> None:
        self._waits_for_ticket = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _add(
        self,
        event: Event,
        data: Mapping[str, Any] | bytes,
        context: UserExecutionContext | None,
        row: Row | None,
    ) -> int:
        if row is not None and not self._continues(row.number):
            return row.number
        payload = data if isinstance(data, bytes) else self._encode(event.event_type, data, may_tell=row is None)
        if len(payload) > HARD_EVENT_BYTES:
            raise TooLargeError(
                f"the data of {event.event_type} is {len(payload)} bytes; at most {HARD_EVENT_BYTES} are allowed",
                advice="store it as an artifact and send the reference",
                limit="event_bytes",
                limit_value=HARD_EVENT_BYTES,
                use=len(payload),
            )
        number, event_id, ns = row or Row(self._window.next, new_id("evt"), time.time_ns())
        event.event_id, event.number, event.data = event_id, number, payload
        event.timestamp.FromNanoseconds(ns)
        self._window.add(event, context, len(payload))
        if not self.queued and self.sendable:
            self._outlet.ready(self)
        return number

    def _continues(self, number: int) -> bool:
        window = self._window
        if window.next == 1 and number > 1:
            window.start_at(number)
        if number > window.next:
            raise InvalidEventError(f"number {number} does not follow {window.next - 1}", field="number")
        return number == window.next

    def _encode(self, event_type: str, data: Mapping[str, Any], *, may_tell: bool) -> bytes:
        try:
            if self._shed and may_tell:
                told = orjson.dumps({**data, "shed": self._shed})
                kind = EVENTS.get(event_type)
                if kind is None or len(told) <= kind.max_bytes:
                    self._shed = 0
                    return told
            return orjson.dumps(data)
        except TypeError as error:
            raise InvalidEventError(f"the data of {event_type} is no JSON object", event_type=event_type) from error

    def _full(self) -> bool:
        return len(self._window) >= self._options.max_unacknowledged or self._window.size >= self._options.max_bytes

    def _check(self) -> None:
        if self.dead.done():
            raise self.dead.result()
        if self._closed:
            raise DrainingError("the producer is closed")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            self._check()
            if condition():
                return
            self._changed.clear()
            await self._changed.wait()

    def _die(self, error: CarrelError) -> None:
        self.dead.set_result(error)
        self._end()

    def _end(self) -> None:
        self._unpause()
        self._outlet.forget(self)
        self._changed.set()
