"""A stack whose runs are in PostgreSQL, with two executions: one is killed, the database restarted, runs cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from carrel.client import Endpoints, GatewayTickets, InternalClient
from tests.conftest import Eventually
from tests.e2e.checks import check_run, check_sequence, until_end
from tests.support.awake import Awake
from tests.support.postgres import OwnServer, PostgresServer, run_apart
from tests.support.processes import alive
from tests.support.stack import RunningStack, running_stack

pytestmark = [pytest.mark.chaos, pytest.mark.container, pytest.mark.timeout(180)]
USERS, STEPS = 5, 60


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Two executions, and one of each of the others."""
    database = run_apart(postgres.create())
    agents = [str(Path(__file__).with_name(name)) for name in ("slow_agents.py", "stubborn_agents.py")]
    with running_stack(
        tmp_path_factory.mktemp("postgres"),
        agents=agents,
        replicas={"execution": 2},
        postgres=postgres.url(database),
        environment={"CARREL_EXECUTION_LEASE_SECONDS": "3"},
    ) as running:
        yield running
    run_apart(postgres.drop(database))


async def _one_run(stack: RunningStack, user: str) -> None:
    async with stack.client(user) as client:
        run = await client.execute("go", pipeline=["slow"], params={"steps": STEPS})
        async with asyncio.timeout(60):
            events = await until_end(client, run.run_id)
    check_sequence(events, user)
    mine = check_run(events, run.run_id)
    assert mine[-1].data["status"] == "SUCCEEDED", mine[-1].data


async def test_runs_go_on_when_one_execution_is_killed(shared: RunningStack, eventually: Eventually) -> None:
    runs = [asyncio.create_task(_one_run(shared, f"kill-{n}")) for n in range(USERS)]
    await asyncio.sleep(0.8)
    first, second = shared.copies("execution")
    old = shared.kill(first)
    await asyncio.gather(*runs)
    await eventually(lambda: shared.restarted(first, old), within=40)
    assert shared.pid(second) is not None


async def test_runs_go_on_when_the_database_is_restarted(
    shared: RunningStack, postgres: PostgresServer, eventually: Eventually
) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not ours to stop")
    for how in (postgres.stop, postgres.kill):
        runs = [asyncio.create_task(_one_run(shared, f"{how.__name__}-{n}")) for n in range(USERS)]
        await asyncio.sleep(0.8)
        await asyncio.to_thread(how)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(postgres.start)
        await asyncio.gather(*runs)


def _gone(pid: int) -> bool:
    return not alive(pid)


@pytest.mark.parametrize("number", [0, 1])
async def test_cancel_at_either_execution_ends_the_process(
    shared: RunningStack, eventually: Eventually, number: int
) -> None:
    copy = shared.copies("execution")[number]
    endpoints = Endpoints(shared.address(copy), shared.address("emitter"), shared.address("bridge"))
    for turn in range(2):  # the gateway asks either, in turn
        user = f"cancels-{number}-{turn}"
        async with (
            shared.client(user) as client,
            GatewayTickets(shared.url, shared.token(user)) as tickets,
            InternalClient(endpoints, tickets) as inner,
        ):
            run = await client.execute("go", pipeline=["stubborn"], params={"how": "swallow"})
            pid = 0
            async with asyncio.timeout(20):
                async for event in client.events():
                    pid = pid or int(event.data.get("pid", 0))
                    if event.event_type == "agent_thinking":
                        break
            await inner.cancel_run(run.run_id)
            with Awake() as took:
                await eventually(partial(_gone, pid))
            assert took.seconds < 3.0
            async with asyncio.timeout(20):
                async for event in client.events():
                    if event.terminal:
                        assert event.data["status"] == "CANCELLED"
                        break
