"""What goes into the run store's writes and comes out of them: admissions, steps, ends. No rules, no I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from services.execution.models import (
    EngineRecord,
    Micros,
    OutboxEvent,
    RunIdentity,
    RunRecord,
    RunState,
    ThreadStrategy,
    UserKey,
)

__all__ = [
    "ALWAYS",
    "Admission",
    "Admitted",
    "Again",
    "Budget",
    "Checkpoint",
    "Finish",
    "Finished",
    "Hints",
    "Kept",
    "Question",
    "Revocation",
    "Revocations",
    "SignedOut",
    "Span",
    "Step",
    "Sweep",
    "Unended",
]


class Again(enum.StrEnum):
    """Why a stage is tried again; the ``reason`` of ``run_attempt``."""

    WORKER_LOST = "worker_lost"
    AGENT_INSTANCE_LOST = "agent_instance_lost"
    EXECUTION_RESTARTED = "execution_restarted"
    INPUT_PROVIDED = "input_provided"


@dataclass(frozen=True, slots=True)
class Question:
    """What a stage asks a person before it can go on; see ``InputRecord``."""

    input_id: str
    prompt: str
    schema: bytes
    arguments_hash: str = ""
    tool_name: str = ""
    arguments: bytes = b""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a user may still use of models: tokens until ``renews_at``, and calls at once over all runs."""

    tokens: int
    concurrency: int
    renews_at: Micros


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stage's agent keeps in the thread, and how many bytes all that the user's agents keep may take."""

    agent_name: str
    data: bytes
    quota: int


@dataclass(frozen=True, slots=True)
class Finish:
    """How a run ends.

    ``interrupts``: execution itself ends the stage that runs, so the stage's ``agent_error`` is execution's to write.
    ``reference`` stands in the terminal event for a result that is too large for it.
    """

    outcome: RunState
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    interrupts: bool = False
    answered_by: str = ""
    reply: str = ""
    reference: Mapping[str, Any] | None = None
    memory: Kept | None = None
    """What the last stage keeps; only of a run that succeeds."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last events, in the outbox now."""

    events: tuple[OutboxEvent, ...]
    ended_at: Micros
    queued: bool = False
    """Whether a run of the user, or of anybody where the deployment was full, waits for what has become free."""


@dataclass(frozen=True, slots=True)
class Step:
    """A run after a step, and the events of its own that the step wrote into the outbox."""

    run: RunRecord
    events: tuple[OutboxEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """Everything the store needs to admit a run in one transaction."""

    identity: RunIdentity
    message: str
    params: bytes
    stages: tuple[str, ...]
    agent_name: str
    content_hash: str
    client_ref: str
    strategy: ThreadStrategy
    engine_id: str
    new_engine_id: str
    max_engines: int
    max_unended: int
    agent_instance: str = ""
    bound: bool = False
    rate_per_minute: float = 0.0
    """Runs of the user that may be admitted in a minute, over time; 0 for no such limit."""
    rate_burst: int = 0
    """Runs of the user that may be admitted at once after a quiet time."""
    max_active_total: int = 0
    """Engines of all users; 0 for no such limit."""
    max_unended_total: int = 0
    """Unended runs of all users; 0 for no such limit."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The admitted run, or the one that was there already under the same ``client_ref``.

    ``ended``: runs of the thread that the strategy ended in the same transaction, as they then are, and their last
    events.
    """

    run: RunRecord
    existing: bool
    thread_existed: bool = False
    events: tuple[OutboxEvent, ...] = ()
    ended: tuple[tuple[RunRecord, Finished], ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stage that is done, the stages that its plan adds, and the next one begun: one transaction."""

    index: int
    result: bytes
    answered_by: str
    added: tuple[str, ...] = ()
    params: bytes | None = None
    memory: Kept | None = None
    """What the stage keeps, if the run succeeds."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A user's logins and tickets from before ``not_before`` are worth nothing."""

    user: UserKey
    not_before: Micros


@dataclass(frozen=True, slots=True)
class Revocations:
    """Revocations, and what to ask with next time."""

    items: tuple[Revocation, ...]
    as_of: Micros


@dataclass(frozen=True, slots=True)
class SignedOut:
    """A login that was signed out, and when it ends by itself."""

    login: str
    user: UserKey
    expires_at: Micros
    recorded_at: Micros = 0


@dataclass(frozen=True, slots=True)
class Span:
    """From when (inclusive) until when (exclusive; 0 for no end), and in which order."""

    since: Micros = 0
    until: Micros = 0
    oldest_first: bool = False


ALWAYS: Final = Span()


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a clean-up pass removed."""

    engines: tuple[EngineRecord, ...] = ()
    client_refs: int = 0
    # Not removed: engines past their time whose run still runs, for whoever drives it to end.
    overdue: tuple[EngineRecord, ...] = ()


class Unended(NamedTuple):
    """Runs in one state that has not ended: how many, and for how many seconds the oldest has been in it, at most."""

    runs: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Hints:
    """What another process tells: runs that it has changed, and whether something became free there.

    ``missed``: hints may have been lost before this one, so anything may have changed.
    """

    runs: tuple[tuple[UserKey, str], ...] = ()
    freed: bool = False
    missed: bool = False
