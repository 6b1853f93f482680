"""One read-only SELECT over the trace, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from carrel.errors import ToolTimeoutError
from examples.llm_costs import database, traces
from examples.llm_costs.database import Query
from examples.llm_costs.errors import QueryError
from examples.llm_costs.traces import Trace

_LISTS_OF_LISTS = (
    "select [x, x] a0, " + ", ".join(f"[a{n}, a{n}] a{n + 1}" for n in range(7)) + " from trace t(t, x, y)"
)
_QUANTILES = "[0.1, 0.2, 0.3, 0.5, 0.8, 0.9]"
_QUANTILES_OF_QUANTILES = (
    f"with a as (select quantile_disc(TIMESTAMP, {_QUANTILES}) q from trace), "
    f"b as (select quantile_disc(q, {_QUANTILES}) q from a) select quantile_disc(q, {_QUANTILES}) from b"
)
_STRUCTS_OF_STRUCTS = (
    f"with a as (select {', '.join(f'1 a{n}' for n in range(12))}), "
    f"b as (select {', '.join(f'a b{n}' for n in range(12))} from a) select b from b"
)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return traces.parse(
        "t",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-01-01 00:00:10,100,1\n2024-01-01 00:00:50.5,200,2\n2024-01-01 00:01:00,300,3\n",
    )


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*), sum(ContextTokens), max(generatedtokens) FROM trace", [[3, 600, 3]]),
        (
            "select date_trunc('minute', TIMESTAMP) m, count(*) from trace group by all order by m;",
            [["2024-01-01T00:00:00", 2], ["2024-01-01T00:01:00", 1]],
        ),
        ("with a as (select * from trace) select count(*) from a join trace t using (TIMESTAMP)", [[3]]),
        ("select quantile_cont(ContextTokens, [0.25, 0.5]) from trace", [[[150.0, 200.0]]]),
        ("select ntile(3) over (order by ContextTokens) from trace order by 1 -- done", [[1], [2], [3]]),
        ("from trace select ContextTokens where GeneratedTokens > 2", [[300]]),
        ("select x from range(2) r(x) order by x", [[0], [1]]),
        (
            (
                "select case when ContextTokens > 150 then 'long' else 'short' end, interval 90 second, 1.5, "
                "'nan'::double from trace limit 1"
            ),
            [["short", 90.0, 1.5, None]],
        ),
        ("select sum(170141183460469231731687303715884105727::hugeint)", [["170141183460469231731687303715884105727"]]),
        ("values (null, true, {'a': [1]})", [[None, True, {"a": [1]}]]),
    ],
)  # fmt: skip
def test_select_is_answered_in_json(trace: Trace, sql: str, rows: list[list[object]]) -> None:
    answer = Query(trace, sql).run()
    assert answer["rows"] == rows
    assert (answer["row_count"], answer["truncated"]) == (len(rows), False)
    assert len(answer["columns"]) == len(rows[0])


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", "exactly one statement"),
        ("select 1; select 2", "exactly one statement"),
        ("select 1; drop table trace", "exactly one statement"),
        ("selec 1", "cannot parse"),
        ("insert into trace values ('2024-01-01', 1, 1)", "this is INSERT"),
        ("delete from trace", "this is DELETE"),
        ("create table x as select 1", "this is CREATE"),
        ("drop table trace", "this is DROP"),
        ("copy trace to '/tmp/out.csv'", "this is COPY"),
        ("copy trace from '/etc/passwd'", "this is COPY"),
        ("export database '/tmp/x'", "this is EXPORT"),
        ("attach '/tmp/x.db'", "this is ATTACH"),
        ("install httpfs", "this is LOAD"),
        ("load json", "this is LOAD"),
        ("pragma database_list", "this is PRAGMA"),
        ("call pragma_version()", "this is CALL"),
        ("set threads = 8", "this is"),
        ("explain analyze select 1", "this is EXPLAIN"),
        ("prepare p as select 1", "this is PREPARE"),
        ("begin", "this is TRANSACTION"),
        ("show tables", "SHOW, DESCRIBE or SUMMARIZE"),
        ("describe trace", "SHOW, DESCRIBE or SUMMARIZE"),
        ("with gone as (delete from trace returning *) select * from gone", "DELETE inside"),
        ("with more as (insert into trace values ('2024-01-01', 1, 1)) select 1", "INSERT inside"),
        ("select ?", "must not have parameters"),
        ("select * from read_csv('/etc/passwd')", "table function read_csv"),
        ("select (select content from read_text('/etc/passwd'))", "table function read_text"),
        ("select * from glob('/etc/*')", "table function glob"),
        ("select * from query('drop table trace')", "table function query"),
        ("select * from query_table('trace')", "table function query_table"),
        ("select * from duckdb_settings()", "table function duckdb_settings"),
        ("select * from sniff_csv('/etc/passwd')", "table function sniff_csv"),
        ("select * from '/etc/passwd'", "only the table trace"),
        ("select * from trace, '/etc/hosts.csv'", "only the table trace"),
        ("select * from information_schema.tables", "only the table trace"),
        ("select * from duckdb_tables", "only the table trace"),
        ("select * from memory.main.trace", "only the table trace"),
        ("select * from trace_of_python", "only the table trace"),
        ("with duckdb_tables as (select 1) select * from duckdb_tables", "WITH may not use the name"),
        ("select current_setting('temp_directory')", "function current_setting"),
        ("select getenv('HOME')", "function getenv"),
        ("select repeat('x', 1000000000)", "function repeat"),
        ("select lpad('x', 1000000000, 'x')", "function lpad"),
        ("select range(1000000000)", "function range"),
        ("select list(ContextTokens) over () from trace", "function list"),
        ("select sum(ContextTokens) from trace order by string_agg('x')", "function string_agg"),
        ("select ContextTokens from trace where nextval('s') > 0", "function nextval"),
        ("with recursive t(n) as (select 1 union all select n + 1 from t) select * from t", "recursive WITH"),
        ("pivot trace on ContextTokens using count(*)", "only SELECT"),
        ("unpivot trace on ContextTokens into name n value v", "PIVOT"),
        ("select columns(c -> true) from trace", "not allowed"),
        ("select nothing from trace", 'column "nothing" not found'),
        ("select " + "(select " * 250 + "1" + ")" * 250, ""),
        ("select " + "x" * 10_001, "10,000 are allowed"),
        (f"select strftime(TIMESTAMP, '{'%c' * 129}') from trace", "longer than 256 characters"),
        (f"select [{', '.join(['ContextTokens'] * 65)}] from trace", "64 are allowed"),
        (_LISTS_OF_LISTS, "too large lists"),
        (_QUANTILES_OF_QUANTILES, "too large lists"),
        ("select max(TIMESTAMP, 100000) from trace", "more arguments"),
        ("select arg_min(TIMESTAMP, ContextTokens, 100000) from trace", "more arguments"),
        ("select 1 from " + ", ".join(f"trace t{n}" for n in range(17)), "16 are allowed"),
        (_STRUCTS_OF_STRUCTS, "more than 128 parts"),
        ("select " + ", ".join("ContextTokens" for _ in range(65)) + " from trace", "64 are allowed"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(trace: Trace, sql: str, says: str) -> None:
    with pytest.raises(QueryError) as caught:
        Query(trace, sql).run()
    assert says in caught.value.message
    assert caught.value.advice


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "copy trace to '/tmp/llm_costs_out.csv'",
        "attach '/tmp/llm_costs.db'",
        "install httpfs",
        "set threads = 1",
        "set enable_external_access = true",
        "select * from trace_of_python",
    ],
)
def test_connection_is_locked_even_without_the_guard(trace: Trace, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_of_python = {"a": [1]}
    monkeypatch.setattr(database, "check", lambda connection, query: query)
    with pytest.raises(QueryError, match="DuckDB cannot run the query"):
        Query(trace, sql).run()
    assert trace_of_python
    assert not Path("/tmp/llm_costs_out.csv").exists()


def test_quantiles_of_several_columns_are_no_large_value(trace: Trace) -> None:
    several = ", ".join(
        f"quantile_cont(ContextTokens + {n}, [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])" for n in range(6)
    )
    assert len(Query(trace, f"select {several}, {{'least': min(ContextTokens)}} from trace").run()["rows"][0]) == 7


# Peak memory is the process's: a process of its own, whose peak is nobody else's.
_PEAK = """
import re, resource, sys
from pathlib import Path
from examples.llm_costs import database, traces
from examples.llm_costs.errors import QueryError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
lines = "".join(f"2024-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02},{n + 1},1\\n" for n in range(2000))
trace = traces.parse("t", "TIMESTAMP,ContextTokens,GeneratedTokens\\n" + lines)
try:
    database.Query(trace, sys.argv[1], timeout_s=60).run()
except QueryError:
    pass
# Not ru_maxrss, which a process inherits from the one that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""
_ROOT = Path(__file__).parents[3]
_LONG = f"with x as (select strftime(TIMESTAMP, '{'%c' * 128}') s from trace)"


@pytest.mark.parametrize(
    "sql",
    [
        f"with x as (select strftime(TIMESTAMP, '{'%c' * 4000}') s from trace) select {', '.join(['s'] * 16)} from x",
        f"{_LONG} select {', '.join(['s'] * 64)} from x",
        f"{_LONG} select [{', '.join(['s'] * 64)}] from x",
        f"{_LONG} select {', '.join(['if(length(s) > 0, s, null)'] * 64)} from x",
    ],
    ids=["a long text", "columns", "a list", "expressions"],
)
def test_memory_of_a_query_and_its_result_is_bounded(sql: str) -> None:
    command = [sys.executable, "-c", _PEAK, sql]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=_ROOT)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 600, f"{ended.stdout} MB"


def test_time_runs_out_while_the_result_is_being_read(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Query(trace, "select x from range(500) r(x)")
    read: list[object] = []

    def slow(value: object) -> object:
        read.append(value)
        query.cancel("timeout")
        return value

    monkeypatch.setattr(database, "_json", slow)
    with pytest.raises(ToolTimeoutError):
        query.run()
    assert len(read) < 20


def test_rows_are_bounded(trace: Trace) -> None:
    answer = Query(trace, "select x from range(100000000) r(x)").run()
    assert (answer["row_count"], answer["truncated"]) == (database.MAX_QUERY_ROWS, True)


def test_size_of_the_result_is_bounded(trace: Trace) -> None:
    row = ", ".join(f"strftime(TIMESTAMP, '{'%c' * 15}')" for _ in range(20))
    answer = Query(trace, f"select {row} from trace, range(100)").run()
    assert answer["truncated"]
    assert 0 < len(str(answer["rows"])) < 1.5 * database.MAX_RESULT_CHARS
    long = f"strftime(TIMESTAMP, '{'%c' * 128}')"
    with pytest.raises(QueryError, match="first row of the result is larger"):
        Query(trace, f"select {', '.join([long] * 16)} from trace").run()


def test_query_over_its_time_is_stopped(trace: Trace) -> None:
    began = time.monotonic()
    with pytest.raises(ToolTimeoutError, match=r"longer than 0\.2 s"):
        Query(trace, "select count(*) from range(100000000) a, range(1000000) b", timeout_s=0.2).run()
    assert time.monotonic() - began < 5


def test_query_over_its_memory_is_stopped(trace: Trace) -> None:
    with pytest.raises(QueryError, match="more memory"):
        Query(
            trace, "select count(*) from (select x, count(*) from range(100000000) r(x) group by x)", timeout_s=30
        ).run()


def test_cancelled_query_ends_at_once(trace: Trace) -> None:
    query = Query(trace, "select count(*) from range(100000000) a, range(1000000) b", timeout_s=30)
    timer = threading.Timer(0.2, query.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(ToolTimeoutError, match="cancelled"):
        query.run()
    timer.join()
    assert time.monotonic() - began < 5


def test_query_cancelled_before_it_began_does_not_run(trace: Trace) -> None:
    query = Query(trace, "select 1")
    query.cancel()
    with pytest.raises(QueryError, match="cancelled"):
        query.run()
    query.cancel()


def test_each_query_has_a_database_of_its_own(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "check", lambda connection, query: query)
    Query(trace, "delete from trace").run()
    assert Query(trace, "select count(*) from trace").run()["rows"] == [[3]]
