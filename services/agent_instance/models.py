"""Values that pass between the layers of agent_instance. No rules, no protobuf; all of them are frozen."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from carrel.agents import Plan, Request
from carrel.context import UserExecutionContext
from carrel.errors import CarrelError

__all__ = [
    "AuditEntry",
    "AuditOutcome",
    "BudgetGrant",
    "BudgetUse",
    "Caller",
    "ChunkUp",
    "JournalItem",
    "Load",
    "PoolStatistics",
    "ProvidedInput",
    "Question",
    "StageOutcome",
    "StageStart",
    "StoredArtifact",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a run is for, as its verified ticket says: the only source of identity and permissions."""

    context: UserExecutionContext
    permissions: frozenset[str]

    @property
    def user_id(self) -> str:
        """The verified user."""
        return self.context.user_id

    @property
    def run_id(self) -> str:
        """The verified run."""
        return self.context.run_id


@dataclass(frozen=True, slots=True)
class StageStart:
    """What one attempt of one stage is to do. ``deadline`` is Unix time; None for no end of the engine's."""

    agent_name: str
    stage_index: int
    attempt: int
    fence: int
    producer_id: str
    request: Request
    instance_id: str = ""
    deadline: float | None = None
    journal: tuple[JournalItem, ...] = ()
    inputs: tuple[ProvidedInput, ...] = ()
    quiet_until_input: str = ""
    last_attempt: bool = True
    budget: BudgetGrant | None = None
    memory: bytes = b""


@dataclass(frozen=True, slots=True)
class ProvidedInput:
    """A person's answer (JSON) to an earlier question of this stage; ``arguments_hash`` is an approval's."""

    input_id: str
    value: bytes
    arguments_hash: str = ""


@dataclass(frozen=True, slots=True)
class BudgetGrant:
    """What the user's model calls may use: tokens until ``renews_at`` (Unix time), calls at once over all runs."""

    tokens: int
    concurrency: int
    renews_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """What a stage asks a person before it can go on. ``schema`` and ``arguments`` are JSON objects.

    ``arguments_hash``, ``tool_name`` and ``arguments`` are an approval's; it binds to the hash.
    """

    input_id: str
    prompt: str
    schema: bytes
    arguments_hash: str = ""
    tool_name: str = ""
    arguments: bytes = b""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """Tokens that one model call has used."""

    model: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """How an attempt ended: exactly one of ``result`` (JSON), ``plan``, ``error`` and ``question`` is set.

    With ``question`` the stage goes on in a later attempt. Times are in seconds.
    """

    answered_by: str
    result: bytes | None = None
    plan: Plan | None = None
    error: CarrelError | None = None
    question: Question | None = None
    events_through: int = 0
    agent_time_s: float = 0.0
    log_wait_s: float = 0.0
    emitter_s: float = 0.0
    bridge_s: float = 0.0
    memory: bytes = b""


class AuditOutcome(enum.Enum):
    """How an audited act ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, and how it ended; never the payload. ``started_at`` is Unix time."""

    context: UserExecutionContext
    agent_name: str
    action: str
    target: str
    outcome: AuditOutcome
    error_code: str
    started_at: float
    duration_s: float
    arguments_hash: str


@dataclass(frozen=True, slots=True)
class JournalItem:
    """One completed call, from which a repeated attempt may answer the same call."""

    number: int
    call_id: str
    kind: str
    name: str
    arguments_hash: str
    result: bytes = b""
    error: CarrelError | None = None


@dataclass(frozen=True, slots=True)
class ChunkUp:
    """A piece of an artifact on its way to execution; name and media type on the first piece only."""

    upload_id: str
    data: bytes
    last: bool
    name: str = ""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """Where an artifact's bytes are now."""

    name: str
    media_type: str
    size: int
    sha256: str
    url: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the shape that events and results carry."""
        return {
            "name": self.name,
            "media_type": self.media_type,
            "size": self.size,
            "sha256": self.sha256,
            "url": self.url,
        }


@dataclass(frozen=True, slots=True)
class Load:
    """How much room there is: instances that run, attempts that wait for one, and the most that may run."""

    active: int
    waiting: int
    capacity: int


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The pool's counts since this process started; times in seconds."""

    created: int = 0
    reused: int = 0
    reuse_rate: float = 0.0
    active: int = 0
    idle: int = 0
    capacity: int = 0
    killed: int = 0
    failed: int = 0
    fallbacks: int = 0
    periodic_updates_active: int = 0
    creation_p50_s: float = 0.0
    creation_p95_s: float = 0.0
    waiting: int = 0
    lost: int = 0
    children_active: int = 0
