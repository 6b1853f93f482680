"""What agents keep from one run of a thread to the next: read when a stage starts, written when one completes.

A row is of the run that kept it, and counts once that run has succeeded: until then, and in a run that ends otherwise,
the thread's earlier one does. So one whose run is gone with its thread never counts, whoever deleted the thread.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from carrel.errors import QuotaError
from services.execution.models import Micros, RunRef, RunState, UserKey
from services.execution.models_steps import Kept
from services.execution.store import PageKey
from services.execution.store_sealing import seals_of
from services.execution.tables import memories, runs

__all__ = ["bound_to", "expire_memories", "keep_memory", "read_memory", "settle_memories"]

_FIELD: Final = "memories.data"
_SLICE: Final = 1000
_P: Final = sa.bindparam
_HERE: Final = sa.and_(
    memories.c.user_id == _P("u"), memories.c.thread_id == _P("thread"), memories.c.agent_name == _P("agent")
)
_ITS_RUN: Final = sa.and_(
    runs.c.user_id == memories.c.user_id,
    runs.c.run_id == memories.c.run_id,
    runs.c.thread_id == memories.c.thread_id,
)
_COUNTS: Final = sa.select(sa.literal(1)).where(_ITS_RUN, runs.c.outcome == RunState.SUCCEEDED).exists()
_MAY_COUNT: Final = (
    sa.select(sa.literal(1))
    .where(_ITS_RUN, sa.or_(runs.c.outcome.is_(None), runs.c.outcome == RunState.SUCCEEDED))
    .exists()
)
# There are two where an older version has ended the later run, which leaves the earlier one's.
_READ: Final = (
    sa.select(memories.c.run_id, memories.c.data)
    .where(_HERE, _COUNTS)
    .order_by(memories.c.kept_at.desc(), memories.c.run_id)
    .limit(1)
)
_OTHER_BYTES: Final = sa.select(sa.func.coalesce(sa.func.sum(memories.c.size), 0)).where(
    memories.c.user_id == _P("u"),
    sa.not_(sa.and_(memories.c.thread_id == _P("thread"), memories.c.agent_name == _P("agent"))),
)
_DROP_LOST: Final = memories.delete().where(_HERE, sa.or_(memories.c.run_id == _P("run"), sa.not_(_COUNTS)))
_ADD: Final = memories.insert()
_OF_RUN: Final = sa.and_(memories.c.user_id == _P("u"), memories.c.run_id == _P("run"))
_DROP_OF_RUN: Final = memories.delete().where(_OF_RUN)
_of_run = memories.alias("of_run")
_DROP_FORMER: Final = memories.delete().where(
    memories.c.user_id == _P("u"),
    memories.c.thread_id == _P("thread"),
    memories.c.run_id != _P("run"),
    memories.c.agent_name.in_(
        sa.select(_of_run.c.agent_name).where(_of_run.c.user_id == _P("u"), _of_run.c.run_id == _P("run"))
    ),
)
_KEY: Final = (memories.c.user_id, memories.c.run_id, memories.c.agent_name)
_EXPIRE: Final = memories.delete().where(
    memories.c.user_id == _P("u"),
    memories.c.run_id == _P("run"),
    memories.c.agent_name == _P("agent"),
    memories.c.kept_at == _P("kept"),
)


def bound_to(run_id: str, thread_id: str, agent_name: str) -> str:
    """What a value is sealed to beside its user and field, so that it opens in no other thread and for no other agent.

    No id has a NUL in it.
    """
    return f"{run_id}\0{thread_id}\0{agent_name}"


def keep_memory(connection: sa.Connection, ref: RunRef, thread_id: str, kept: Kept, *, now: Micros) -> None:
    """Keep it for when the run has succeeded. The caller holds the run's row.

    Raises:
        QuotaError: All that the user's agents keep would be over ``kept.quota`` bytes.
    """
    agent, size = kept.agent_name, len(kept.data)
    here = {"u": ref.user, "thread": thread_id, "agent": agent}
    stored = int(connection.execute(_OTHER_BYTES, here).scalar_one())
    if stored + size > kept.quota:
        raise QuotaError(
            f"what agents keep in your threads would take {stored + size} bytes; {kept.quota} are allowed",
            advice="delete threads that are no longer needed, or let the agent keep less",
            agent_name=agent,
            limit="memory_quota_per_user",
            limit_value=kept.quota,
            use=stored,
        )
    connection.execute(_DROP_LOST, {**here, "run": ref.run_id})
    row = {
        "user_id": ref.user,
        "run_id": ref.run_id,
        "agent_name": agent,
        "thread_id": thread_id,
        "size": size,
        "kept_at": now,
        "data": seals_of(connection).seal(_FIELD, ref.user, bound_to(ref.run_id, thread_id, agent), kept.data),
    }
    connection.execute(_ADD, row)


def settle_memories(connection: sa.Connection, ref: RunRef, thread_id: str, *, succeeded: bool) -> None:
    """The run has ended: what it kept takes the place of what was there, or goes."""
    key = {"u": ref.user, "run": ref.run_id}
    if succeeded:
        connection.execute(_DROP_FORMER, {**key, "thread": thread_id})
    else:
        connection.execute(_DROP_OF_RUN, key)


def read_memory(connection: sa.Connection, user: UserKey, thread_id: str, agent_name: str) -> bytes:
    """See ``RunStore.memory``."""
    row = connection.execute(_READ, {"u": user, "thread": thread_id, "agent": agent_name}).first()
    if row is None:
        return b""
    return seals_of(connection).open(_FIELD, user, bound_to(row.run_id, thread_id, agent_name), bytes(row.data))


def expire_memories(connection: sa.Connection, before: Micros, after: PageKey | None) -> PageKey | None:
    """See ``RunStore.expire_memories``."""
    query = sa.select(*_KEY, memories.c.kept_at, _MAY_COUNT.label("may_count")).order_by(*_KEY).limit(_SLICE)
    if after is not None:
        query = query.where(sa.tuple_(*_KEY) > sa.tuple_(*(sa.literal(value) for value in after)))
    rows = connection.execute(query).all()
    gone = [
        {"u": row.user_id, "run": row.run_id, "agent": row.agent_name, "kept": row.kept_at}
        for row in rows
        if row.kept_at < before or not row.may_count
    ]
    if gone:
        connection.execute(_EXPIRE, gone)
    return (rows[-1].user_id, rows[-1].run_id, rows[-1].agent_name) if len(rows) == _SLICE else None
