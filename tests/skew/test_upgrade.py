"""Upgrades and steps back while users work: processes restart as another version, over stores that it left or expanded.

Judged by the oracle of tests/chaos/rolling.py: every run that was admitted ends well, and each user's socket received
the user's log, in order, each entry once. The steps over PostgreSQL and Redis, with both versions at once, are
``make skew``'s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.rolling import restart, work_while
from tests.skew.versions import NEW, Mixed, mixed_stack
from tests.support.postgres import PostgresServer
from tests.support.redis_servers import single_server
from tests.support.stack import SERVICES

# What is called comes before what calls it, so that a new caller never meets an old callee; then the other way round.
DOWN_TO_UP: Final = ("bridge", "emitter", "agent_instance", "execution", "gateway")
WHOLE: Final = bool(os.environ.get("SKEW_WHOLE"))
SETTINGS: Final = {"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0"}


async def _turn(mixed: Mixed, processes: Iterable[str], tree: Path, number: int = signal.SIGTERM) -> None:
    for name in processes:
        mixed.put(name, tree)
        await restart(mixed.stack, name, number)
        assert mixed.tree_of(name) == tree


def _schema(state: Path) -> tuple[str, str]:
    """(revision, least revision that a process must know) of the run store."""
    with closing(sqlite3.connect(f"file:{state / 'execution' / 'runs.sqlite3'}?mode=ro", uri=True)) as connection:
        (marker,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        (revision,) = connection.execute("SELECT version_num FROM schema_revision").fetchone()
    return revision, marker


@pytest.mark.chaos
@pytest.mark.timeout(150)
async def test_services_are_upgraded_one_by_one_under_load_and_execution_back_again(
    old: Path, following: Path, tmp_path: Path
) -> None:
    async def doing() -> None:
        await _turn(mixed, DOWN_TO_UP, NEW)
        # Killed in the middle of runs: the one of the next release takes over the runs, and expands the store …
        await _turn(mixed, ["execution"], following, signal.SIGKILL)
        assert _schema(mixed.stack.state.root)[0] == "0099"
        # … which both releases before it can use.
        await _turn(mixed, ["execution"], NEW, signal.SIGKILL)
        await _turn(mixed, ["execution"], old, signal.SIGKILL)
        revision, marker = _schema(mixed.stack.state.root)
        assert (revision, marker) == ("0099", "0004"), "nothing was taken back"
        if WHOLE:
            await _turn(mixed, reversed(DOWN_TO_UP), old)

    with mixed_stack(tmp_path, dict.fromkeys(SERVICES, old), environment=SETTINGS) as mixed:
        workers = await work_while(mixed.stack, 2, doing())
    assert sum(len(worker.runs) for worker in workers) >= 4


@pytest.mark.chaos
@pytest.mark.timeout(100)
@pytest.mark.skipif(not WHOLE, reason="a part of `make skew`")
async def test_a_run_that_waits_for_a_person_is_answered_after_the_upgrade(old: Path, tmp_path: Path) -> None:
    with mixed_stack(tmp_path, dict.fromkeys(SERVICES, old)) as mixed:
        async with mixed.stack.http("alice") as http:
            asked = await http.execute("?", pipeline=("ask",), params={"canary": "c"})
            await asyncio.gather(*(_turn(mixed, [name], NEW, signal.SIGKILL) for name in SERVICES))
            question = await http.waiting_for(asked["run_id"])
            assert question is not None
            await http.provide_input(asked["run_id"], question.input_id, {"answer": "blue"})
            async for _ in http.run_events(asked["run_id"]):
                pass
            assert (await http.run(asked["run_id"]))["result"]["answer"] == {"answer": "blue"}


@pytest.mark.chaos
@pytest.mark.container
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not WHOLE, reason="a part of `make skew`")
async def test_both_versions_share_redis_and_postgres_while_copies_are_upgraded_and_taken_back(
    old: Path, following: Path, tmp_path: Path, postgres: PostgresServer
) -> None:
    async def doing() -> None:
        for name in ("bridge", "execution", "gateway", "agent_instance", "emitter"):
            await _turn(mixed, mixed.stack.copies(name)[:1], following)
        await asyncio.sleep(3)  # both versions work on one database and one log
        for name in ("bridge", "execution"):
            await _turn(mixed, mixed.stack.copies(name), following)
            await _turn(mixed, mixed.stack.copies(name), old)

    database = await postgres.create()
    with (
        single_server(tmp_path / "redis", aof=True) as redis,
        mixed_stack(
            tmp_path / "stack",
            dict.fromkeys(SERVICES, old),
            environment=SETTINGS,
            replicas=dict.fromkeys(SERVICES, 2),
            redis=redis.url,
            postgres=postgres.url(database),
        ) as mixed,
    ):
        await work_while(mixed.stack, 4, doing())
    await postgres.drop(database)
