"""What the run store on PostgreSQL makes of a server that is restarted, killed, slow or full of others' locks.

The oracle: what was acknowledged is there, what was refused is not, and calls work again without a restart of ours.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from carrel.errors import StoreUnavailableError
from services.execution.config_store import PostgresAddress
from services.execution.models import RunState, UserKey
from services.execution.store_sql_postgres_open import SharedRunStore, open_postgres_store
from services.execution.tables import users
from tests.conftest import Eventually
from tests.contract.run_support import ALICE, BOB, CANCEL, admission
from tests.support.awake import Awake
from tests.support.postgres import OwnServer, PostgresServer

pytestmark = [pytest.mark.container, pytest.mark.chaos]


@pytest.fixture
async def server(postgres: PostgresServer) -> AsyncIterator[OwnServer]:
    """The server, running again afterwards."""
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not ours to stop")
    yield postgres
    if not postgres.running:
        await asyncio.to_thread(postgres.start)


@pytest.fixture
async def address(server: OwnServer) -> AsyncIterator[PostgresAddress]:
    """A database of the test's own; a server that has just been started again may take its time."""
    name = await server.create()
    yield PostgresAddress(server.url(name), statement_s=15.0, lock_s=10.0, connect_s=10.0)
    if not server.running:
        await asyncio.to_thread(server.start)
    await server.drop(name)


@pytest.fixture
async def store(address: PostgresAddress) -> AsyncIterator[SharedRunStore]:
    opened = await open_postgres_store(address, migrate=True)
    yield opened
    await opened.close()


async def test_after_a_restart_calls_go_through_at_once(server: OwnServer, store: SharedRunStore) -> None:
    await asyncio.gather(*(store.admit(admission(user=UserKey(f"u{n}"))) for n in range(12)))  # many connections
    for how in (server.stop, server.kill):
        await asyncio.to_thread(how)
        await asyncio.to_thread(server.start)
        before = await asyncio.gather(*(store.get_run(UserKey(f"u{n}"), "run-1") for n in range(12)))
        assert None not in before
        name = f"run-{how.__name__}"
        await asyncio.gather(*(store.admit(admission(name, user=UserKey(f"u{n}"))) for n in range(12)))
        await asyncio.gather(*(store.finish(run.ref, CANCEL) for run in before if run is not None))


async def test_without_a_server_calls_are_refused_and_work_again_once_it_is_there(
    server: OwnServer, store: SharedRunStore
) -> None:
    run = (await store.admit(admission())).run
    await asyncio.to_thread(server.stop)
    for call in (store.admit(admission("run-2")), store.get_run(ALICE, "run-1"), store.probe(), store.renew_leases()):
        with pytest.raises(StoreUnavailableError) as raised:
            await call
        assert raised.value.retry_after_s
        assert "PostgreSQL" in raised.value.advice
    await asyncio.to_thread(server.start)
    await asyncio.sleep(0.1)
    assert await store.finish(run.ref, CANCEL)
    assert await store.get_run(ALICE, "run-2") is None


@pytest.mark.parametrize("how", ["kill", "stop", "quit"])
async def test_nothing_acknowledged_is_lost_and_nothing_refused_is_there(
    how: str, server: OwnServer, store: SharedRunStore, eventually: Eventually
) -> None:
    ended = asyncio.Event()
    outcome: dict[tuple[UserKey, str], bool] = {}

    async def user(name: UserKey) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            run_id = f"run-{number}"
            try:
                run = (await store.admit(admission(run_id, user=name, max_unended=10**6))).run
                outcome[name, run_id] = True
                while True:
                    with suppress(StoreUnavailableError):
                        assert await store.finish(run.ref, CANCEL), "it was refused before, and so not done"
                        break
                    await asyncio.sleep(0.01)
            except StoreUnavailableError:
                outcome[name, run_id] = False
                await asyncio.sleep(0.01)

    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    users_of_it = [asyncio.create_task(user(UserKey(f"user-{n}"))) for n in range(8)]
    for _ in range(3):
        goal = sum(outcome.values()) + 10
        await eventually(lambda goal=goal: sum(outcome.values()) >= goal, within=15)  # type: ignore[misc]
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        if how == "kill":
            await asyncio.to_thread(server.kill)
        else:
            await asyncio.to_thread(server.stop, signal.SIGINT if how == "stop" else signal.SIGQUIT)
        await asyncio.to_thread(server.start)
    ended.set()
    await asyncio.gather(*users_of_it)
    for (name, run_id), acknowledged in outcome.items():
        run = await store.get_run(name, run_id)
        assert (run is not None) == acknowledged, (name, run_id)
        assert run is None or run.state is RunState.FINISHING


@pytest.mark.parametrize("sent", [True, False])
async def test_a_commit_without_an_answer_is_asked_after_and_nothing_is_done_twice(
    sent: bool, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncpg

    broken: list[str] = []

    class Breaking(asyncpg.Connection):  # type: ignore[type-arg, misc, unused-ignore]
        async def execute(self, query: str, *args: Any, **named: Any) -> str:
            if (
                query == "COMMIT"
                and "armed" in broken
                and await self.fetchval("SELECT pg_current_xact_id_if_assigned()")
            ):
                broken.remove("armed")
                broken.append("broke")
                if sent:
                    await super().execute(query)
                self.terminate()
                raise ConnectionResetError("by the test")
            return await super().execute(query, *args, **named)

    real = asyncpg.connect
    monkeypatch.setattr(asyncpg, "connect", lambda *a, **k: real(*a, **{"connection_class": Breaking, **k}))
    store = await open_postgres_store(address, migrate=True)
    await store.admit(admission("run-0", user=BOB))
    # A checkpoint of the same second is not a recovery's.
    idle = await real(address.url)
    await idle.execute("CHECKPOINT")
    await idle.close()
    broken.append("armed")
    admitted = await store.admit(admission())
    assert broken == ["broke"]
    assert not admitted.existing
    broken[:] = ["armed"]
    step = replace(admitted.run.ref)
    finished = await store.finish(step, CANCEL)
    assert broken == ["broke"]
    assert finished is not None
    assert await store.outbox(ALICE, "run-1") == (*admitted.events, *finished.events)
    await store.close()


async def test_a_lost_transaction_whose_number_another_one_bears_is_not_taken_for_committed(
    server: OwnServer, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncpg

    armed: list[bool] = []
    statuses: list[str] = []

    class Dying(asyncpg.Connection):  # type: ignore[type-arg, misc, unused-ignore]
        async def execute(self, query: str, *args: Any, **named: Any) -> str:
            if query != "COMMIT" or not armed:
                return await super().execute(query, *args, **named)
            armed.clear()
            xid = await self.fetchval("SELECT pg_current_xact_id_if_assigned()::text")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            other = await real(address.url)
            while int(await other.fetchval("SELECT pg_current_xact_id()::text")) < int(xid):
                pass
            statuses.append(await other.fetchval("SELECT pg_xact_status($1::text::xid8)", xid))
            await other.close()
            self.terminate()
            raise ConnectionResetError("by the test")

    real = asyncpg.connect
    monkeypatch.setattr(asyncpg, "connect", lambda *a, **k: real(*a, **{"connection_class": Dying, **k}))
    store = await open_postgres_store(address, migrate=True)
    run = (await store.admit(admission())).run
    for work in (lambda: store.admit(admission("run-2")), lambda: store.finish(run.ref, CANCEL)):
        armed.append(True)
        # Its connection had been kept, so it is tried again over a fresh one.
        assert await work()
    assert statuses == ["committed"] * 2
    assert await store.get_run(ALICE, "run-2") is not None
    ended = await store.get_run(ALICE, "run-1")
    assert ended is not None
    assert ended.state is RunState.FINISHING
    await store.close()


@pytest.fixture
async def impatient(address: PostgresAddress) -> AsyncIterator[SharedRunStore]:
    """In it nothing may take long."""
    opened = await open_postgres_store(replace(address, statement_s=1.0, lock_s=0.5), migrate=True)
    yield opened
    await opened.close()


async def test_slow_statement_and_others_locks_are_bounded_and_hold_up_nobody_else(
    address: PostgresAddress, impatient: SharedRunStore
) -> None:
    import asyncpg

    store = impatient
    await store.admit(admission())
    with pytest.raises(StoreUnavailableError, match="statement timeout") as raised:
        await store.database.write(lambda c: c.execute(sa.text("SELECT pg_sleep(30)")).scalar())
    assert "STATEMENT_SECONDS" in raised.value.advice
    intruder = await asyncpg.connect(address.url)
    try:
        async with intruder.transaction():
            await intruder.fetch("SELECT * FROM users WHERE user_id = 'alice' FOR UPDATE")
            blocked = [asyncio.ensure_future(store.admit(admission(f"run-{n}"))) for n in range(2, 32)]
            await asyncio.sleep(0.05)
            with Awake() as took:  # Alice's thirty hold one connection
                await store.admit(admission(user=BOB))
            assert took.seconds < 0.4
            with pytest.raises(StoreUnavailableError, match="lock timeout"):
                await blocked[0]
        results = await asyncio.gather(*blocked, return_exceptions=True)
        assert any(not isinstance(result, Exception) for result in results)
    finally:
        await intruder.close()


async def test_writes_that_lock_crosswise_are_tried_again(store: SharedRunStore) -> None:
    for name in "ab":
        await store.admit(admission(user=UserKey(name)))
    met = {name: asyncio.Event() for name in "ab"}
    loop = asyncio.get_running_loop()
    tries: list[str] = []

    def crosswise(first: str, second: str) -> Any:
        def work(connection: sa.Connection) -> str:
            tries.append(first)
            touch = users.update().values(rate_at=1)
            connection.execute(touch.where(users.c.user_id == first))
            loop.call_soon(met[first].set)
            connection.execute(sa.text("SELECT pg_sleep(0.3)"))
            connection.execute(touch.where(users.c.user_id == second))
            return first

        return work

    database = store.database
    # Lock waits here last longer than the server's look for deadlocks, a second.
    await database.write(lambda c: c.execute(sa.text("ALTER ROLE CURRENT_USER SET deadlock_timeout = '50ms'")))
    await database._drop_idle()
    try:
        done = await asyncio.gather(database.write(crosswise("a", "b")), database.write(crosswise("b", "a")))
    finally:
        await database.write(lambda c: c.execute(sa.text("ALTER ROLE CURRENT_USER RESET deadlock_timeout")))
    assert sorted(done) == ["a", "b"]
    assert len(tries) > 2


async def test_a_closed_store_refuses_and_what_was_accepted_is_finished(store: SharedRunStore) -> None:
    await store.admit(admission())
    accepted = [asyncio.ensure_future(store.admit(admission(user=UserKey(f"u{n}")))) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert all(result.run for result in await asyncio.gather(*accepted))
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.get_run(ALICE, "run-1")
