"""What agents keep from one run of a thread to the next: read when a stage starts, written in its last transaction."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.execution.models import RunRef, UserKey
from services.execution.store_sealing import seals_of
from services.execution.tables import memories

__all__ = ["keep_memory", "read_memory"]

_FIELD: Final = "memories.data"
_P: Final = sa.bindparam
_HERE: Final = sa.and_(
    memories.c.user_id == _P("u"), memories.c.thread_id == _P("thread"), memories.c.agent_name == _P("agent")
)
_READ: Final = sa.select(memories.c.run_id, memories.c.data).where(_HERE)
_DROP: Final = memories.delete().where(_HERE)
_ADD: Final = memories.insert()


def keep_memory(
    connection: sa.Connection, ref: RunRef, thread_id: str, agent_name: str, data: bytes, *, now: int
) -> None:
    """Put it in the place of what was there; nothing when it is empty. The caller holds the run's row."""
    if not data:
        return
    # As agent_instance gave it: a database of text takes no NUL, and a key has its bound.
    agent_name = agent_name[:128].replace("\0", "\ufffd")
    connection.execute(_DROP, {"u": ref.user, "thread": thread_id, "agent": agent_name})
    row = {
        "user_id": ref.user,
        "thread_id": thread_id,
        "agent_name": agent_name,
        "run_id": ref.run_id,
        "data": seals_of(connection).seal(_FIELD, ref.user, ref.run_id, data),
        "kept_at": now,
    }
    connection.execute(_ADD, row)


def read_memory(connection: sa.Connection, user: UserKey, thread_id: str, agent_name: str) -> bytes:
    """See ``RunStore.memory``."""
    row = connection.execute(_READ, {"u": user, "thread": thread_id, "agent": agent_name}).first()
    return b"" if row is None else seals_of(connection).open(_FIELD, user, row.run_id, bytes(row.data))
