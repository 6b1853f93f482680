"""Reading as operations over one snapshot each: runs, threads, engines, audit; listings by keyset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    EngineRecord,
    InputRecord,
    JournalItem,
    MessageRecord,
    OutboxEvent,
    Page,
    RunRecord,
    RunState,
    ThreadRecord,
    UserKey,
)
from services.execution.models_steps import Span
from services.execution.store import PageKey
from services.execution.store_sealing import seals_of
from services.execution.store_sql_rows import (
    artifact_of,
    audit_of,
    engine_of,
    input_of,
    journal_of,
    message_of,
    outbox_of,
    run_of,
)
from services.execution.tables import (
    artifacts,
    audit,
    engines,
    inputs,
    journal,
    messages,
    outbox,
    runs,
    stages,
    threads,
)

__all__ = [
    "list_audit",
    "list_engines",
    "list_runs",
    "list_threads",
    "read_answers",
    "read_artifact",
    "read_engine",
    "read_history",
    "read_input",
    "read_journal",
    "read_messages",
    "read_outbox",
    "read_run",
    "read_thread",
    "run_from",
]

_T = TypeVar("_T")
_P: Final = sa.bindparam
# Of what users and agents wrote, in one page: with the rest of a page it fits into a message of 4 MiB.
_PAGE_BYTES: Final = 3 * 512 * 1024
_LIVE: Final = (RunState.QUEUED, RunState.RUNNING, RunState.WAITING)

_RUN: Final = sa.select(runs).where(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
_INPUT: Final = sa.select(inputs).where(
    inputs.c.user_id == _P("u"), inputs.c.run_id == _P("run"), inputs.c.input_id == _P("input")
)
_ANSWERS: Final = (
    sa.select(inputs)
    .where(
        inputs.c.user_id == _P("u"),
        inputs.c.run_id == _P("run"),
        inputs.c.stage_index == _P("i"),
        inputs.c.answered_at.is_not(None),
    )
    .order_by(inputs.c.number)
)
_STAGES: Final = (
    sa.select(stages).where(stages.c.user_id == _P("u"), stages.c.run_id == _P("run")).order_by(stages.c.stage_index)
)
_ARTIFACTS: Final = (
    sa.select(artifacts)
    .where(artifacts.c.user_id == _P("u"), artifacts.c.run_id == _P("run"))
    .order_by(artifacts.c.created_at, artifacts.c.name)
)
_OUTBOX: Final = (
    sa.select(outbox).where(outbox.c.user_id == _P("u"), outbox.c.run_id == _P("run")).order_by(outbox.c.number)
)
_QUESTION_BYTES: Final = (
    sa.select(
        sa.func.length(inputs.c.prompt) * 4 + sa.func.length(inputs.c.schema_json) + sa.func.length(inputs.c.arguments)
    )
    .where(
        inputs.c.user_id == runs.c.user_id,
        inputs.c.run_id == runs.c.run_id,
        inputs.c.input_id == runs.c.waiting_input,
    )
    .correlate(runs)
    .scalar_subquery()
    .label("question_bytes")
)
_LIVE_RUN: Final = (
    sa.select(runs.c.run_id)
    .where(runs.c.user_id == threads.c.user_id, runs.c.thread_id == threads.c.thread_id, runs.c.state.in_(_LIVE))
    .order_by(runs.c.place)
    .limit(1)
    .correlate(threads)
    .scalar_subquery()
    .label("live")
)


def read_run(connection: sa.Connection, user: UserKey, run_id: str) -> RunRecord | None:
    """See ``RunStore.get_run``."""
    key = {"u": user, "run": run_id}
    row = connection.execute(_RUN, key).first()
    return None if row is None else run_from(connection, row)


def run_from(connection: sa.Connection, row: Any) -> RunRecord:
    """The run of a row of ``runs``, with all that belongs to it."""
    key = {"u": row.user_id, "run": row.run_id}
    stages_of, artifacts_of = connection.execute(_STAGES, key), connection.execute(_ARTIFACTS, key)
    return run_of(
        row,
        stages_of,
        artifacts_of,
        seals=seals_of(connection),
        waiting_for=read_input(connection, row.user_id, row.run_id, row.waiting_input),
    )


def read_input(connection: sa.Connection, user: UserKey, run_id: str, input_id: str) -> InputRecord | None:
    """A question of a run, if there is one of that id."""
    if not input_id:
        return None
    row = connection.execute(_INPUT, {"u": user, "run": run_id, "input": input_id}).first()
    return None if row is None else input_of(row, seals_of(connection))


def read_answers(connection: sa.Connection, user: UserKey, run_id: str, stage: int) -> tuple[InputRecord, ...]:
    """See ``RunStore.answers``."""
    seals = seals_of(connection)
    return tuple(input_of(row, seals) for row in connection.execute(_ANSWERS, {"u": user, "run": run_id, "i": stage}))


def read_outbox(connection: sa.Connection, user: UserKey, run_id: str) -> tuple[OutboxEvent, ...]:
    """See ``RunStore.outbox``."""
    seals = seals_of(connection)
    return tuple(outbox_of(row, seals) for row in connection.execute(_OUTBOX, {"u": user, "run": run_id}))


def list_runs(
    connection: sa.Connection,
    user: UserKey,
    thread_id: str,
    states: frozenset[RunState],
    limit: int,
    after: PageKey | None,
) -> Page[RunRecord]:
    """See ``RunStore.list_runs``."""
    # What users wrote and agents answered may be megabytes for each run.
    columns = [column for column in runs.c if column.name not in {"result", "message", "params"}]
    left_out = [sa.null().label("result"), sa.literal("").label("message"), sa.literal(b"").label("params")]
    query = sa.select(*columns, *left_out).add_columns(_QUESTION_BYTES).where(runs.c.user_id == user)
    if thread_id:
        query = query.where(runs.c.thread_id == thread_id)
    if states:
        query = query.where(runs.c.state.in_(sorted(states)))
    key = (runs.c.created_at, runs.c.run_id)
    rows, more = _page(connection, query, key, limit, after, descending=True, size=_listed_bytes)
    staged: dict[str, list[Any]] = defaultdict(list)
    if rows:
        columns = [column for column in stages.c if column.name != "result"]
        found = sa.select(*columns, sa.null().label("result")).where(
            stages.c.user_id == user, stages.c.run_id.in_([row.run_id for row in rows])
        )
        for stage in connection.execute(found.order_by(stages.c.stage_index)):
            staged[stage.run_id].append(stage)
    asked = _open_questions(connection, user, rows)
    seals = seals_of(connection)
    return Page(
        tuple(run_of(row, staged[row.run_id], seals=seals, waiting_for=asked.get(row.run_id)) for row in rows),
        (rows[-1].created_at, rows[-1].run_id) if more else None,
    )


def read_history(
    connection: sa.Connection, user: UserKey, thread_id: str, before_run: str, limit: int
) -> tuple[MessageRecord, ...]:
    """See ``RunStore.history``."""
    query = (
        sa.select(messages)
        .where(messages.c.user_id == user, messages.c.thread_id == thread_id, messages.c.run_id != before_run)
        .order_by(messages.c.seq.desc())
        .limit(limit)
    )
    seals = seals_of(connection)
    return tuple(message_of(row, seals) for row in reversed(connection.execute(query).all()))


def list_threads(connection: sa.Connection, user: UserKey, limit: int, after: PageKey | None) -> Page[ThreadRecord]:
    """See ``RunStore.list_threads``."""
    query = sa.select(threads, _LIVE_RUN).where(threads.c.user_id == user)
    rows, more = _page(connection, query, (threads.c.updated_at, threads.c.thread_id), limit, after, descending=True)
    return Page(tuple(map(_thread, rows)), (rows[-1].updated_at, rows[-1].thread_id) if more else None)


def read_thread(connection: sa.Connection, user: UserKey, thread_id: str) -> ThreadRecord | None:
    """See ``RunStore.get_thread``."""
    query = sa.select(threads, _LIVE_RUN).where(threads.c.user_id == user, threads.c.thread_id == thread_id)
    row = connection.execute(query).first()
    return None if row is None else _thread(row)


def read_messages(
    connection: sa.Connection, user: UserKey, thread_id: str, limit: int, after: PageKey | None
) -> Page[MessageRecord]:
    """See ``RunStore.messages``."""
    query = sa.select(messages).where(messages.c.user_id == user, messages.c.thread_id == thread_id)
    rows, more = _page(connection, query, (messages.c.seq,), limit, after, size=lambda row: len(row.text.encode()))
    seals = seals_of(connection)
    return Page(tuple(message_of(row, seals) for row in rows), (rows[-1].seq,) if more else None)


def read_engine(connection: sa.Connection, user: UserKey, engine_id: str) -> EngineRecord | None:
    """See ``RunStore.get_engine``."""
    query = sa.select(engines).where(engines.c.user_id == user, engines.c.engine_id == engine_id)
    row = connection.execute(query).first()
    return None if row is None else engine_of(row)


def list_engines(
    connection: sa.Connection, user: UserKey | None, limit: int, after: PageKey | None, now: int
) -> Page[EngineRecord]:
    """See ``RunStore.list_engines``."""
    query = sa.select(engines).where(sa.or_(engines.c.run_id != "", engines.c.expires_at > now))
    if user is not None:
        query = query.where(engines.c.user_id == user)
    key = (engines.c.user_id, engines.c.engine_id)
    return _listing(connection, query, key, limit, after, engine_of)


def read_artifact(connection: sa.Connection, user: UserKey, run_id: str, name: str) -> ArtifactRecord | None:
    """See ``RunStore.get_artifact``."""
    query = sa.select(artifacts).where(
        artifacts.c.user_id == user, artifacts.c.run_id == run_id, artifacts.c.name == name
    )
    row = connection.execute(query).first()
    return None if row is None else artifact_of(row)


def read_journal(connection: sa.Connection, user: UserKey, run_id: str, stage: int) -> tuple[JournalItem, ...]:
    """See ``RunStore.journal``."""
    query = (
        sa.select(journal)
        .where(journal.c.user_id == user, journal.c.run_id == run_id, journal.c.stage_index == stage)
        .order_by(journal.c.number)
    )
    seals = seals_of(connection)
    return tuple(journal_of(row, seals) for row in connection.execute(query))


def list_audit(
    connection: sa.Connection, user: UserKey | None, run_id: str, limit: int, after: PageKey | None, span: Span
) -> Page[AuditEntry]:
    """See ``RunStore.list_audit``."""
    query = sa.select(audit)
    if user is not None:
        query = query.where(audit.c.user_id == user)
    if run_id:
        query = query.where(audit.c.run_id == run_id)
    if span.since:
        query = query.where(audit.c.started_at >= span.since)
    if span.until:
        query = query.where(audit.c.started_at < span.until)
    key = (audit.c.started_at, audit.c.user_id, audit.c.record_id)
    page = _listing(connection, query, key, limit, after, audit_of, descending=not span.oldest_first)
    if span.oldest_first and page.items:
        last = page.items[-1]
        return Page(page.items, (last.started_at, last.user, last.record_id))
    return page


def _listed_bytes(row: Any) -> int:
    return len(row.error or b"") + (row.question_bytes or 0)


def _open_questions(connection: sa.Connection, user: UserKey, rows: Sequence[Any]) -> dict[str, InputRecord]:
    waiting = [(row.run_id, row.waiting_input) for row in rows if row.waiting_input]
    if not waiting:
        return {}
    query = sa.select(inputs).where(
        inputs.c.user_id == user, sa.tuple_(inputs.c.run_id, inputs.c.input_id).in_(waiting)
    )
    seals = seals_of(connection)
    return {row.run_id: input_of(row, seals) for row in connection.execute(query)}


def _thread(row: Any) -> ThreadRecord:
    return ThreadRecord(row.thread_id, row.created_at, row.updated_at, row.message_count, row.live or "")


def _listing(
    connection: sa.Connection,
    query: sa.Select[Any],
    key: Sequence[sa.Column[Any]],
    limit: int,
    after: PageKey | None,
    make: Callable[[Any], _T],
    *,
    descending: bool = False,
) -> Page[_T]:
    rows, more = _page(connection, query, key, limit, after, descending=descending)
    last = tuple(getattr(rows[-1], column.name) for column in key) if more else None
    return Page(tuple(map(make, rows)), last)


def _page(
    connection: sa.Connection,
    query: sa.Select[Any],
    key: Sequence[sa.Column[Any]],
    limit: int,
    after: PageKey | None,
    *,
    descending: bool = False,
    size: Callable[[Any], int] = lambda _row: 0,
) -> tuple[list[Any], bool]:
    """The rows of a page, at least one if there is one, and whether there are more."""
    if after is not None:
        bound, place = sa.tuple_(*key), sa.tuple_(*(sa.literal(value) for value in after))
        query = query.where(bound < place if descending else bound > place)
    order = [column.desc() if descending else column.asc() for column in key]
    rows: list[Any] = []
    room = _PAGE_BYTES
    with connection.execute(query.order_by(*order).limit(limit + 1)) as found:
        for row in found:
            room -= size(row)
            if len(rows) == limit or (rows and room < 0):
                return rows, True
            rows.append(row)
    return rows, False
