"""A thread's row and messages within the transactions of runs: what joins it, what is taken back."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from services.execution.models import UserKey
from services.execution.store_sealing import seals_of
from services.execution.store_sql_returning import TellingUpdate
from services.execution.tables import messages, threads

__all__ = ["LAST_SEQ", "add_message", "add_thread", "remove_messages", "touch_thread"]

_P: Final = sa.bindparam
_HERE: Final = sa.and_(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))

# Rows of the first schema, and writes of its processes, know only the count.
LAST_SEQ: Final = sa.case(
    (threads.c.last_seq > threads.c.message_count, threads.c.last_seq), else_=threads.c.message_count
)
_ADD: Final = threads.insert()
_TOUCH: Final = threads.update().where(_HERE).values(updated_at=_P("now"))
# Numbers are given by the update itself: its lock keeps two that write at once from taking the same.
_GROW: Final = TellingUpdate(
    threads.update()
    .where(_HERE)
    .values(updated_at=_P("now"), message_count=threads.c.message_count + 1, last_seq=LAST_SEQ + 1),
    _HERE,
    threads.c.last_seq,
)
_ADD_MESSAGE: Final = messages.insert()
_REMOVE_MESSAGES: Final = messages.delete().where(
    messages.c.user_id == _P("u"),
    messages.c.thread_id == _P("thread"),
    messages.c.run_id.in_(_P("runs", expanding=True)),
)
_SHRINK: Final = (
    threads.update().where(_HERE).values(last_seq=LAST_SEQ, message_count=threads.c.message_count - _P("n"))
)


def add_thread(
    connection: sa.Connection, user: UserKey, thread_id: str, now: int, message: dict[str, Any] | None
) -> None:
    """Make a thread, with its first message if it has one."""
    count = 0 if message is None else 1
    row = {"user_id": user, "thread_id": thread_id, "created_at": now, "updated_at": now}
    connection.execute(_ADD, {**row, "message_count": count, "last_seq": count})
    if message is not None:
        connection.execute(_ADD_MESSAGE, {**_sealed(connection, message), "seq": 1})


def touch_thread(connection: sa.Connection, user: UserKey, thread_id: str, now: int) -> None:
    """Say that something has happened in the thread."""
    connection.execute(_TOUCH, {"u": user, "thread": thread_id, "now": now})


def add_message(connection: sa.Connection, message: dict[str, Any]) -> bool:
    """Add a message, which gets the next number as ``seq``; False when the thread is gone."""
    here = {"u": message["user_id"], "thread": message["thread_id"]}
    grown = _GROW.run(connection, {**here, "now": message["created_at"]})
    if grown is None:
        return False
    connection.execute(_ADD_MESSAGE, {**_sealed(connection, message), "seq": grown.last_seq})
    return True


def remove_messages(connection: sa.Connection, user: UserKey, thread_id: str, run_ids: list[str]) -> None:
    """Take back what these runs have said and were told; their numbers are not given again."""
    here = {"u": user, "thread": thread_id}
    removed = connection.execute(_REMOVE_MESSAGES, {**here, "runs": run_ids}).rowcount
    if removed:
        connection.execute(_SHRINK, {**here, "n": removed})


def _sealed(connection: sa.Connection, message: dict[str, Any]) -> dict[str, Any]:
    text = seals_of(connection).seal_text("messages.text", message["user_id"], message["run_id"], message["text"])
    return {**message, "text": text}
