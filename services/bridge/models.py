"""Values that pass between the bridge's layers: appends, entries, positions, runs. No rules, no storage, no protobuf.

What occurs once per event is a named tuple, because a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from carrel.errors import CarrelError

__all__ = [
    "ONE_USER",
    "Append",
    "AppendResult",
    "Bye",
    "Change",
    "Entries",
    "Entry",
    "GatewayItem",
    "IntegrationState",
    "Page",
    "Position",
    "ReadItem",
    "ReadResult",
    "Refusal",
    "RefusalReason",
    "Refused",
    "Reset",
    "ResetReason",
    "ResumeCheck",
    "ResumePoint",
    "Retention",
    "RunInfo",
    "Standing",
    "StoredEvent",
    "Subscribed",
    "Through",
]


ONE_USER: Final = "user"
"""``details["scope"]`` of an error of the store when the store works but has something of one user it cannot use."""


class StoredEvent(NamedTuple):
    """An event on its way into the log; its number is its place in the append.

    ``blob`` is what gateways get, without the offset: it can be built before the offset is known.
    """

    event_id: str
    blob: bytes


class Entry(NamedTuple):
    """One entry of a user's log."""

    offset: int
    event_id: str
    blob: bytes


class Append(NamedTuple):
    """Consecutive events of one producer, ``first_number`` and up.

    ``terminal`` says that the last of them is the run's terminal event. ``gap`` is the ``log_gap`` event to record if
    ``first_number`` turns out to leave a hole that the producer cannot fill; None means that a hole is refused.
    ``notified`` says that the run's owner did not send it: it must not raise the run's fence.
    """

    user: str
    run_id: str
    thread_id: str
    producer_id: str
    fence: int
    first_number: int
    events: tuple[StoredEvent, ...]
    terminal: bool = False
    gap: StoredEvent | None = None
    notified: bool = False


class RefusalReason(enum.Enum):
    """Why the log did not take an append."""

    GAP = "gap"
    STALE_FENCE = "stale_fence"
    FENCE = "fence"  # higher than the run's, from one who may not raise it
    SEALED = "sealed"
    MISMATCH = "mismatch"  # the run is known under another thread, or the producer under another run
    FAILED = "failed"  # the store works, but has something of this user that it cannot use


class Refusal(NamedTuple):
    """A refused append; ``last_number`` is the last number the log holds of this producer, 0 when none or unknown."""

    reason: RefusalReason
    last_number: int


class AppendResult(NamedTuple):
    """What became of one append.

    ``through`` is the last number of this producer in the log. ``events`` are those stored by this very append (the
    declared gap's first), at ``first_offset`` and up; empty for a duplicate or a refusal. ``mark`` is that of the
    last of them, ``previous`` that of the entry before ``first_offset``, by which readers see that nothing came
    between; None when the log is this process's alone.
    """

    through: int
    epoch: str
    first_offset: int
    events: tuple[StoredEvent, ...]
    refusal: Refusal | None = None
    previous: str | None = None
    mark: str = ""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The newly stored events as entries."""
        return tuple(Entry(offset, *event) for offset, event in enumerate(self.events, self.first_offset))


class Position(NamedTuple):
    """Where a user's log stands: entries ``oldest`` … ``top`` can be read; empty when ``oldest`` is ``top`` + 1.

    ``event_id`` is that of the entry at ``top``, empty when it is not known any more; ``mark`` is that entry's.
    """

    epoch: str
    top: int
    oldest: int
    event_id: str = ""
    mark: str = ""


class ResumePoint(NamedTuple):
    """The last entry a reader has seen; offset 0 with an empty event_id is the beginning.

    A shared log may lose its tail and get the same event at the same offset again, with others before it that a reader
    has not seen. So each time that an entry is written it gets a ``mark`` of its own. Only the log that gave a mark can
    say anything about it, within this process; it is empty when nothing can be compared.
    """

    epoch: str
    offset: int
    event_id: str
    mark: str = ""


class ResetReason(enum.Enum):
    """Why a reader cannot go on from where it was."""

    EPOCH_CHANGED = "epoch_changed"
    BEYOND_TOP = "beyond_top"
    TRIMMED = "trimmed"
    EVENT_MISMATCH = "event_mismatch"


class ResumeCheck(NamedTuple):
    """The answer to a resume: ``reset`` is None when the reader may go on after its offset, whose ``mark`` this is."""

    position: Position
    reset: ResetReason | None
    mark: str = ""


class ReadResult(NamedTuple):
    """Entries after the asked offset, oldest first, and the position at the same instant.

    ``trimmed`` says that entries right after the asked offset are gone; then ``entries`` start at ``position.oldest``.
    ``anchor`` is the mark of the entry at the asked offset, empty when that is gone: a reader compares it with what it
    has seen last. None when the log is this process's alone and cannot lose its tail while somebody reads. ``mark`` is
    that of the last of ``entries``.
    """

    entries: tuple[Entry, ...]
    position: Position
    trimmed: bool
    anchor: str | None = None
    mark: str = ""


class Change(NamedTuple):
    """News: the user's log has grown to ``top``, whose entry has ``mark``."""

    user: str
    epoch: str
    top: int
    mark: str


class Standing(NamedTuple):
    """Where a user's log stands, the epoch empty when there is none; ``active`` while a run of the user is unended."""

    epoch: str
    top: int
    mark: str
    active: bool


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One row of the thread-run map: the run's thread, its entries' bounds and whether it has ended.

    Offsets between the bounds may belong to other runs of the user.
    """

    run_id: str
    thread_id: str
    fence: int
    first_offset: int
    last_offset: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept.

    Args:
        max_entries: Entries per user.
        max_age_s: Seconds an entry is kept.
        producer_ttl_s: Seconds a producer's last number is kept past its run's terminal event.
        idle_ttl_s: Seconds after which a run that never ended, or an empty log nobody wrote to, is forgotten.
    """

    max_entries: int = 10_000
    max_age_s: float = 86_400.0
    producer_ttl_s: float = 3_600.0
    idle_ttl_s: float = 7 * 86_400.0

    def __post_init__(self) -> None:
        if self.max_entries < 1 or min(self.max_age_s, self.producer_ttl_s, self.idle_ttl_s) <= 0:
            raise ValueError("every bound of Retention must be positive")


class Subscribed(NamedTuple):
    """To a gateway: a subscription has begun; ``recovered`` when the position asked for was usable."""

    user: str
    generation: int
    position: Position
    recovered: bool


class Entries(NamedTuple):
    """To a gateway: consecutive entries of a user, from ``first_offset`` on."""

    user: str
    generation: int
    epoch: str
    first_offset: int
    events: tuple[StoredEvent, ...]


class Reset(NamedTuple):
    """To a reader: its position is unusable; the entries after ``point`` follow."""

    user: str
    generation: int
    reason: ResetReason
    point: ResumePoint


class Refused(NamedTuple):
    """To a gateway: a subscription does not exist, or no longer."""

    user: str
    generation: int
    error: CarrelError


class Bye(NamedTuple):
    """To a gateway: the stream ends; attach again after ``retry_after_s``."""

    reason: str
    retry_after_s: float


class Page(NamedTuple):
    """To a reader of the log: entries, not necessarily consecutive when a filter is set."""

    epoch: str
    entries: tuple[Entry, ...]


class Through(NamedTuple):
    """To a reader of the log: everything up to here has been looked at."""

    point: ResumePoint


GatewayItem: TypeAlias = Subscribed | Entries | Reset | Refused | Bye
ReadItem: TypeAlias = Page | Reset | Through


class IntegrationState(enum.Enum):
    """Whether the bridge can do its work; the names are the documents'."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    ACTIVE = "active"
    DEGRADED = "degraded"
    FAILED = "failed"
