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
    InputRecord,
    JournalItem,
    MessageRecord,
    OutboxEvent,
    RunIdentity,
    RunRecord,
    RunRef,
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
    "engine_row",
    "error_json",
    "identity_json",
    "input_of",
    "input_row",
    "journal_of",
    "message_of",
    "new_run",
    "outbox_of",
    "outbox_row",
    "run_of",
    "run_row",
    "stage_of",
    "stage_rows",
]

# A SQLAlchemy RowMapping or Row: attribute access by column name.
Row = Any


def identity_json(identity: RunIdentity) -> bytes:
    """What tickets are minted from, without the ids, which are columns."""
    kept: dict[str, Any] = {
        "permissions": sorted(identity.permissions),
        "limits": dict(identity.limits),
        "websocket_client_id": identity.websocket_client_id,
        "created_at": identity.created_at,
        "agent_context": dict(identity.agent_context),
        "audit_metadata": dict(identity.audit_metadata),
    }
    if identity.traceparent:
        kept["traceparent"] = identity.traceparent
    return orjson.dumps(kept)


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
        # Rows of older processes have none.
        traceparent=kept.get("traceparent", ""),
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
        lost=row.lost,
    )


def input_of(row: Row) -> InputRecord:
    """A row of ``inputs``."""
    return InputRecord(
        input_id=row.input_id,
        stage_index=row.stage_index,
        prompt=row.prompt,
        schema=row.schema_json,
        asked_at=row.asked_at,
        expires_at=row.expires_at,
        arguments_hash=row.arguments_hash,
        tool_name=row.tool_name,
        arguments=row.arguments,
        value=row.value,
        answered_at=row.answered_at,
    )


def input_row(ref: RunRef, asked: InputRecord) -> dict[str, Any]:
    """Parameters that insert a question."""
    return {
        "user_id": ref.user,
        "run_id": ref.run_id,
        "input_id": asked.input_id,
        "stage_index": asked.stage_index,
        "prompt": asked.prompt,
        "schema_json": asked.schema,
        "arguments_hash": asked.arguments_hash,
        "tool_name": asked.tool_name,
        "arguments": asked.arguments,
        "asked_at": asked.asked_at,
        "expires_at": asked.expires_at,
    }


def run_of(
    row: Row, stages: Iterable[Row], artifacts: Iterable[Row] = (), *, waiting_for: InputRecord | None = None
) -> RunRecord:
    """A row of ``runs`` with its rows of ``stages`` and ``artifacts``, in order, and its open question."""
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
        waiting_for=waiting_for,
        bound=row.bound,
        agent_instance=row.agent_instance,
    )


def new_run(admission: Admission, now: int, deadline: int, *, queued: bool) -> RunRecord:
    """The run as an admission writes it: its first stage begun, or, ``queued``, nothing yet."""
    stages = tuple(StageRecord(index, name) for index, name in enumerate(admission.stages))
    if not queued:
        first = StageRecord(0, stages[0].agent_name, StageState.RUNNING, attempt=1, started_at=now)
        stages = (first, *stages[1:])
    return RunRecord(
        identity=admission.identity,
        state=RunState.QUEUED if queued else RunState.RUNNING,
        agent_name=admission.agent_name,
        stages=stages,
        message=admission.message,
        params=admission.params,
        created_at=now,
        started_at=None if queued else now,
        deadline_at=0 if queued else deadline,
        fence=1,
        client_ref=admission.client_ref,
        engine_id="" if queued else admission.engine_id or admission.new_engine_id,
        bound=admission.bound,
        agent_instance=admission.agent_instance,
    )


def run_row(run: RunRecord, admission: Admission, place: int) -> dict[str, Any]:
    """Parameters that insert a run; the lease is the caller's to add."""
    identity = run.identity
    return {
        "user_id": identity.user,
        "run_id": identity.run_id,
        "thread_id": identity.thread_id,
        "request_id": identity.request_id,
        "state": run.state.value,
        "agent_name": run.agent_name,
        "message": run.message,
        "params": run.params,
        "strategy": admission.strategy.value,
        "client_ref": run.client_ref,
        "content_hash": admission.content_hash,
        "identity": identity_json(identity),
        "engine_id": run.engine_id,
        "agent_instance": admission.agent_instance,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "deadline_at": run.deadline_at,
        "fence": run.fence,
        "bound": run.bound,
        "place": place,
        "queued_at": run.created_at if run.state is RunState.QUEUED else 0,
        "max_engines": admission.max_engines,
        "max_active_total": admission.max_active_total,
    }


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


def engine_row(engine: EngineRecord) -> dict[str, Any]:
    """Parameters that insert an engine."""
    return {
        "user_id": engine.user,
        "engine_id": engine.engine_id,
        "run_id": engine.run_id,
        "created_at": engine.created_at,
        "expires_at": engine.expires_at,
    }


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
    """Parameters that insert an audit record."""
    return {
        "user_id": entry.user,
        "record_id": entry.record_id,
        "thread_id": entry.thread_id,
        "run_id": entry.run_id,
        "request_id": entry.request_id,
        "action": entry.action,
        "target": entry.target,
        "outcome": entry.outcome.value,
        "started_at": entry.started_at,
        "duration_us": entry.duration_us,
        "error_code": entry.error_code,
        "arguments_hash": entry.arguments_hash,
        "agent_name": entry.agent_name,
    }
