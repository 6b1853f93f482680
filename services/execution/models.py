"""Values that pass between execution's layers: runs, stages, engines, threads, artifacts. No rules, no I/O.

Times are whole microseconds since the epoch, UTC (``Micros``): exact in SQL, in protobuf and in comparisons.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NewType, Self, TypeVar

__all__ = [
    "OPERATOR",
    "TERMINAL_STATES",
    "UNENDED_STATES",
    "ArtifactRecord",
    "AuditEntry",
    "AuditOutcome",
    "EngineRecord",
    "InputRecord",
    "JournalItem",
    "MessageRecord",
    "Micros",
    "OutboxEvent",
    "Page",
    "RunIdentity",
    "RunRecord",
    "RunRef",
    "RunState",
    "StageRecord",
    "StageState",
    "ThreadRecord",
    "ThreadStrategy",
    "UserKey",
]

Micros = int

# Made in convert.py from a verified principal and nowhere else; every store method is addressed by it.
UserKey = NewType("UserKey", str)


class RunState(enum.StrEnum):
    """Where a run is in its life; the last four are terminal."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    FINISHING = "FINISHING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


TERMINAL_STATES: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})
UNENDED_STATES: Final = frozenset(RunState) - TERMINAL_STATES


class StageState(enum.StrEnum):
    """Where a stage is in its life; the last three are terminal."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class ThreadStrategy(enum.StrEnum):
    """What a new run does about one that the thread already has."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class AuditOutcome(enum.StrEnum):
    """How an audited act ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Whose run it is and what it may do, as verified at admission; tickets for the run are minted from it."""

    user: UserKey
    thread_id: str
    run_id: str
    request_id: str
    permissions: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict)
    websocket_client_id: str = ""
    created_at: Micros = 0
    agent_context: Mapping[str, Any] = field(default_factory=dict)
    audit_metadata: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str = ""
    """The trace that asked for it, in which it goes on wherever and whenever it does; "" for none."""


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run as its present holder knows it; a write with an older fence has no effect."""

    user: UserKey
    run_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One agent's part of a run."""

    index: int
    agent_name: str
    state: StageState = StageState.PENDING
    attempt: int = 0
    started_at: Micros | None = None
    ended_at: Micros | None = None
    answered_by: str = ""
    result: bytes | None = None
    lost: int = 0
    """Attempts that were lost with their worker or agent_instance; what ``max_attempts`` is held against."""


@dataclass(frozen=True, slots=True)
class InputRecord:
    """A question to a person, and its answer once there is one. Times on the store's clock; JSON as bytes.

    ``arguments_hash``, ``tool_name`` and ``arguments`` are an approval's.
    """

    input_id: str
    stage_index: int
    prompt: str
    schema: bytes
    asked_at: Micros
    expires_at: Micros
    arguments_hash: str = ""
    tool_name: str = ""
    arguments: bytes = b""
    value: bytes | None = None
    answered_at: Micros | None = None


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """Stored bytes: ``sha256`` also names their file within the run's folder."""

    run_id: str
    name: str
    media_type: str
    size: int
    sha256: str
    created_at: Micros


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is in the store. ``result`` is JSON; ``error`` is a ``CarrelError.to_dict()``."""

    identity: RunIdentity
    state: RunState
    agent_name: str
    stages: tuple[StageRecord, ...]
    message: str
    params: bytes
    created_at: Micros
    fence: int
    deadline_at: Micros
    outcome: RunState | None = None
    started_at: Micros | None = None
    ended_at: Micros | None = None
    client_ref: str = ""
    engine_id: str = ""
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    artifacts: tuple[ArtifactRecord, ...] = ()
    waiting_for: InputRecord | None = None
    """The open question of a WAITING run."""
    bound: bool = False
    """Whether it ends when its caller goes away."""
    agent_instance: str = ""
    """Where the agent_instance is that runs its present attempt, or ran the last one."""

    @property
    def ref(self) -> RunRef:
        """What a write to this run is addressed with."""
        return RunRef(self.identity.user, self.identity.run_id, self.fence)


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One of a user's places to run; its row is there exactly as long as it counts against the limit."""

    engine_id: str
    user: UserKey
    run_id: str
    created_at: Micros
    expires_at: Micros


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event of a run's own, numbered in the transaction that caused it. ``data`` is a JSON object."""

    number: int
    event_id: str
    event_type: str
    data: Mapping[str, Any]
    created_at: Micros
    agent_name: str = ""


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One message of a thread."""

    role: str
    text: str
    run_id: str
    created_at: Micros


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A conversation."""

    thread_id: str
    created_at: Micros
    updated_at: Micros
    message_count: int
    unended_run_id: str = ""


@dataclass(frozen=True, slots=True)
class JournalItem:
    """A completed tool or model call of a stage, with which a later attempt answers the same call."""

    number: int
    call_id: str
    kind: str
    name: str
    arguments_hash: str
    result: bytes
    error: Mapping[str, Any] | None = None


OPERATOR: Final = UserKey("(operator)")
"""Whose acts those are that concern no user, in the audit trail."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, and how it ended; never the payload."""

    record_id: str
    user: UserKey
    thread_id: str
    run_id: str
    request_id: str
    action: str
    target: str
    outcome: AuditOutcome
    started_at: Micros
    duration_us: int = 0
    error_code: str = ""
    arguments_hash: str = ""
    agent_name: str = ""

    @classmethod
    def outside_runs(cls, record_id: str, user: UserKey, action: str, target: str, at: Micros) -> Self:
        """An act that belongs to no run and was done at this moment."""
        return cls(record_id, user, "", "", "", action, target, AuditOutcome.SUCCEEDED, at)


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """A page of a listing; ``next`` is the key of its last item when there are more."""

    items: tuple[_T, ...]
    next: tuple[Any, ...] | None = None
