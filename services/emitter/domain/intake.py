"""The way of an item from an upstream stream into the queue: identity, envelope, numbers, events, room.

One item's failure is answered to its own producer and changes nothing for the others on the same stream. Items are the
wire's own messages, seen through protocols, and are forwarded as they came unless something in them had to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from carrel.errors import CarrelError, InvalidRequestError
from servicekit.identity.principals import RunPrincipal
from servicekit.identity.tickets import ContextMessage
from services.emitter.domain.guard import EventFields, Guard
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics
from services.emitter.models import Batch, Listener, Offer, Verdict, VerdictKind

__all__ = ["Events", "Intake", "Item"]

MAX_EVENTS: Final = 100
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


class Intake:
    """Takes items into the ledger's queue, or says why not.

    Args:
        verify: Gives the run that a context speaks for.
        guard: Checks and cleans each event.
        ledger: Where items wait for the log.
        statistics: Counts.
        reason: The RefusalReason's name for an error.
    """

    def __init__(
        self,
        verify: Callable[[ContextMessage], RunPrincipal],
        guard: Guard,
        ledger: Ledger,
        statistics: Statistics,
        reason: Callable[[CarrelError], str],
    ) -> None:
        self._verify = verify
        self._guard = guard
        self._ledger = ledger
        self._statistics = statistics
        self._reason = reason

    def take(self, item: Item, listener: Listener, now: float) -> bool:
        """Take one item; False when it was refused, which the listener has been told."""
        try:
            principal = self._verify(item.context)
            first, last = _envelope(item)
            offer = Offer(
                principal.user_id, item.producer_id, principal.run_id, first, last, item.declare_gap, item.fence
            )
            verdict = self._ledger.offer(offer, listener, now)
            if verdict.kind is VerdictKind.QUEUE:
                self._queue(item, verdict, first, last, now)
            elif verdict.kind is VerdictKind.KNOWN:
                listener.known(verdict.producer)
            return True
        except CarrelError as error:
            self._statistics.refused[self._reason(error)] += 1
            last_number = error.details.get("last_number")
            if not isinstance(last_number, int):
                last_number = item.events[0].number - 1 if len(item.events) else 0
            listener.refused(item.context.user_id, item.producer_id, error, max(0, last_number))
            return False

    def _queue(self, item: Item, verdict: Verdict, first: int, last: int, now: float) -> None:
        if verdict.skip:
            del item.events[: verdict.skip]
            first += verdict.skip
        producer = verdict.producer
        batch = Batch(producer, first, last, item.ByteSize(), item, now)
        # What is refused for want of room will come again, and need not be looked through twice.
        self._ledger.check_room(batch, now)
        admit = self._guard.admit
        for event in item.events:
            if not admit(event):
                self._statistics.events_rejected += 1
        self._ledger.queue_batch(batch)


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
