"""What clients get: runs, stages, artifacts, events and positions as frozen dataclasses. No proto message leaves here.

Converting from the contract is ``convert.py``; from the socket's JSON, ``Event.from_json``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from carrel.errors import CarrelError, InvalidPositionError, ProtocolError

__all__ = [
    "Accepted",
    "Artifact",
    "AuditRecord",
    "Event",
    "LogReset",
    "Position",
    "Question",
    "Run",
    "RunState",
    "Stage",
]


class RunState(enum.StrEnum):
    """Where a run is in its life."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    FINISHING = "FINISHING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """Whether a run stays in this state."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to ``execute``. ``existing`` says that ``client_ref`` named a run that was there already."""

    run_id: str
    thread_id: str
    request_id: str
    agent_name: str
    status: str
    client_ref: str
    existing: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a user's log to go on reading from: the last entry seen, offset 0 for none."""

    epoch: str = ""
    offset: int = 0
    event_id: str = ""

    @property
    def usable(self) -> bool:
        """Whether the log can compare it: past the beginning it needs the entry's event_id."""
        return bool(self.epoch) and (self.offset == 0 or bool(self.event_id))

    def __str__(self) -> str:
        """``epoch:offset:event_id``, as in the ids of Server-Sent Events; ``parse`` reads it."""
        return f"{self.epoch}:{self.offset}:{self.event_id}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that ``str`` made; ``:0:`` is the beginning of whatever is kept.

        Raises:
            InvalidPositionError: It is no such text.
        """
        # Only the event_id may hold colons.
        epoch, _, rest = text.strip().partition(":")
        offset, colon, event_id = rest.partition(":")
        if not (colon and offset.isascii() and offset.isdigit() and len(offset) <= 18):
            raise InvalidPositionError(
                f"{text[:80]!r} is no position", advice="write epoch:offset:event_id as it was saved, or :0: for all"
            )
        position = cls(epoch, int(offset), event_id)
        if position.offset and not epoch:
            raise InvalidPositionError(
                f"the position {text[:80]!r} lacks its epoch",
                advice="save whole positions, epoch:offset:event_id: an offset alone cannot be compared with the log",
            )
        return position


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a user's log. ``epoch`` is empty where the source does not say it."""

    offset: int
    event_id: str
    event_type: str
    user_id: str
    thread_id: str
    run_id: str
    request_id: str
    agent_name: str = ""
    parent_request_id: str = ""
    attempt: int = 0
    timestamp: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    epoch: str = ""

    @property
    def terminal(self) -> bool:
        """Whether it is its run's last event."""
        return self.event_type == "run_completed"

    @property
    def position(self) -> Position:
        """The place right after this event."""
        return Position(self.epoch, self.offset, self.event_id)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], epoch: str = "") -> Event:
        """An event as the socket sends it.

        Raises:
            ProtocolError: A field is missing or of another kind.
        """
        try:
            event = cls(
                offset=body["offset"],
                event_id=body["event_id"],
                event_type=body["event_type"],
                user_id=body["user_id"],
                thread_id=body["thread_id"],
                run_id=body["run_id"],
                request_id=body["request_id"],
                agent_name=body.get("agent_name") or "",
                parent_request_id=body.get("parent_request_id") or "",
                attempt=body.get("attempt") or 0,
                timestamp=body.get("timestamp") or "",
                data=body.get("data") or {},
                epoch=epoch,
            )
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"the server sent an event without its {error}") from None
        if type(event.offset) is not int or not isinstance(event.data, Mapping):
            raise ProtocolError("the server sent an event whose offset or data is of another kind")
        return event

    def to_json(self) -> dict[str, Any]:
        """The same flat object as the socket's."""
        return {
            "event_type": self.event_type,
            "event_id": self.event_id,
            "offset": self.offset,
            "user_id": self.user_id,
            "thread_id": self.thread_id,
            "run_id": self.run_id,
            "request_id": self.request_id,
            "agent_name": self.agent_name,
            "attempt": self.attempt,
            "timestamp": self.timestamp,
            **({"parent_request_id": self.parent_request_id} if self.parent_request_id else {}),
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class LogReset:
    """The position asked for is unusable; what follows begins after ``position``."""

    reason: str
    position: Position


@dataclass(frozen=True, slots=True)
class Artifact:
    """A reference to stored bytes. ``size`` is in bytes, ``sha256`` in hex."""

    name: str
    media_type: str
    size: int
    sha256: str
    run_id: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One agent's part of a run."""

    index: int
    agent_name: str
    state: str
    attempt: int
    answered_by: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a waiting run asks. ``schema`` is the JSON Schema of the answer; empty for any answer.

    When a tool's call is to be approved, ``tool_name`` and ``arguments`` say which; the answer is true or false.
    ``expires_at`` is when the run ends without an answer; None where the source does not say it.
    """

    input_id: str
    prompt: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    expires_at: datetime | None = None
    tool_name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def approval(self) -> bool:
        """Whether a tool's call is to be approved."""
        return bool(self.tool_name)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Question:
        """A question as ``waiting_for`` of a run or an ``input_required`` event has it.

        Raises:
            ProtocolError: A field is missing or of another kind.
        """
        schema, arguments = body.get("schema") or {}, body.get("arguments") or {}
        input_id = body.get("input_id")
        if not (isinstance(input_id, str) and isinstance(schema, Mapping) and isinstance(arguments, Mapping)):
            raise ProtocolError("the server sent a question of another kind")
        try:
            expires_at = datetime.fromisoformat(str(body["expires_at"])) if body.get("expires_at") else None
        except ValueError:
            raise ProtocolError("the server sent a question whose expires_at is no time") from None
        return cls(
            input_id=input_id,
            prompt=str(body.get("prompt") or ""),
            schema=schema,
            expires_at=expires_at,
            tool_name=str(body.get("tool_name") or ""),
            arguments=arguments,
        )


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what, when, and how it ended; never what was said or given. ``duration_s`` is in seconds."""

    record_id: str
    user_id: str
    thread_id: str
    run_id: str
    request_id: str
    action: str
    target: str
    outcome: str
    error_code: str = ""
    started_at: datetime | None = None
    duration_s: float = 0.0
    arguments_hash: str = ""
    agent_name: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One request's work. ``result`` is None until it succeeded, ``error`` until it ended otherwise.

    ``waiting_for`` is the question of a run that waits for a person.
    """

    run_id: str
    thread_id: str
    request_id: str
    state: RunState
    agent_name: str = ""
    stages: tuple[Stage, ...] = ()
    result: Mapping[str, Any] | None = None
    error: CarrelError | None = None
    client_ref: str = ""
    engine_id: str = ""
    artifacts: tuple[Artifact, ...] = ()
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    waiting_for: Question | None = None
