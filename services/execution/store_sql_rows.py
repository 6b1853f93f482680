"""Rows to models and back. No statement is run here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    AuditOutcome,
    EngineRecord,
    JournalItem,
    MessageRecord,
    OutboxEvent,
    RunIdentity,
    RunRecord,
    RunState,
    StageRecord,
    StageState,
    UserKey,
)
from services.execution.models_steps import Admission

__all__ = [
    "artifact_of",
    "audit_of",
    "audit_row",
    "engine_of",
    "error_json",
    "identity_json",
    "journal_of",
    "message_of",
    "new_run",
    "outbox_of",
    "outbox_row",
    "run_of",
    "stage_of",
    "stage_rows",
]

# A SQLAlchemy RowMapping or Row: attribute access by column name.
Row = Any


def identity_json(identity: RunIdentity) -> bytes:
    """What tickets are minted from, without the ids, which are columns."""
    return orjson.dumps(
        {
            "permissions": sorted(identity.permissions),
            "limits": dict(identity.limits),
            "websocket_client_id": identity.websocket_client_id,
            "created_at": identity.created_at,
            "agent_context": dict(identity.agent_context),
            "audit_metadata": dict(identity.audit_metadata),
        }
    )


def error_json(error: Mapping[str, Any] | None) -> bytes | None:
    """An error as a column."""
    return None if error is None else orjson.dumps(dict(error))


def _identity(row: Row) -> RunIdentity:
    kept = orjson.loads(row.identity)
    return RunIdentity(
        user=UserKey(row.user_id),
        thread_id=row.thread_id,
        run_id=row.run_id,
        request_id=row.request_id,
        permissions=frozenset(kept["permissions"]),
        limits=kept["limits"],
        websocket_client_id=kept["websocket_client_id"],
        created_at=kept["created_at"],
        agent_context=kept["agent_context"],
        audit_metadata=kept["audit_metadata"],
    )


def stage_of(row: Row) -> StageRecord:
    """A row of ``stages``."""
    return StageRecord(
        index=row.stage_index,
        agent_name=row.agent_name,
        state=StageState(row.state),
        attempt=row.attempt,
        started_at=row.started_at,
        ended_at=row.ended_at,
        answered_by=row.answered_by,
        result=row.result,
    )


def run_of(row: Row, stages: Iterable[Row], artifacts: Iterable[Row] = ()) -> RunRecord:
    """A row of ``runs`` with its rows of ``stages`` and ``artifacts``, in order."""
    return RunRecord(
        identity=_identity(row),
        state=RunState(row.state),
        outcome=RunState(row.outcome) if row.outcome else None,
        agent_name=row.agent_name,
        stages=tuple(stage_of(stage) for stage in stages),
        message=row.message,
        params=row.params,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        deadline_at=row.deadline_at,
        fence=row.fence,
        client_ref=row.client_ref,
        engine_id=row.engine_id,
        result=row.result,
        error=orjson.loads(row.error) if row.error is not None else None,
        artifacts=tuple(artifact_of(artifact) for artifact in artifacts),
    )


def new_run(admission: Admission, now: int, deadline: int, fence: int) -> RunRecord:
    """The run as an admission writes it, its first stage begun."""
    stages = tuple(StageRecord(index, name) for index, name in enumerate(admission.stages))
    first = StageRecord(0, stages[0].agent_name, StageState.RUNNING, attempt=1, started_at=now)
    return RunRecord(
        identity=admission.identity,
        state=RunState.RUNNING,
        agent_name=admission.agent_name,
        stages=(first, *stages[1:]),
        message=admission.message,
        params=admission.params,
        created_at=now,
        started_at=now,
        deadline_at=deadline,
        fence=fence,
        client_ref=admission.client_ref,
        engine_id=admission.engine_id or admission.new_engine_id,
    )


def stage_rows(run: RunRecord, stages: Iterable[StageRecord]) -> list[dict[str, Any]]:
    """Parameters that insert stages of a run."""
    return [
        {
            "user_id": run.identity.user,
            "run_id": run.identity.run_id,
            "stage_index": stage.index,
            "agent_name": stage.agent_name,
            "state": stage.state.value,
            "attempt": stage.attempt,
            "started_at": stage.started_at,
        }
        for stage in stages
    ]


def artifact_of(row: Row) -> ArtifactRecord:
    """A row of ``artifacts``."""
    return ArtifactRecord(row.run_id, row.name, row.media_type, row.size, row.sha256, row.created_at)


def engine_of(row: Row) -> EngineRecord:
    """A row of ``engines``."""
    return EngineRecord(row.engine_id, UserKey(row.user_id), row.run_id, row.created_at, row.expires_at)


def message_of(row: Row) -> MessageRecord:
    """A row of ``messages``."""
    return MessageRecord(row.role, row.text, row.run_id, row.created_at)


def journal_of(row: Row) -> JournalItem:
    """A row of ``journal``."""
    error = orjson.loads(row.error) if row.error is not None else None
    return JournalItem(row.number, row.call_id, row.kind, row.name, row.arguments_hash, row.result, error)


def outbox_of(row: Row) -> OutboxEvent:
    """A row of ``outbox``."""
    return OutboxEvent(row.number, row.event_id, row.event_type, orjson.loads(row.data), row.created_at, row.agent_name)


def outbox_row(user: UserKey, run_id: str, event: OutboxEvent) -> dict[str, Any]:
    """Parameters that insert an event of a run's own."""
    return {
        "user_id": user,
        "run_id": run_id,
        "number": event.number,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "agent_name": event.agent_name,
        "data": orjson.dumps(dict(event.data)),
        "created_at": event.created_at,
    }


def audit_of(row: Row) -> AuditEntry:
    """A row of ``audit``."""
    return AuditEntry(
        record_id=row.record_id,
        user=UserKey(row.user_id),
        thread_id=row.thread_id,
        run_id=row.run_id,
        request_id=row.request_id,
        action=row.action,
        target=row.target,
        outcome=AuditOutcome(row.outcome),
        started_at=row.started_at,
        duration_us=row.duration_us,
        error_code=row.error_code,
        arguments_hash=row.arguments_hash,
        agent_name=row.agent_name,
    )


def audit_row(entry: AuditEntry) -> dict[str, Any]:
    """Parameters that insert an audit record; an overlong target is cut, since it is there to be read."""
    return {
        "user_id": entry.user,
        "record_id": entry.record_id,
        "thread_id": entry.thread_id,
        "run_id": entry.run_id,
        "request_id": entry.request_id,
        "action": entry.action[:64],
        "target": entry.target[:256],
        "outcome": entry.outcome.value,
        "started_at": entry.started_at,
        "duration_us": entry.duration_us,
        "error_code": entry.error_code[:64],
        "arguments_hash": entry.arguments_hash[:64],
        "agent_name": entry.agent_name[:128],
    }
