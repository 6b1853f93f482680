"""Admission and engines as operations of one transaction each. The rules themselves are in ``domain.admission``."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from services.execution.domain.admission import (
    CLIENT_REF_LIFETIME_US,
    Facts,
    UserLimits,
    check_engines,
    check_repeat,
    check_room,
)
from services.execution.domain.outcome import accepted_event
from services.execution.models import TERMINAL_STATES, EngineRecord, RunRecord, RunState, UserKey
from services.execution.models_steps import Admission, Admitted
from services.execution.store_sql_reads import read_run
from services.execution.store_sql_rows import identity_json, new_run, outbox_row, stage_rows
from services.execution.tables import (
    DbNow,
    client_refs,
    engines,
    messages,
    outbox,
    runs,
    stages,
    threads,
    users,
)

__all__ = ["admit", "release_engine", "reserve_engine"]

_P: Final = sa.bindparam

# Statements are built once: building one costs more than running it.
_LOCK_USER: Final = sa.select(users.c.user_id).where(users.c.user_id == _P("u")).with_for_update()
_ADD_USER: Final = users.insert()
_FACTS: Final = sa.select(
    sa.select(sa.func.count())
    .select_from(engines)
    .where(engines.c.user_id == _P("u"), sa.or_(engines.c.run_id != "", engines.c.expires_at > _P("now")))
    .scalar_subquery()
    .label("engines"),
    sa.select(sa.func.count())
    .select_from(runs)
    .where(runs.c.user_id == _P("u"), runs.c.state.in_(sorted(set(RunState) - TERMINAL_STATES)))
    .scalar_subquery()
    .label("unended"),
    # A FINISHING run keeps no thread busy: its part of the conversation is written already.
    sa.select(runs.c.run_id)
    .where(
        runs.c.user_id == _P("u"),
        runs.c.thread_id == _P("thread"),
        runs.c.state.in_([RunState.QUEUED, RunState.RUNNING, RunState.WAITING]),
    )
    .limit(1)
    .scalar_subquery()
    .label("busy"),
    sa.select(sa.func.min(engines.c.expires_at))
    .where(engines.c.user_id == _P("u"), engines.c.expires_at > _P("now"))
    .scalar_subquery()
    .label("first_expiry"),
    sa.select(runs.c.content_hash)
    .where(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
    .scalar_subquery()
    .label("taken"),
    sa.select(threads.c.message_count)
    .where(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))
    .scalar_subquery()
    .label("messages"),
)
_REF: Final = sa.select(client_refs.c.run_id, client_refs.c.content_hash, client_refs.c.created_at).where(
    client_refs.c.user_id == _P("u"), client_refs.c.client_ref == _P("ref")
)
_DROP_REF: Final = client_refs.delete().where(client_refs.c.user_id == _P("u"), client_refs.c.client_ref == _P("ref"))
_ADD_REF: Final = client_refs.insert()
_RESERVED: Final = sa.select(engines.c.engine_id).where(
    engines.c.user_id == _P("u"),
    engines.c.engine_id == _P("engine"),
    engines.c.run_id == "",
    engines.c.expires_at > _P("now"),
)
_TAKE_ENGINE: Final = (
    engines.update()
    .where(engines.c.user_id == _P("u"), engines.c.engine_id == _P("engine"))
    .values(run_id=_P("run"), expires_at=_P("deadline"))
)
_ADD_ENGINE: Final = engines.insert()
_DROP_RESERVATION: Final = engines.delete().where(
    engines.c.user_id == _P("u"), engines.c.engine_id == _P("engine"), engines.c.run_id == ""
)
_ADD_RUN: Final = runs.insert().values(lease_expires_at=DbNow() + _P("lease", type_=sa.BigInteger))
_ADD_STAGES: Final = stages.insert()
_ADD_THREAD: Final = threads.insert()
_TOUCH_THREAD: Final = (
    threads.update()
    .where(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))
    .values(updated_at=_P("now"), message_count=_P("n"))
)
_ADD_MESSAGE: Final = messages.insert()
_ADD_OUTBOX: Final = outbox.insert()


def admit(
    connection: sa.Connection, admission: Admission, *, now: int, lifetime: int, lease: int, owner: str
) -> Admitted:
    """See ``RunStore.admit``; all times in microseconds."""
    identity = admission.identity
    _lock_user(connection, identity.user, now)
    if admission.client_ref:
        existing = _earlier(connection, admission, now)
        if existing is not None:
            return Admitted(existing, existing=True)
    row = connection.execute(
        _FACTS, {"u": identity.user, "now": now, "thread": identity.thread_id, "run": identity.run_id}
    ).one()
    if row.taken is not None:
        run = _need(read_run(connection, identity.user, identity.run_id))
        # A repeated run_id is the same request or none: of a client_ref in conflict, `_earlier` has told before.
        same = row.taken == admission.content_hash and run.client_ref == admission.client_ref
        check_repeat(same_content=same, same_ref=same, run_id=identity.run_id)
        return Admitted(run, existing=True)
    facts = Facts(row.engines, row.unended, row.busy or "", row.first_expiry, now)
    limits = UserLimits(admission.max_engines, admission.max_unended)
    check_room(facts, limits, reserved=_reserved(connection, admission, now))
    run = new_run(admission, now, now + lifetime, fence=1)
    _insert(connection, admission, run, {"lease": lease, "lease_owner": owner})
    _add_message(connection, run, row.messages)
    event = accepted_event(run)
    connection.execute(_ADD_OUTBOX, outbox_row(identity.user, identity.run_id, event))
    return Admitted(run, existing=False, thread_existed=row.messages is not None, events=(event,))


def reserve_engine(
    connection: sa.Connection, user: UserKey, engine_id: str, max_engines: int, *, now: int, lifetime: int
) -> EngineRecord:
    """See ``RunStore.reserve_engine``."""
    _lock_user(connection, user, now)
    row = connection.execute(_FACTS, {"u": user, "now": now, "thread": "", "run": ""}).one()
    check_engines(Facts(row.engines, row.unended, "", row.first_expiry, now), max_engines)
    engine = EngineRecord(engine_id, user, "", now, now + lifetime)
    connection.execute(_ADD_ENGINE, _engine_row(engine))
    return engine


def release_engine(connection: sa.Connection, user: UserKey, engine_id: str) -> bool:
    """See ``RunStore.release_engine``."""
    return connection.execute(_DROP_RESERVATION, {"u": user, "engine": engine_id}).rowcount > 0


def _lock_user(connection: sa.Connection, user: UserKey, now: int) -> None:
    if connection.execute(_LOCK_USER, {"u": user}).first() is not None:
        return
    if connection.dialect.name == "sqlite":  # BEGIN IMMEDIATE has locked the file already
        connection.execute(_ADD_USER, {"user_id": user, "created_at": now})
        return
    from sqlalchemy.dialects.postgresql import insert

    connection.execute(insert(users).on_conflict_do_nothing(), {"user_id": user, "created_at": now})
    connection.execute(_LOCK_USER, {"u": user}).one()


def _earlier(connection: sa.Connection, admission: Admission, now: int) -> RunRecord | None:
    key = {"u": admission.identity.user, "ref": admission.client_ref}
    row = connection.execute(_REF, key).first()
    if row is None:
        return None
    run = read_run(connection, admission.identity.user, row.run_id)
    if row.created_at <= now - CLIENT_REF_LIFETIME_US or run is None:  # too old, or its thread was deleted
        connection.execute(_DROP_REF, key)
        return None
    check_repeat(same_content=row.content_hash == admission.content_hash, same_ref=True, run_id=row.run_id)
    return run


def _reserved(connection: sa.Connection, admission: Admission, now: int) -> bool | None:
    if not admission.engine_id:
        return None
    key = {"u": admission.identity.user, "engine": admission.engine_id, "now": now}
    return connection.execute(_RESERVED, key).first() is not None


def _insert(connection: sa.Connection, admission: Admission, run: RunRecord, lease: dict[str, Any]) -> None:
    identity = run.identity
    connection.execute(
        _ADD_RUN,
        {
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
            **lease,
        },
    )
    connection.execute(_ADD_STAGES, stage_rows(run, run.stages))
    if admission.engine_id:
        key = {"u": identity.user, "engine": run.engine_id, "run": identity.run_id, "deadline": run.deadline_at}
        connection.execute(_TAKE_ENGINE, key)
    else:
        engine = EngineRecord(run.engine_id, identity.user, identity.run_id, run.created_at, run.deadline_at)
        connection.execute(_ADD_ENGINE, _engine_row(engine))
    if run.client_ref:
        connection.execute(
            _ADD_REF,
            {
                "user_id": identity.user,
                "client_ref": run.client_ref,
                "run_id": identity.run_id,
                "content_hash": admission.content_hash,
                "created_at": run.created_at,
            },
        )


def _add_message(connection: sa.Connection, run: RunRecord, count: int | None) -> None:
    user, thread_id, now = run.identity.user, run.identity.thread_id, run.created_at
    number = (count or 0) + 1
    if count is None:
        connection.execute(
            _ADD_THREAD,
            {
                "user_id": user,
                "thread_id": thread_id,
                "created_at": now,
                "updated_at": now,
                "message_count": number,
            },
        )
    else:
        connection.execute(_TOUCH_THREAD, {"u": user, "thread": thread_id, "now": now, "n": number})
    connection.execute(
        _ADD_MESSAGE,
        {
            "user_id": user,
            "thread_id": thread_id,
            "seq": number,
            "role": "user",
            "text": run.message,
            "run_id": run.identity.run_id,
            "created_at": now,
        },
    )


def _engine_row(engine: EngineRecord) -> dict[str, Any]:
    return {
        "user_id": engine.user,
        "engine_id": engine.engine_id,
        "run_id": engine.run_id,
        "created_at": engine.created_at,
        "expires_at": engine.expires_at,
    }


def _need(run: RunRecord | None) -> RunRecord:
    assert run is not None, "read in the transaction that saw it"
    return run
