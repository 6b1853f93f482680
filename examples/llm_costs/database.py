"""Runs one SELECT over a trace in a DuckDB of its own: in memory, locked, bounded in memory, rows and time.

The rows enter as bound values; from then on nothing of the file system, the network, the process or the
configuration can be reached or changed from SQL. What may be asked at all is ``sql_guard``'s part.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from carrel.errors import ToolTimeoutError
from examples.llm_costs.errors import QueryError, needs_extra
from examples.llm_costs.sql_guard import check, first_line
from examples.llm_costs.traces import Trace

if TYPE_CHECKING:
    import duckdb

__all__ = ["MAX_QUERY_ROWS", "QUERY_TIMEOUT_S", "Query"]

MAX_QUERY_ROWS: Final = 1_000
MAX_COLUMNS: Final = 64
MAX_RESULT_CHARS: Final = 24_576
QUERY_TIMEOUT_S: Final = 5.0
_EXACT: Final = 2**53
_BATCH: Final = 50_000
# Rows become Python's outside DuckDB's memory limit, and no interrupt stops that: a few at a time.
_PORTION: Final = 4
_MAX_PARTS: Final = 128
_CONFIG: Final[Mapping[str, str | bool | int | float | list[str]]] = {
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "max_temp_directory_size": "0B",
    "memory_limit": "256MB",
    "preserve_insertion_order": "true",
    # Otherwise `FROM name` finds Python variables of the caller.
    "python_enable_replacements": "false",
    "temp_directory": "",
    "threads": "2",
    "enable_external_access": "false",
}


class Query:
    """One query over one trace; ``run`` it in a thread, ``cancel`` it from any other."""

    def __init__(self, trace: Trace, sql: str, *, timeout_s: float = QUERY_TIMEOUT_S) -> None:
        self._trace = trace
        self._sql = sql
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._stopped = ""

    def cancel(self, reason: str = "cancelled") -> None:
        """Interrupt the query, or keep it from starting. Harmless when it has ended."""
        with self._lock:
            self._stopped = self._stopped or reason
            if self._connection is not None:
                self._connection.interrupt()

    def run(self) -> dict[str, Any]:
        """``{columns, rows, row_count, truncated}``, values as JSON; at most MAX_QUERY_ROWS rows and MAX_RESULT_CHARS.

        Raises:
            QueryError: The SQL is not allowed, or DuckDB cannot run it.
            ToolTimeoutError: It took longer than the time allowed.
        """
        with needs_extra():
            import duckdb
        with duckdb.connect(":memory:", config=dict(_CONFIG)) as connection:
            _fill(connection, self._trace)
            # It would be printed among what agents print.
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET lock_configuration = true")
            sql = check(connection, self._sql)
            timer = threading.Timer(self._timeout_s, self.cancel, ("timeout",))
            with self._lock:
                self._connection = connection
            timer.start()
            try:
                if self._stopped:
                    raise QueryError("the query was cancelled")
                return self._fetch(connection.execute(sql))
            except duckdb.Error as error:
                raise self._explain(error) from error
            finally:
                timer.cancel()
                with self._lock:
                    self._connection = None

    def _fetch(self, result: duckdb.DuckDBPyConnection) -> dict[str, Any]:
        columns = _columns(result)
        rows: list[list[Any]] = []
        used, truncated = 0, False
        while not truncated and (portion := result.fetchmany(_PORTION)):
            if self._stopped:
                raise self._stop_error()
            for row in portion:
                values = [_json(value) for value in row]
                used += len(str(values))
                if len(rows) == MAX_QUERY_ROWS or used > MAX_RESULT_CHARS:
                    truncated = True
                    break
                rows.append(values)
        if truncated and not rows:
            raise QueryError(
                "the first row of the result is larger than a result may be", advice="ask for fewer values"
            )
        return {"columns": columns, "rows": rows, "row_count": len(rows), "truncated": truncated}

    def _stop_error(self) -> ToolTimeoutError:
        return ToolTimeoutError(
            f"the query took longer than {self._timeout_s:g} s and was stopped"
            if self._stopped == "timeout"
            else "the query was cancelled",
            advice="ask for less: aggregate, filter, or join on fewer rows",
        )

    def _explain(self, error: duckdb.Error) -> Exception:
        import duckdb

        if isinstance(error, duckdb.InterruptException):
            return self._stop_error()
        if isinstance(error, duckdb.OutOfMemoryException):
            return QueryError("the query needs more memory than it may have", advice="aggregate, or filter rows first")
        return QueryError(f"DuckDB cannot run the query: {first_line(error)}")


def _fill(connection: duckdb.DuckDBPyConnection, trace: Trace) -> None:
    connection.execute('CREATE TABLE trace ("TIMESTAMP" TIMESTAMP, "ContextTokens" BIGINT, "GeneratedTokens" BIGINT)')
    for start in range(0, len(trace), _BATCH):
        batch = slice(start, start + _BATCH)
        connection.execute(
            "INSERT INTO trace SELECT make_timestamp(unnest($1::BIGINT[])), unnest($2::BIGINT[]), unnest($3::BIGINT[])",
            [trace.timestamps[batch].tolist(), trace.context[batch].tolist(), trace.generated[batch].tolist()],
        )


def _columns(result: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the result's columns, once it is known that a row of them has no more parts than it may."""
    described = result.description or []
    if len(described) > MAX_COLUMNS:
        raise QueryError(f"the result has {len(described)} columns; {MAX_COLUMNS} are allowed")
    kinds: list[Any] = [column[1] for column in described]
    parts = 0
    # Structs of structs multiply: counted only as far as they may go.
    while kinds and parts <= _MAX_PARTS:
        kind = kinds.pop()
        parts += 1
        if kind.id in {"struct", "list", "array", "map", "union"}:
            kinds.extend(child for _, child in kind.children if not isinstance(child, int))
    if parts > _MAX_PARTS:
        raise QueryError(
            f"a row of the result has more than {_MAX_PARTS} parts", advice="ask for plain columns, and fewer of them"
        )
    return [str(column[0])[:128] for column in described]


def _json(value: object) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        # HUGEINT: more than JSON readers take exactly.
        return value if abs(value) <= _EXACT else str(value)
    if isinstance(value, float | Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_json(item) for item in value]
    return str(value)
