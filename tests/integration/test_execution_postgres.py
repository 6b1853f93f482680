"""execution as its app builds it on a PostgreSQL database: settings, artifacts, schema, what it refuses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from carrel.cli.state import StateFolder
from carrel.errors import StartupError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from servicekit.settings import load_settings
from services.execution.config import ExecutionSettings
from services.execution.config_store import PostgresAddress
from services.execution.migrations import HEAD
from services.execution.store_sql_postgres_open import migrate_postgres, open_postgres_store
from tests.support.execution import TERMINAL, Attempt, Up, World, answer, result, running_execution
from tests.support.identity import session_context
from tests.support.postgres import GUARDED, PASSWORD, PostgresServer, run_apart, with_password
from tests.support.stack import run_carrel

pytestmark = pytest.mark.container


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """An empty database."""
    name = await postgres.create()
    yield name
    await postgres.drop(name)


async def test_runs_and_artifacts_are_in_the_database_alone(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096

    async def stores(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
        chunk = ai.ArtifactChunk(
            upload_id="u1", name="table.bin", media_type="application/x-test", data=content, last=True
        )
        yield Up(artifact_chunk=chunk)
        reply = await attempt.messages.get()
        assert reply.artifact_stored.artifact.size == len(content)
        yield result({"rows": 3})

    async with running_execution(tmp_path / "a", store_url=postgres.url(database)) as world:
        world.agents.scripts["data"] = stores
        run_id = (await world.execute()).run.run_id
        assert (await world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert world.emitter.kinds(run_id) == ["run_accepted", "run_completed"]
    assert not (tmp_path / "a" / "data").exists()
    # Another process, of another machine for all it knows.
    async with running_execution(tmp_path / "b", store_url=postgres.url(database)) as world:
        run = await world.run(run_id)
        assert run.state in TERMINAL
        assert await download(world, run_id, "table.bin") == content
        request = pb.DeleteThreadRequest(context=session_context(), thread_id=run.thread_id)
        assert (await world.stub.DeleteThread(request, timeout=5.0)).deleted
    assert await postgres.aexecute("SELECT * FROM artifact_bytes", database) == []


async def download(world: World, run_id: str, name: str) -> bytes:
    request = pb.GetArtifactRequest(context=session_context(), run_id=run_id, name=name)
    return b"".join([part.data async for part in world.stub.GetArtifact(request, timeout=10.0)])


async def test_password_comes_from_a_file_and_is_in_no_message(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    if not hasattr(postgres, "kill"):
        pytest.skip("the server is not ours, so it has no role with a password of ours")
    url, file = postgres.url(database, user=GUARDED), tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    async with running_execution(tmp_path, store_url=url, store_password_file=file) as world:
        world.agents.scripts["data"] = answer({})
        assert (await world.ended((await world.execute()).run.run_id)).state == pb.RUN_STATE_SUCCEEDED
    await (await open_postgres_store(PostgresAddress(with_password(url, PASSWORD)), migrate=False)).close()
    with pytest.raises(StartupError, match="password file") as raised:
        await open_postgres_store(PostgresAddress(url, tmp_path / "none"), migrate=True)
    assert "CARREL_EXECUTION_STORE_PASSWORD_FILE" in raised.value.advice
    file.write_text("Geheim-1")
    for address in (PostgresAddress(url, file), PostgresAddress(with_password(url, "Geheim-1"))):
        with pytest.raises(StartupError) as raised:
            await open_postgres_store(address, migrate=True)
        assert "password" in raised.value.message
        assert "CARREL_EXECUTION_STORE_PASSWORD_FILE" in raised.value.advice
        told = f"{raised.value!r} {raised.value.to_dict()} {raised.value.__cause__!r} {address!r}"
        assert "Geheim" not in told


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://u:Geheim@h/db", "postgresql://"),
        ("postgresql:///db", "no host"),
        ("postgresql://u:Geheim@h", "no database"),
        ("postgresql://u:Geheim@h/a/b", "no database"),
    ],
)
def test_wrong_url_is_told_without_its_password(url: str, problem: str) -> None:
    with pytest.raises(StartupError) as raised:
        load_settings(ExecutionSettings, "execution", {"CARREL_EXECUTION_STORE_URL": url})
    told = f"{raised.value!r} {raised.value.advice} {raised.value.to_dict()}"
    assert problem in told
    assert "Geheim" not in told


async def test_nobody_there_and_no_such_database_stop_the_start_with_advice(
    postgres: PostgresServer, free_port: Any
) -> None:
    away = PostgresAddress(f"postgresql://postgres@127.0.0.1:{free_port()}/runs")
    with pytest.raises(StartupError, match="cannot be used") as raised:
        await open_postgres_store(away, migrate=True)
    assert "up" in raised.value.advice
    with pytest.raises(StartupError, match="does not exist") as raised:
        await open_postgres_store(PostgresAddress(postgres.url("not_there")), migrate=True)
    assert "CARREL_EXECUTION_STORE_URL" in raised.value.advice


async def test_copies_that_start_at_once_make_the_schema_once(postgres: PostgresServer, database: str) -> None:
    address = PostgresAddress(postgres.url(database))
    stores = await asyncio.gather(*(open_postgres_store(address, migrate=True) for _ in range(4)))
    assert len({store.owner for store in stores}) == 4
    await asyncio.gather(*(store.close() for store in stores))
    assert await asyncio.gather(*(migrate_postgres(address) for _ in range(3))) == [HEAD] * 3


async def test_old_schema_is_migrated_only_where_that_is_allowed_and_a_newer_one_refused(
    postgres: PostgresServer, database: str
) -> None:
    address = PostgresAddress(postgres.url(database))
    with pytest.raises(StartupError, match="schema") as raised:
        await open_postgres_store(address, migrate=False)
    assert "carrel migrate" in raised.value.advice
    assert await migrate_postgres(address, "0001") == "0001"
    await (await open_postgres_store(address, migrate=True)).close()
    await postgres.aexecute("UPDATE alembic_version SET version_num = '9999'", database)
    for migrate in (True, False):
        with pytest.raises(StartupError, match="newer version"):
            await open_postgres_store(address, migrate=migrate)
    with pytest.raises(StartupError, match="newer version"):
        await migrate_postgres(address)


def test_migrate_command_brings_the_database_up_to_date_without_a_folder(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    name = run_apart(postgres.create())
    environment = {"CARREL_EXECUTION_STORE_URL": with_password(postgres.url(name), "Geheim-1")}
    try:
        for _ in range(2):
            done = run_carrel("migrate", "--state", "none", cwd=tmp_path, environment=environment)
            assert done.returncode == 0, done.stderr
            assert f"/{name} is at version {HEAD}" in done.stdout
            assert "bridge" in done.stdout
            assert "no state folder" in done.stdout
            assert "Geheim" not in done.stdout + done.stderr
        assert not (tmp_path / "none").exists()
        shown = run_carrel("config", "execution", cwd=tmp_path, environment=environment)
        assert "CARREL_EXECUTION_STORE_URL" in shown.stdout
        assert "Geheim" not in shown.stdout + shown.stderr
    finally:
        run_apart(postgres.drop(name))


def test_migrate_command_takes_the_database_as_an_option_and_a_stack_may_run_meanwhile(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    name = run_apart(postgres.create())
    url = with_password(postgres.url(name), "Geheim-1")
    state = StateFolder(tmp_path / "s")
    state.prepare()
    try:
        with state.locked():
            state.write_stack({"url": "http://127.0.0.1:1", "supervisor": os.getpid()})
            done = run_carrel("migrate", "--state", "s", "--postgres", url, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert f"/{name} is at version {HEAD}" in done.stdout
            assert "a stack runs in" in done.stdout
            assert not (tmp_path / "s" / "bridge").exists()
            assert state.running() is not None
        done = run_carrel("migrate", "--state", "s", cwd=tmp_path, environment={"CARREL_UP_POSTGRES": url})
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "s" / "bridge" / "events.db").is_file()
        assert not list((tmp_path / "s").glob("*/*.sqlite3"))
        both = ("--postgres", url, "--redis", "redis://127.0.0.1:1")
        done = run_carrel("migrate", "--state", "none", *both, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "no state folder" not in done.stdout
    finally:
        run_apart(postgres.drop(name))
