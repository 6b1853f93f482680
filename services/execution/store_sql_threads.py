"""A thread's row and messages within the transactions of runs: what joins it, what is taken back."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from services.execution.models import UserKey
from services.execution.tables import messages, threads

__all__ = ["LAST_SEQ", "add_message", "add_thread", "last_seq", "remove_messages", "touch_thread"]

_P: Final = sa.bindparam
_HERE: Final = sa.and_(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))

# Rows of the first schema, and writes of its processes, know only the count.
LAST_SEQ: Final = sa.case(
    (threads.c.last_seq > threads.c.message_count, threads.c.last_seq), else_=threads.c.message_count
)
_LAST_SEQ: Final = sa.select(LAST_SEQ).where(_HERE)
_ADD: Final = threads.insert()
_TOUCH: Final = threads.update().where(_HERE).values(updated_at=_P("now"))
_GROW: Final = (
    threads.update()
    .where(_HERE)
    .values(updated_at=_P("now"), message_count=threads.c.message_count + 1, last_seq=_P("n"))
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
        connection.execute(_ADD_MESSAGE, message)


def touch_thread(connection: sa.Connection, user: UserKey, thread_id: str, now: int) -> None:
    """Say that something has happened in the thread."""
    connection.execute(_TOUCH, {"u": user, "thread": thread_id, "now": now})


def last_seq(connection: sa.Connection, user: UserKey, thread_id: str) -> int | None:
    """The highest number that a message of the thread ever had; None when there is no such thread."""
    value: int | None = connection.execute(_LAST_SEQ, {"u": user, "thread": thread_id}).scalar()
    return value


def add_message(connection: sa.Connection, message: dict[str, Any]) -> None:
    """Add a message, whose ``seq`` is the one after ``last_seq``, to a thread that is there."""
    here = {"u": message["user_id"], "thread": message["thread_id"]}
    connection.execute(_GROW, {**here, "now": message["created_at"], "n": message["seq"]})
    connection.execute(_ADD_MESSAGE, message)


def remove_messages(connection: sa.Connection, user: UserKey, thread_id: str, run_ids: list[str]) -> None:
    """Take back what these runs have said and were told; their numbers are not given again."""
    here = {"u": user, "thread": thread_id}
    removed = connection.execute(_REMOVE_MESSAGES, {**here, "runs": run_ids}).rowcount
    if removed:
        connection.execute(_SHRINK, {**here, "n": removed})
