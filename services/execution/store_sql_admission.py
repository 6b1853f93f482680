"""Admission and engines as operations of one transaction each. The rules themselves are in ``domain.admission``."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from carrel.errors import LimitExceededError
from services.execution.domain.admission import (
    CLIENT_REF_LIFETIME_US,
    Bucket,
    Facts,
    UserLimits,
    check_active,
    check_engines,
    check_repeat,
    check_reservation,
    check_room,
    check_thread,
    take_from_bucket,
)
from services.execution.domain.outcome import accepted_event, superseded
from services.execution.domain.states import ENDABLE
from services.execution.models import (
    UNENDED_STATES,
    EngineRecord,
    RunRecord,
    RunRef,
    RunState,
    ThreadStrategy,
    UserKey,
)
from services.execution.models_steps import Admission, Admitted, Finished
from services.execution.store_sealing import seals_of
from services.execution.store_sql_reads import read_run
from services.execution.store_sql_rows import engine_row, new_run, outbox_row, run_row, stage_rows
from services.execution.store_sql_runs import finish
from services.execution.store_sql_threads import LAST_SEQ, add_message, add_thread, remove_messages, touch_thread
from services.execution.tables import client_refs, engines, outbox, runs, stages, threads, users

__all__ = [
    "NEAR_LIMIT",
    "admit",
    "count_engines",
    "lock_totals",
    "lock_user",
    "release_engine",
    "reserve_engine",
    "user_locked",
]

_P: Final = sa.bindparam

# So many runs may be admitted at once without a lock on the counts of all users.
NEAR_LIMIT: Final = 64
# Any number that nobody else uses on this database; that of migrations is another.
_LOCK_TOTALS: Final = sa.select(sa.func.pg_advisory_xact_lock(0x636172, 1))

# Statements are built once: building one costs more than running it.
_LOCK_USER: Final = sa.select(users.c.rate_level, users.c.rate_at).where(users.c.user_id == _P("u")).with_for_update()
_ADD_USER: Final = users.insert()
_SET_RATE: Final = users.update().where(users.c.user_id == _P("u")).values(rate_level=_P("level"), rate_at=_P("at"))
_ACTIVE: Final = sa.or_(engines.c.run_id != "", engines.c.expires_at > _P("now"))
_UNENDED: Final = runs.c.state.in_(sorted(UNENDED_STATES))
# A FINISHING run keeps no thread busy: its part of the conversation is written already.
_LIVE: Final = runs.c.state.in_(sorted(ENDABLE))
_COUNT_ENGINES: Final = sa.select(sa.func.count()).select_from(engines).where(engines.c.user_id == _P("u"), _ACTIVE)
_FACTS: Final = sa.select(
    _COUNT_ENGINES.scalar_subquery().label("engines"),
    sa.select(sa.func.count())
    .select_from(runs)
    .where(runs.c.user_id == _P("u"), _UNENDED)
    .scalar_subquery()
    .label("unended"),
    sa.select(runs.c.run_id)
    .where(runs.c.user_id == _P("u"), runs.c.thread_id == _P("thread"), _LIVE)
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
    sa.select(LAST_SEQ)
    .where(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))
    .scalar_subquery()
    .label("last_seq"),
    # Of all users; see `_guard_totals`.
    sa.select(sa.func.count())
    .select_from(sa.select(engines.c.engine_id).where(_ACTIVE).limit(_P("all_engines", type_=sa.Integer)).subquery())
    .scalar_subquery()
    .label("all_engines"),
    sa.select(sa.func.count())
    .select_from(sa.select(runs.c.state).where(_UNENDED).limit(_P("all_unended", type_=sa.Integer)).subquery())
    .scalar_subquery()
    .label("all_unended"),
)
_OF_THREAD: Final = (
    sa.select(runs.c.run_id, runs.c.fence, runs.c.place)
    .where(runs.c.user_id == _P("u"), runs.c.thread_id == _P("thread"), _LIVE)
    .order_by(runs.c.place)
    .with_for_update()
)
_REF: Final = sa.select(client_refs.c.run_id, client_refs.c.content_hash, client_refs.c.created_at).where(
    client_refs.c.user_id == _P("u"), client_refs.c.client_ref == _P("ref")
)
_DROP_REF: Final = client_refs.delete().where(client_refs.c.user_id == _P("u"), client_refs.c.client_ref == _P("ref"))
_ADD_REF: Final = client_refs.insert()
_RESERVED: Final = (
    sa.select(engines.c.engine_id)
    .where(
        engines.c.user_id == _P("u"),
        engines.c.engine_id == _P("engine"),
        engines.c.run_id == "",
        engines.c.expires_at > _P("now"),
    )
    .with_for_update()
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
_ADD_RUN: Final = runs.insert()
_ADD_STAGES: Final = stages.insert()
_ADD_OUTBOX: Final = outbox.insert()


def admit(connection: sa.Connection, admission: Admission, *, now: int, lifetime: int, owner: str) -> Admitted:
    """See ``RunStore.admit``; all times in microseconds."""
    identity = admission.identity
    bucket = lock_user(connection, identity.user, now)
    if admission.client_ref:
        existing = _earlier(connection, admission, now)
        if existing is not None:
            return Admitted(existing, existing=True)
    row = _facts(connection, admission, now)
    if row.taken is not None:
        return _repeated(connection, admission, row.taken)
    ended: tuple[tuple[RunRecord, Finished], ...] = ()
    place = 0
    if row.busy is not None:
        ended, place = _thread(connection, admission, row, now)
        # What the strategy ended is free now. Where rows are locked, a run may also have ended by itself meanwhile, and
        # have added its reply: then its thread's last number is another too.
        row = _facts(connection, admission, now, ended=len(ended))
    if _guard_totals(connection, admission, row):
        row = _facts(connection, admission, now, ended=len(ended))
    facts = Facts(
        row.engines, row.unended - len(ended), "", row.first_expiry, now, row.all_engines, row.all_unended - len(ended)
    )
    check_room(facts, UserLimits(admission.max_engines, admission.max_unended), admission.max_unended_total)
    filled = take_from_bucket(bucket, admission.rate_per_minute, admission.rate_burst, now)
    waits = _waits(connection, admission, facts, behind=place > 0)
    run = new_run(admission, now, now + lifetime, queued=waits)
    seals = seals_of(connection)
    stored = run_row(run, admission, place, seals)
    _insert(connection, admission, run, {"lease_expires_at": 0, "lease_owner": owner, **stored})
    if filled != bucket:
        connection.execute(_SET_RATE, {"u": identity.user, "level": filled.level, "at": filled.at})
    _join_thread(connection, run, there=row.last_seq is not None)
    event = accepted_event(run)
    connection.execute(_ADD_OUTBOX, outbox_row(identity.user, identity.run_id, event, seals))
    return Admitted(run, existing=False, thread_existed=row.last_seq is not None, events=(event,), ended=ended)


def reserve_engine(
    connection: sa.Connection, user: UserKey, engine_id: str, max_engines: int, *, now: int, lifetime: int
) -> EngineRecord:
    """See ``RunStore.reserve_engine``."""
    lock_user(connection, user, now)
    row = connection.execute(_FACTS, _facts_of(user, now)).one()
    check_engines(Facts(row.engines, row.unended, "", row.first_expiry, now), max_engines)
    engine = EngineRecord(engine_id, user, "", now, now + lifetime)
    connection.execute(_ADD_ENGINE, engine_row(engine))
    return engine


def release_engine(connection: sa.Connection, user: UserKey, engine_id: str) -> bool:
    """See ``RunStore.release_engine``."""
    return connection.execute(_DROP_RESERVATION, {"u": user, "engine": engine_id}).rowcount > 0


def count_engines(connection: sa.Connection, user: UserKey, now: int) -> int:
    """How many of the user's engines are active."""
    return int(connection.execute(_COUNT_ENGINES, {"u": user, "now": now}).scalar_one())


def lock_user(connection: sa.Connection, user: UserKey, now: int) -> Bucket:
    """Let nobody else make an engine of the user's active until this transaction ends; the user's rate so far."""
    row = connection.execute(_LOCK_USER, {"u": user}).first()
    if row is not None:
        return Bucket(row.rate_level, row.rate_at)
    if connection.dialect.name == "sqlite":  # BEGIN IMMEDIATE has locked the file already
        connection.execute(_ADD_USER, {"user_id": user, "created_at": now})
        return Bucket()
    from sqlalchemy.dialects.postgresql import insert

    connection.execute(insert(users).on_conflict_do_nothing(), {"user_id": user, "created_at": now})
    row = connection.execute(_LOCK_USER, {"u": user}).one()
    return Bucket(row.rate_level, row.rate_at)


def user_locked(connection: sa.Connection, user: UserKey) -> bool:
    """Let no run of the user's be admitted until this transaction ends; False when there never was one."""
    return connection.execute(_LOCK_USER, {"u": user}).first() is not None


def lock_totals(connection: sa.Connection) -> None:
    """Let nobody else count the runs of all users against a limit until this transaction ends."""
    if connection.dialect.name != "sqlite":  # BEGIN IMMEDIATE has locked the file already
        connection.execute(_LOCK_TOTALS)


def _guard_totals(connection: sa.Connection, admission: Admission, row: Any) -> bool:
    """Lock the counts of all users when they come near their limits; whether they must be looked at again.

    Far from them nobody waits: what others admit at this moment is fewer than what is left.
    """
    if connection.dialect.name == "sqlite":
        return False
    used = ((row.all_engines, admission.max_active_total), (row.all_unended, admission.max_unended_total))
    near = any(limit and use + NEAR_LIMIT >= limit for use, limit in used)
    if near:
        lock_totals(connection)
    return near


def _facts(connection: sa.Connection, admission: Admission, now: int, *, ended: int = 0) -> Any:
    key = _facts_of(admission.identity.user, now)
    key |= {"thread": admission.identity.thread_id, "run": admission.identity.run_id}
    key |= {"all_engines": admission.max_active_total}
    key |= {"all_unended": admission.max_unended_total + ended if admission.max_unended_total else 0}
    return connection.execute(_FACTS, key).one()


def _facts_of(user: UserKey, now: int) -> dict[str, Any]:
    return {"u": user, "now": now, "thread": "", "run": "", "all_engines": 0, "all_unended": 0}


def _repeated(connection: sa.Connection, admission: Admission, content: str) -> Admitted:
    run = _need(read_run(connection, admission.identity.user, admission.identity.run_id))
    # A repeated run_id is the same request or none: of a client_ref in conflict, `_earlier` has told before.
    same = content == admission.content_hash and run.client_ref == admission.client_ref
    check_repeat(same_content=same, same_ref=same, run_id=admission.identity.run_id)
    return Admitted(run, existing=True)


def _thread(
    connection: sa.Connection, admission: Admission, row: Any, now: int
) -> tuple[tuple[tuple[RunRecord, Finished], ...], int]:
    """Do what the strategy says about the thread's runs; those it ended, and the new run's place behind the others."""
    if admission.strategy is ThreadStrategy.REJECT:
        check_thread(Facts(row.engines, row.unended, row.busy, row.first_expiry, now))
    user, thread_id = admission.identity.user, admission.identity.thread_id
    live = connection.execute(_OF_THREAD, {"u": user, "thread": thread_id}).all()
    if admission.strategy is ThreadStrategy.ENQUEUE:
        return (), max((other.place for other in live), default=-1) + 1
    ended = []
    end = superseded(admission.strategy)
    for other in live:
        finished = finish(connection, RunRef(user, other.run_id, other.fence), end, now=now)
        assert finished is not None, "its row is locked"
        ended.append((_need(read_run(connection, user, other.run_id)), finished))
    if admission.strategy is ThreadStrategy.ROLLBACK:
        remove_messages(connection, user, thread_id, [other.run_id for other in live])
    return tuple(ended), 0


def _waits(connection: sa.Connection, admission: Admission, facts: Facts, *, behind: bool) -> bool:
    """Whether the run waits for its turn: behind another of its thread, or, with ``enqueue``, for an engine."""
    if admission.engine_id:
        key = {"u": admission.identity.user, "engine": admission.engine_id, "now": facts.now}
        check_reservation(found=connection.execute(_RESERVED, key).first() is not None)
        return behind
    if behind:
        return True
    try:
        check_engines(facts, admission.max_engines)
        check_active(facts, admission.max_active_total)
    except LimitExceededError:
        if admission.strategy is not ThreadStrategy.ENQUEUE:
            raise
        return True
    return False


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


def _insert(connection: sa.Connection, admission: Admission, run: RunRecord, row: dict[str, Any]) -> None:
    user, run_id = run.identity.user, run.identity.run_id
    connection.execute(_ADD_RUN, row)
    connection.execute(_ADD_STAGES, stage_rows(run, run.stages))
    if run.engine_id and admission.engine_id:
        key = {"u": user, "engine": run.engine_id, "run": run_id, "deadline": run.deadline_at}
        connection.execute(_TAKE_ENGINE, key)
    elif run.engine_id:
        connection.execute(
            _ADD_ENGINE, engine_row(EngineRecord(run.engine_id, user, run_id, run.created_at, run.deadline_at))
        )
    elif admission.engine_id:
        connection.execute(_DROP_RESERVATION, {"u": user, "engine": admission.engine_id})
    if run.client_ref:
        connection.execute(
            _ADD_REF,
            {
                "user_id": user,
                "client_ref": run.client_ref,
                "run_id": run_id,
                "content_hash": admission.content_hash,
                "created_at": run.created_at,
            },
        )


def _join_thread(connection: sa.Connection, run: RunRecord, *, there: bool) -> None:
    user, thread_id, now = run.identity.user, run.identity.thread_id, run.created_at
    message = None
    if run.state is not RunState.QUEUED:
        message = {
            "user_id": user,
            "thread_id": thread_id,
            "role": "user",
            "text": run.message,
            "run_id": run.identity.run_id,
            "created_at": now,
        }
    if not there:
        add_thread(connection, user, thread_id, now, message)
    elif message is None:
        touch_thread(connection, user, thread_id, now)
    else:
        add_message(connection, message)


def _need(run: RunRecord | None) -> RunRecord:
    assert run is not None, "read in the transaction that saw it"
    return run
