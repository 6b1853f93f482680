"""Hints between processes over PostgreSQL: what arrives, what a lost connection loses, and that it comes back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from services.execution.config_store import PostgresAddress
from services.execution.models import UserKey
from services.execution.models_steps import Hints
from services.execution.store_sql_postgres_open import connector
from services.execution.store_sql_wakeups import PostgresWakeups
from tests.conftest import Eventually, _eventually
from tests.contract.run_support import ALICE, BOB
from tests.support.postgres import OwnServer, PostgresServer

pytestmark = pytest.mark.container


@asynccontextmanager
async def listening(server: PostgresServer, *owners: str) -> AsyncIterator[list[tuple[PostgresWakeups, list[Hints]]]]:
    found: list[tuple[PostgresWakeups, list[Hints]]] = []
    tasks = []
    for owner in owners:
        wakeups, heard = PostgresWakeups(connector(PostgresAddress(server.url()), name="hints"), owner), list[Hints]()
        tasks.append(asyncio.create_task(wakeups.listen(heard.append)))
        found.append((wakeups, heard))
    try:
        await _eventually(lambda: all(wakeups.listening for wakeups, _ in found))
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _has(heard: list[Hints], count: int) -> bool:
    return len(heard) == count


async def test_others_hear_what_one_tells_and_oneself_does_not(
    postgres: PostgresServer, eventually: Eventually
) -> None:
    async with listening(postgres, "one", "two", "three") as ((one, own), (_, two), (_, three)):
        assert [hints.missed for hints in own] == [True]  # what was told before it listened
        odd = UserKey('ü "quoted" 💡')
        one.changed(ALICE, "run-1")
        one.changed(odd, "run-1")
        one.changed(ALICE, "run-1")
        one.freed()
        for heard in (two, three):
            await eventually(partial(_has, heard, 2))
            assert set(heard[1].runs) == {(ALICE, "run-1"), (odd, "run-1")}
            assert (heard[1].freed, heard[1].missed) == (True, False)
        assert len(own) == 1


async def test_many_hints_at_once_go_in_few_messages_and_none_is_lost(
    postgres: PostgresServer, eventually: Eventually
) -> None:
    async with listening(postgres, "one", "two") as ((one, _), (_, heard)):
        for n in range(5000):
            one.changed(BOB, f"run-{n}-{'x' * 60}")
        await eventually(lambda: sum(len(hints.runs) for hints in heard) == 5000)
        assert len(heard) < 120
        for n in range(10_500):
            one.changed(BOB, f"run-{n}")
        await eventually(lambda: sum(len(hints.runs) for hints in heard) == 15_000)
        assert any(hints.missed for hints in heard[1:])


async def test_after_a_lost_connection_it_listens_again_and_says_that_it_may_have_missed_something(
    postgres: PostgresServer, eventually: Eventually
) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not ours to stop")
    async with listening(postgres, "one", "two") as ((one, _), (two, heard)):
        heard.clear()
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hints'"
        assert len(await postgres.aexecute(ends)) == 2
        await eventually(lambda: heard and heard[-1].missed)
        await asyncio.to_thread(postgres.kill)
        await eventually(lambda: not two.listening)
        one.changed(ALICE, "run-1")  # kept until there is somebody to take it
        heard.clear()
        await asyncio.to_thread(postgres.start)
        await eventually(lambda: one.listening and two.listening, within=10)
        one.changed(BOB, "run-2")
        await eventually(lambda: any((BOB, "run-2") in hints.runs for hints in heard))
        assert heard[0].missed


async def test_a_server_that_says_nothing_more_is_noticed(postgres: PostgresServer, eventually: Eventually) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not ours to stop")
    async with listening(postgres, "one") as ((one, _),):
        postgres.signal_all(signal.SIGSTOP)
        try:
            await eventually(lambda: not one.listening, within=10)
        finally:
            postgres.signal_all(signal.SIGCONT)
        await eventually(lambda: one.listening, within=10)
