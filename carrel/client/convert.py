"""From messages of the contract to the dataclasses of ``models.py``. Nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from carrel.client.models import Artifact, AuditRecord, Event, LogReset, Position, Question, Run, RunState, Stage
from carrel.errors import ProtocolError
from carrel.v1 import agent_instance_pb2, events_pb2, execution_pb2
from carrel.wire import error_from_proto

__all__ = ["artifact_of", "audit_of", "event_of", "position_of", "position_to_proto", "reset_of", "run_of"]


class _Stamped(Protocol):
    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802 -- protobuf's name


def run_of(message: execution_pb2.Run) -> Run:
    """A run.

    Raises:
        ProtocolError: Its state is unknown to this version, or its result is no JSON object.
    """
    name = execution_pb2.RunState.Name(message.state).removeprefix("RUN_STATE_")
    try:
        state = RunState(name)
    except ValueError:
        raise ProtocolError(f"a run is in the state {name}, which this client does not know") from None
    return Run(
        run_id=message.run_id,
        thread_id=message.thread_id,
        request_id=message.request_id,
        state=state,
        agent_name=message.agent_name,
        stages=tuple(_stage_of(stage) for stage in message.stages),
        result=_object(message.result_json, "result") if message.result_json else None,
        error=error_from_proto(message.error) if message.HasField("error") else None,
        client_ref=message.client_ref,
        engine_id=message.engine_id,
        artifacts=tuple(artifact_of(artifact) for artifact in message.artifacts),
        created_at=_time(message, "created_at"),
        started_at=_time(message, "started_at"),
        ended_at=_time(message, "ended_at"),
        waiting_for=_question_of(message.waiting_for) if message.HasField("waiting_for") else None,
    )


def _question_of(message: agent_instance_pb2.InputRequired) -> Question:
    return Question(
        input_id=message.input_id,
        prompt=message.prompt,
        schema=_object(message.schema_json, "schema") if message.schema_json else {},
        expires_at=_time(message, "expires_at"),
        tool_name=message.tool_name,
        arguments=_object(message.arguments_json, "tool's arguments") if message.arguments_json else {},
    )


def audit_of(message: agent_instance_pb2.AuditRecord) -> AuditRecord:
    """A record of what somebody did."""
    outcome = agent_instance_pb2.AuditOutcome.Name(message.outcome).removeprefix("AUDIT_OUTCOME_").lower()
    return AuditRecord(
        record_id=message.record_id,
        user_id=message.user_id,
        thread_id=message.thread_id,
        run_id=message.run_id,
        request_id=message.request_id,
        action=message.action,
        target=message.target,
        outcome=outcome,
        error_code=message.error_code,
        started_at=_time(message, "started_at"),
        duration_s=message.duration.ToTimedelta().total_seconds(),
        arguments_hash=message.arguments_hash,
        agent_name=message.agent_name,
    )


def _stage_of(message: execution_pb2.Stage) -> Stage:
    return Stage(
        index=message.index,
        agent_name=message.agent_name,
        state=execution_pb2.StageState.Name(message.state).removeprefix("STAGE_STATE_"),
        attempt=message.attempt,
        answered_by=message.answered_by,
        started_at=_time(message, "started_at"),
        ended_at=_time(message, "ended_at"),
    )


def artifact_of(message: agent_instance_pb2.Artifact) -> Artifact:
    """A reference to an artifact."""
    return Artifact(
        name=message.name,
        media_type=message.media_type,
        size=message.size,
        sha256=message.sha256,
        run_id=message.run_id,
        created_at=_time(message, "created_at"),
    )


def event_of(entry: events_pb2.LogEntry, user_id: str, epoch: str) -> Event:
    """An entry of a user's log.

    Raises:
        ProtocolError: Its data is no JSON object.
    """
    moment = _time(entry, "timestamp")
    return Event(
        offset=entry.offset,
        event_id=entry.event_id,
        event_type=entry.event_type,
        user_id=user_id,
        thread_id=entry.thread_id,
        run_id=entry.run_id,
        request_id=entry.request_id,
        agent_name=entry.agent_name,
        parent_request_id=entry.parent_request_id,
        attempt=entry.attempt,
        timestamp=moment.isoformat(timespec="microseconds").replace("+00:00", "Z") if moment else "",
        data=_object(entry.data, "data") if entry.data else {},
        epoch=epoch,
    )


def position_of(message: events_pb2.Position) -> Position:
    """A position."""
    return Position(message.epoch, message.offset, message.event_id)


def position_to_proto(position: Position) -> events_pb2.Position:
    """A position as a request has it."""
    return events_pb2.Position(epoch=position.epoch, offset=position.offset, event_id=position.event_id)


def reset_of(message: events_pb2.Reset) -> LogReset:
    """A notice that the position asked for is unusable."""
    reason = events_pb2.ResetReason.Name(message.reason).removeprefix("RESET_REASON_").lower()
    return LogReset(reason, position_of(message.position))


def _object(data: bytes, what: str) -> Mapping[str, Any]:
    try:
        value = orjson.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"the server sent a {what} that is no JSON object")
    return value


def _time(message: _Stamped, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Any = getattr(message, field)
    moment: datetime = stamp.ToDatetime(UTC)
    return moment
