"""What else the store keeps, as operations of one transaction each: journal, artifacts, audit, deletion, clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from carrel.errors import QuotaError
from services.execution.domain.admission import CLIENT_REF_LIFETIME_US
from services.execution.domain.errors import RunNotEndedError
from services.execution.domain.states import HOLDS_ENGINE
from services.execution.models import UNENDED_STATES, ArtifactRecord, AuditEntry, JournalItem, RunRef, RunState, UserKey
from services.execution.models_steps import Sweep
from services.execution.store_sealing import seals_of
from services.execution.store_sealing_check import register_keys
from services.execution.store_sql_admission import user_locked
from services.execution.store_sql_budgets import drop_old_budgets
from services.execution.store_sql_claims import drop_old_claims
from services.execution.store_sql_leases import clean_owners
from services.execution.store_sql_rows import artifact_of, audit_row, engine_of, error_json
from services.execution.store_sql_runs import holds
from services.execution.tables import (
    artifact_bytes,
    artifacts,
    audit,
    client_refs,
    engines,
    inputs,
    journal,
    keepers,
    memories,
    messages,
    outbox,
    runs,
    stages,
    threads,
    users,
)

__all__ = [
    "delete_thread",
    "expire_artifacts",
    "expire_audit",
    "probe",
    "save_artifact",
    "save_audit",
    "save_journal",
    "sweep",
]

_ALIVE: Final = frozenset({RunState.RUNNING})
_P: Final = sa.bindparam
# Not all: an agent waits for this, and a stage may have thousands.
_KNOWN_CALLS: Final = sa.select(journal.c.number).where(
    journal.c.user_id == _P("u"),
    journal.c.run_id == _P("run"),
    journal.c.stage_index == _P("i"),
    journal.c.number >= _P("least"),
)
_ADD_CALLS: Final = journal.insert()
_STORED_BYTES: Final = sa.select(sa.func.coalesce(sa.func.sum(artifacts.c.size), 0)).where(
    artifacts.c.user_id == _P("u"),
    sa.not_(sa.and_(artifacts.c.run_id == _P("run"), artifacts.c.name == _P("name"))),
)
_OTHERS_OF_RUN: Final = sa.select(sa.func.count()).where(
    artifacts.c.user_id == _P("u"), artifacts.c.run_id == _P("run"), artifacts.c.name != _P("name")
)
_DROP_ARTIFACT: Final = artifacts.delete().where(
    artifacts.c.user_id == _P("u"), artifacts.c.run_id == _P("run"), artifacts.c.name == _P("name")
)
_ADD_ARTIFACT: Final = artifacts.insert()
_DROP_AUDIT: Final = audit.delete().where(audit.c.user_id == _P("u"), audit.c.record_id == _P("record"))
_ADD_AUDIT: Final = audit.insert().prefix_with("OR IGNORE", dialect="sqlite")


def save_journal(connection: sa.Connection, ref: RunRef, stage: int, entries: Sequence[JournalItem]) -> bool:
    """See ``RunStore.save_journal``."""
    if not holds(connection, ref, _ALIVE):
        return False
    least = min((entry.number for entry in entries), default=0)
    asked = {"u": ref.user, "run": ref.run_id, "i": stage, "least": least}
    known = set(connection.execute(_KNOWN_CALLS, asked).scalars())
    seals = seals_of(connection)
    fresh = [
        {
            "user_id": ref.user,
            "run_id": ref.run_id,
            "stage_index": stage,
            "number": entry.number,
            "call_id": entry.call_id,
            "kind": entry.kind,
            "name": entry.name,
            "arguments_hash": entry.arguments_hash,
            "result": seals.seal("journal.result", ref.user, ref.run_id, entry.result),
            "error": error_json(seals, "journal.error", ref.user, ref.run_id, entry.error),
        }
        for entry in {entry.number: entry for entry in entries}.values()
        if entry.number not in known
    ]
    if fresh:
        connection.execute(_ADD_CALLS, fresh)
    return True


def save_artifact(connection: sa.Connection, ref: RunRef, artifact: ArtifactRecord, quota: int, per_run: int) -> bool:
    """See ``RunStore.save_artifact``."""
    if not holds(connection, ref, _ALIVE):
        return False
    key = {"u": ref.user, "run": ref.run_id, "name": artifact.name}
    stored = int(connection.execute(_STORED_BYTES, key).scalar_one())
    if stored + artifact.size > quota:
        raise QuotaError(
            f"your artifacts would take {stored + artifact.size} bytes; {quota} are allowed",
            advice="delete threads whose artifacts are no longer needed",
            limit="artifact_quota_per_user",
            limit_value=quota,
            use=stored,
        )
    others = int(connection.execute(_OTHERS_OF_RUN, key).scalar_one())
    if others >= per_run:
        raise QuotaError(
            f"the run has {others} artifacts; {per_run} are allowed",
            advice="put several results into one file",
            limit="artifacts_per_run",
            limit_value=per_run,
            use=others,
        )
    connection.execute(_DROP_ARTIFACT, key)
    connection.execute(
        _ADD_ARTIFACT,
        {
            "user_id": ref.user,
            "run_id": ref.run_id,
            "name": artifact.name,
            "media_type": artifact.media_type,
            "size": artifact.size,
            "sha256": artifact.sha256,
            "created_at": artifact.created_at,
        },
    )
    return True


def save_audit(connection: sa.Connection, entries: Sequence[AuditEntry]) -> None:
    """See ``RunStore.save_audit``."""
    if not entries:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(_ADD_AUDIT, [audit_row(entry) for entry in entries])
        return
    from sqlalchemy.dialects.postgresql import insert

    connection.execute(insert(audit).on_conflict_do_nothing(), [audit_row(entry) for entry in entries])


def delete_thread(connection: sa.Connection, user: UserKey, thread_id: str) -> tuple[str, ...] | None:
    """See ``RunStore.delete_thread``."""
    if not user_locked(connection, user):  # against an admission into the thread at this moment
        return None
    here = sa.and_(threads.c.user_id == user, threads.c.thread_id == thread_id)
    if connection.execute(sa.select(threads.c.thread_id).where(here).with_for_update()).first() is None:
        return None
    of_thread = sa.and_(runs.c.user_id == user, runs.c.thread_id == thread_id)
    rows = connection.execute(sa.select(runs.c.run_id, runs.c.state).where(of_thread)).all()
    unended = [row.run_id for row in rows if row.state in UNENDED_STATES]
    if unended:
        raise RunNotEndedError("a run of the thread has not ended", retry_after_s=1.0, run_id=unended[0])
    of_runs = sa.select(runs.c.run_id).where(of_thread)
    for table in (stages, outbox, journal, inputs, artifacts, artifact_bytes, keepers):
        connection.execute(table.delete().where(table.c.user_id == user, table.c.run_id.in_(of_runs)))
    connection.execute(client_refs.delete().where(client_refs.c.user_id == user, client_refs.c.run_id.in_(of_runs)))
    connection.execute(messages.delete().where(messages.c.user_id == user, messages.c.thread_id == thread_id))
    connection.execute(memories.delete().where(memories.c.user_id == user, memories.c.thread_id == thread_id))
    connection.execute(runs.delete().where(of_thread))
    connection.execute(threads.delete().where(here))
    return tuple(row.run_id for row in rows)


def expire_artifacts(connection: sa.Connection, before: int) -> tuple[tuple[UserKey, ArtifactRecord], ...]:
    """See ``RunStore.expire_artifacts``."""
    old = sa.select(artifacts).where(artifacts.c.created_at < before).order_by(artifacts.c.created_at).limit(500)
    rows = connection.execute(old).all()
    for row in rows:
        connection.execute(_DROP_ARTIFACT, {"u": row.user_id, "run": row.run_id, "name": row.name})
    return tuple((UserKey(row.user_id), artifact_of(row)) for row in rows)


def expire_audit(connection: sa.Connection, before: int) -> int:
    """See ``RunStore.expire_audit``."""
    old = sa.select(audit.c.user_id, audit.c.record_id).where(audit.c.started_at < before)
    rows = connection.execute(old.order_by(audit.c.started_at).limit(2000)).all()
    if rows:
        connection.execute(_DROP_AUDIT, [{"u": row.user_id, "record": row.record_id} for row in rows])
    return len(rows)


def sweep(connection: sa.Connection, *, now: int) -> Sweep:
    """See ``RunStore.sweep``."""
    holder = (
        sa.select(runs.c.run_id)
        .where(
            runs.c.user_id == engines.c.user_id,
            runs.c.run_id == engines.c.run_id,
            runs.c.state.in_(sorted(HOLDS_ENGINE)),
        )
        .exists()
    )
    lapsed = sa.or_(
        sa.and_(engines.c.run_id == "", engines.c.expires_at <= now), sa.and_(engines.c.run_id != "", sa.not_(holder))
    )
    found = tuple(engine_of(row) for row in connection.execute(_in_order(lapsed)))
    for engine in found:
        connection.execute(
            engines.delete().where(engines.c.user_id == engine.user, engines.c.engine_id == engine.engine_id)
        )
    late = sa.select(engines).where(engines.c.run_id != "", engines.c.expires_at <= now).limit(1000)
    overdue = tuple(engine_of(row) for row in connection.execute(late))
    drop_old_budgets(connection)
    clean_owners(connection)
    drop_old_claims(connection)
    save_audit(connection, register_keys(connection))
    old = client_refs.delete().where(client_refs.c.created_at <= now - CLIENT_REF_LIFETIME_US)
    return Sweep(found, connection.execute(old).rowcount, overdue)


def _in_order(lapsed: sa.ColumnElement[bool]) -> sa.Select[Any]:
    # In one order everywhere, so that two processes that sweep never wait for each other crosswise.
    return sa.select(engines).where(lapsed).order_by(engines.c.user_id, engines.c.engine_id).limit(10_000)


def probe(connection: sa.Connection) -> None:
    """See ``RunStore.probe``."""
    # An id no user can have: it holds a space.
    connection.execute(users.delete().where(users.c.user_id == " probe"))
    connection.execute(users.insert(), {"user_id": " probe", "created_at": 0})
    connection.execute(users.delete().where(users.c.user_id == " probe"))
