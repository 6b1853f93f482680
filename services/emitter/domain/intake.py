"""The way of an item from an upstream stream into the queue: identity, envelope, numbers, events, room.

One item's failure is answered to its own producer and changes nothing for the others on the same stream, here or on
the way to the bridge: what could not be sent there is not taken. Items are the wire's own messages, seen through
protocols, and are forwarded as they came unless something in them had to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from carrel.errors import CarrelError, InternalError, InvalidRequestError, PermissionDeniedError
from servicekit.identity.principals import RunPrincipal
from servicekit.identity.tickets import ContextMessage
from servicekit.logs import get_logger
from servicekit.telemetry.buckets import sampled_trace
from servicekit.telemetry.names import EVENTS, of_run
from servicekit.telemetry.tracing import NO_TRACING, Attribute, Kind, Tracing, is_sampled
from services.emitter.domain.guard import EventFields, Guard
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics
from services.emitter.models import Batch, Listener, Offer, Verdict, VerdictKind

__all__ = ["MAX_ITEM_BYTES", "Events", "Intake", "Item"]

_log: Final = get_logger("services.emitter")

MAX_EVENTS: Final = 100
# As it comes. Cleaning makes data longer: an item may grow to twice this, and still fits into a message with others.
MAX_ITEM_BYTES: Final = 512 << 10
# Events of a run that was admitted are sent under tickets of its owner; what a user can get speaks for the user alone.
_OWNER: Final = "execution"
MAX_PRODUCER_ID: Final = 200


class Events(Protocol):
    """A repeated field of events."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def __delitem__(self, index: slice, /) -> None: ...


class Item(Protocol):
    """The fields of ``carrel.v1.ProducerEvents`` that are looked at."""

    producer_id: str
    declare_gap: bool
    fence: int

    @property
    def context(self) -> Any: ...
    @property
    def events(self) -> Any: ...
    def ByteSize(self) -> int: ...  # noqa: N802 -- protobuf's name
    def DiscardUnknownFields(self) -> None: ...  # noqa: N802 -- protobuf's name


class Intake:
    """Takes items into the ledger's queue, or says why not.

    Args:
        verify: Gives the run that a context speaks for.
        guard: Checks and cleans each event.
        ledger: Where items wait for the log.
        statistics: Counts.
        reason: The RefusalReason's name for an error.
        max_item_bytes: Bound of an item as it comes.
        tracing: Makes a span of an item's way into the log.
    """

    def __init__(
        self,
        verify: Callable[[ContextMessage], RunPrincipal],
        guard: Guard,
        ledger: Ledger,
        statistics: Statistics,
        reason: Callable[[CarrelError], str],
        max_item_bytes: int = MAX_ITEM_BYTES,
        *,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._verify = verify
        self._guard = guard
        self._ledger = ledger
        self._statistics = statistics
        self._reason = reason
        self._max_item_bytes = max_item_bytes
        self._tracing = tracing

    def take(self, item: Item, listener: Listener, now: float, *, notified: bool = False) -> bool:
        """Take one item; False when it was refused, which the listener has been told.

        ``notified`` items are the emitter's own, made of a notification that the guard has admitted.
        """
        try:
            principal = self._verify(item.context)
            if principal.issuer != _OWNER and not notified:
                raise PermissionDeniedError(
                    "only the run's owner sends streams of events",
                    advice="send single events with Notify, or have execution run the agent",
                )
            first, last = _envelope(item)
            # Fields that this version does not know would travel on, unseen by the guard.
            item.DiscardUnknownFields()
            size = item.ByteSize()
            self._check_size(size, self._max_item_bytes)
            offer = Offer(
                principal.user_id, item.producer_id, principal.run_id, first, last, item.declare_gap, item.fence
            )
            verdict = self._ledger.offer(offer, listener, now)
            if verdict.kind is VerdictKind.QUEUE:
                self._queue(item, size, verdict, first, now, notified)
            elif verdict.kind is VerdictKind.KNOWN:
                listener.known(verdict.producer)
            return True
        except CarrelError as error:
            self._refuse(item, listener, error)
        except Exception as error:  # noqa: BLE001 -- the stream is everybody's, and the item would come again for ever
            _log.error("an item could not be judged", error=error)
            self._refuse(item, listener, InternalError("the item could not be judged"))
        return False

    def _refuse(self, item: Item, listener: Listener, error: CarrelError) -> None:
        self._statistics.refused[self._reason(error)] += 1
        last_number = error.details.get("last_number")
        if not isinstance(last_number, int):
            last_number = item.events[0].number - 1 if len(item.events) else 0
        listener.refused(item.context.user_id, item.producer_id, error, max(0, last_number))

    def _queue(self, item: Item, size: int, verdict: Verdict, first: int, now: float, notified: bool) -> None:
        if verdict.skip:
            del item.events[: verdict.skip]
            first += verdict.skip
            size = item.ByteSize()
        batch = Batch(verdict.producer, first, first + len(item.events) - 1, size, item, now)
        first_event = item.events[0]
        happened = first_event.timestamp
        batch.happened = happened.seconds + happened.nanos / 1e9
        batch.trace_id = sampled_trace(first_event.traceparent)
        # What is refused for want of room will come again, and need not be looked through twice.
        self._ledger.check_room(batch, now)
        if not notified and self._guard_changes(item.events):
            batch.size = item.ByteSize()
            self._check_size(batch.size, 2 * self._max_item_bytes)
        # All are of one producer, and so of one run: the first one's trace is that of all.
        if self._tracing is not NO_TRACING and is_sampled(traceparent := item.events[0].traceparent):
            context = item.context
            told: dict[str, Attribute] = {EVENTS: batch.count, **of_run(context.user_id, context.run_id)}
            batch.span = self._tracing.batch("emit", (traceparent,), told, kind=Kind.PRODUCER)
        self._ledger.queue_batch(batch)

    def _guard_changes(self, events: Events) -> bool:
        """Check and clean the events; whether any of them is another one now."""
        guard, rejected = self._guard, 0
        admit, cleaned = guard.admit, guard.cleaned
        for event in events:
            if not admit(event):
                rejected += 1
        self._statistics.events_rejected += rejected
        return rejected > 0 or guard.cleaned != cleaned

    def _check_size(self, size: int, bound: int) -> None:
        if size > bound:
            raise InvalidRequestError(
                f"an item is {size} bytes; at most {bound} can be sent on",
                advice=f"send fewer events in one item, {self._max_item_bytes} bytes in all",
                field="events",
            )


def _envelope(item: Item) -> tuple[int, int]:
    events: list[EventFields] = item.events
    count = len(events)
    if not 1 <= count <= MAX_EVENTS:
        raise InvalidRequestError(f"an item holds 1 to {MAX_EVENTS} events, not {count}", field="events")
    producer_id = item.producer_id
    if not producer_id or len(producer_id) > MAX_PRODUCER_ID or not _printable(producer_id):
        raise InvalidRequestError("producer_id is not 1 to 200 printable ASCII characters", field="producer_id")
    first = number = events[0].number
    if first < 1:
        raise InvalidRequestError("numbers begin at 1", field="number")
    if count > 1:
        for event in events:
            if event.number != number:
                raise InvalidRequestError("the numbers of an item do not follow one another", field="number")
            number += 1
    return first, first + count - 1


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text and "/" not in text
