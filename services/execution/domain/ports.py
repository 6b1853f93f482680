"""What the domain needs of the outside, as protocols that it owns, and the messages that pass through them.

Implemented by ``client_agent_instance``, ``client_emitter`` and ``store_sql_wakeups``, and by fakes in tests. No grpc,
no protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeAlias

from services.execution.domain.planning import Catalogue
from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    InputRecord,
    JournalItem,
    MessageRecord,
    Micros,
    OutboxEvent,
    RunIdentity,
    UserKey,
)
from services.execution.models_steps import Budget, Hints, Question

__all__ = [
    "AgentHost",
    "ArtifactChunk",
    "ArtifactStored",
    "BudgetGrant",
    "BudgetUse",
    "CancelStage",
    "Downlink",
    "EventSink",
    "Heartbeat",
    "InputRequired",
    "JournalStored",
    "NoWakeups",
    "OutboxChannel",
    "RefreshTicket",
    "StageAccepted",
    "StageFailure",
    "StagePlan",
    "StageResult",
    "StageStart",
    "StageStream",
    "Uplink",
    "Wakeups",
]


# Down to an attempt


@dataclass(frozen=True, slots=True)
class StageStart:
    """Everything that an attempt needs."""

    identity: RunIdentity
    agent_name: str
    index: int
    attempt: int
    fence: int
    message: str
    params: bytes
    deadline_at: Micros
    results: Mapping[str, bytes] = field(default_factory=dict)
    history: tuple[MessageRecord, ...] = ()
    journal: tuple[JournalItem, ...] = ()
    inputs: tuple[InputRecord, ...] = ()
    quiet_until_input: str = ""
    last_attempt: bool = False
    budget: Budget | None = None
    memory: bytes = b""

    @property
    def producer_id(self) -> str:
        """Under which the stage's events are numbered."""
        return f"{self.identity.run_id}:{self.index}:{self.attempt}"


@dataclass(frozen=True, slots=True)
class RefreshTicket:
    """A fresh ticket and nothing else."""


@dataclass(frozen=True, slots=True)
class CancelStage:
    """Ends the attempt: ask, grace, kill."""

    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class ArtifactStored:
    """Answers the last chunk of an upload, with the record or with the error (``CarrelError.to_dict()``)."""

    upload_id: str
    artifact: ArtifactRecord | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class JournalStored:
    """Every entry up to this number is durable."""

    through: int


@dataclass(frozen=True, slots=True)
class BudgetGrant:
    """What the user's model calls may use from now on."""

    budget: Budget


Downlink: TypeAlias = RefreshTicket | CancelStage | ArtifactStored | JournalStored | BudgetGrant


# Up from an attempt


@dataclass(frozen=True, slots=True)
class StageAccepted:
    """The attempt has begun."""

    instance_id: str
    warm: bool
    creation_s: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life."""

    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ArtifactChunk:
    """A piece of an artifact, in order."""

    upload_id: str
    name: str
    media_type: str
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """Model tokens used."""

    model: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class InputRequired:
    """The stage waits for a person; the attempt has ended with it, and every event of it is in the log."""

    question: Question


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A supervisor's result."""

    stages: tuple[str, ...]
    params: bytes = b""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StageFailure:
    """The agent and its fallback failed; their ``agent_error`` is in the log."""

    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StageResult:
    """How an attempt ended: a JSON object, a plan, a failure or a question. Every event of it is in the log by then."""

    outcome: bytes | StagePlan | StageFailure | InputRequired
    answered_by: str = ""
    agent_s: float = 0.0
    log_wait_s: float = 0.0
    emitter_s: float = 0.0
    bridge_s: float = 0.0
    memory: bytes = b""


Uplink: TypeAlias = StageAccepted | Heartbeat | JournalItem | AuditEntry | ArtifactChunk | BudgetUse | StageResult


class StageStream(Protocol):
    """An open attempt. Iterating ends, or raises a ``CarrelError``, when agent_instance breaks off."""

    def __aiter__(self) -> AsyncIterator[Uplink]: ...

    async def send(self, message: Downlink) -> None:
        """Send one message, under a fresh ticket. A stream that is over takes it and does nothing."""
        ...


class AgentHost(Protocol):
    """An agent_instance."""

    @property
    def address(self) -> str:
        """Where it is."""
        ...

    async def catalogue(self) -> Catalogue:
        """The registry. Raises ``DownstreamUnavailableError``."""
        ...

    def run_stage(self, start: StageStart) -> AbstractAsyncContextManager[StageStream]:
        """Open an attempt; leaving the context ends it, whatever it does."""
        ...


class OutboxChannel(Protocol):
    """A run's own events on their way to the log."""

    async def emit(self, event: OutboxEvent) -> None:
        """Send an event; one that was sent before is ignored."""
        ...

    @property
    def hops(self) -> tuple[float, float]:
        """Seconds that the last acknowledged event was at the emitter (and what is behind it), and at the bridge."""
        ...

    async def settled(self) -> None:
        """Return once the log has every event emitted so far.

        Raises:
            SealedLogError: The log has the run's terminal event already.
            StaleFenceError: Somebody newer holds the run.
            CarrelError: The log will not take the events.
        """
        ...

    async def aclose(self) -> None:
        """Give up what is not acknowledged. Idempotent."""
        ...


class EventSink(Protocol):
    """The way to the users' logs."""

    def outbox(self, identity: RunIdentity, fence: int, deadline_at: Micros) -> OutboxChannel:
        """Open a run's channel; one at a time for each run."""
        ...


class Wakeups(Protocol):
    """Hints from process to process on one store, so that none need ask all the time. A lost one costs time only."""

    @property
    def listening(self) -> bool:
        """Whether hints of others arrive at present."""
        ...

    def changed(self, user: UserKey, run_id: str) -> None:
        """Tell the others that a run has changed. Never waits."""
        ...

    def freed(self) -> None:
        """Tell the others that something is free which a run may wait for. Never waits."""
        ...

    async def listen(self, heard: Callable[[Hints], None]) -> NoReturn:
        """Send and receive for ever, connecting anew when it must; ``heard`` gets what others tell."""
        ...


class NoWakeups:
    """For a store of one process: nobody else is there."""

    listening = False

    def changed(self, user: UserKey, run_id: str) -> None:
        """See ``Wakeups``."""

    def freed(self) -> None:
        """See ``Wakeups``."""

    async def listen(self, heard: Callable[[Hints], None]) -> NoReturn:
        """See ``Wakeups``."""
        while True:
            await asyncio.Event().wait()
