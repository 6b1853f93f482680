"""What users send wrongly to the packaged agents: SQL that is not one SELECT, paths that lead out, broken files.

Each with a clear error that says what to do; nothing outside the data folder is read, and everything works afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.rest_user import User, new_user
from tests.support.stack import RunningStack, running_stack

_PROBES: Final = Path(__file__).parents[1] / "security" / "probe_agents.py"
_HEADER: Final = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
_TRACES: Final[Mapping[str, bytes]] = {
    "good.csv": (_HEADER + "2023-11-16 18:17:03.98,374,44\n2023-11-16 18:18:04.03,396,109\n").encode(),
    "empty.csv": b"",
    "header.csv": _HEADER.encode(),
    "column.csv": b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,374\n",
    "number.csv": (_HEADER + "2023-11-16 18:17:03,374,44\n2023-11-16 18:17:04,many,44\n").encode(),
    "negative.csv": (_HEADER + "2023-11-16 18:17:03,374,-1\n").encode(),
    "time.csv": (_HEADER + "yesterday,374,44\n").encode(),
    "fields.csv": (_HEADER + "2023-11-16 18:17:03,374\n").encode(),
    "quote.csv": (_HEADER + '"2023-11-16 18:17:03,374,44\n').encode(),
    "binary.csv": b"\x00\xff\xfe\x01" * 100,
    "latin.csv": _HEADER.encode() + b"2023-11-16 18:17:03,374,44,caf\xe9\n",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes with the packaged agents and the probes, and a data folder with traces, most of them broken."""
    folder = tmp_path_factory.mktemp("bad-input")
    data = folder / "data"
    data.mkdir()
    for name, content in _TRACES.items():
        (data / name).write_bytes(content)
    (folder / "secret.csv").write_bytes(_TRACES["good.csv"])
    (data / "link.csv").symlink_to(folder / "secret.csv")
    (data / "folder.csv").mkdir()
    environment = {"LLM_COSTS_DATA_DIR": str(data)}
    with running_stack(folder, agents=["entry-points", str(_PROBES)], environment=environment) as running:
        yield running


@pytest.fixture
async def user(stack: RunningStack) -> AsyncIterator[User]:
    """A user of the test's own."""
    async with new_user(stack) as found:
        yield found


# SQL.

_SQL: Final = (
    "DELETE FROM trace",
    "INSERT INTO trace VALUES (now(), 1, 1)",
    "DROP TABLE trace",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE trace",
    "CREATE TABLE t AS SELECT * FROM trace",
    "COPY trace TO '/tmp/stolen.csv'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT content FROM read_blob('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM 'https://example.com/x.parquet'",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "WITH x AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM x",
    "SELECT getenv('HOME')",
    "SELECT current_setting('home_directory')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM information_schema.tables",
    "ATTACH '/tmp/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "EXPLAIN SELECT 1",
    "SHOW TABLES",
    "CALL pragma_version()",
    "SELECT repeat('x', 2000000000)",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
    "not SQL at all",
    "SELECT nothing_like_it FROM trace",
    "-- nothing",
    "SELECT $1",
)


@pytest.mark.parametrize("sql", _SQL)
async def test_sql_other_than_one_select_over_the_trace(sql: str, user: User) -> None:
    error = await user.failed("QUERY", agent_name="data", params={"question": sql, "trace": "good.csv"})
    assert "SELECT" in error["advice"] or "aggregates" in error["advice"], error
    assert "root:" not in str(error)
    assert not Path("/tmp/stolen.csv").exists()


async def test_one_select_is_answered(user: User) -> None:
    sql = "SELECT sum(ContextTokens) FROM trace"
    status, answer = await user.execute(agent_name="data", params={"question": sql, "trace": "good.csv"})
    assert (status, answer["status"]) == (200, "SUCCEEDED"), answer
    assert answer["result"]["answer"]["rows"] == [[770]]


# Files.


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv",
        "./../secret.csv",
        "/etc/passwd",
        "link.csv",
        "folder.csv",
        "folder.csv/../../secret.csv",
        "missing.csv",
        "sample:../__init__.py",
        "sample:missing.csv",
        "sample:/etc/passwd",
        "file:///etc/passwd",
        "good.csv\x00.txt",
        ".",
        "~/x.csv",
    ],
)
async def test_a_path_that_leaves_the_data_folder_or_names_nothing(path: str, user: User) -> None:
    error = await user.failed("DATA_PATH", agent_name="data", params={"trace": path})
    assert "LLM_COSTS_DATA_DIR" in error["advice"]
    assert str(user.stack.folder) not in str(error), "the folder's place is the operator's"


@pytest.mark.parametrize(
    ("name", "line", "column"),
    [
        ("empty.csv", 1, "TIMESTAMP"),
        ("header.csv", 2, "TIMESTAMP"),
        ("column.csv", 1, "GeneratedTokens"),
        ("number.csv", 3, "ContextTokens"),
        ("negative.csv", 2, "GeneratedTokens"),
        ("time.csv", 2, "TIMESTAMP"),
        ("fields.csv", 2, "GeneratedTokens"),
        ("quote.csv", 2, "TIMESTAMP"),
    ],
)
async def test_a_malformed_csv(name: str, line: int, column: str, user: User) -> None:
    error = await user.failed("MALFORMED_CSV", agent_name="data", params={"trace": name})
    details = error["details"]
    assert (details["file"], details["line"], details["column"]) == (name, line, column)
    assert name in error["message"]
    assert f"line {line}" in error["message"]


@pytest.mark.parametrize("name", ["binary.csv", "latin.csv"])
async def test_a_file_that_is_no_text(name: str, user: User) -> None:
    error = await user.failed("DATA_PATH", agent_name="data", params={"trace": name})
    assert "UTF-8" in error["message"]
