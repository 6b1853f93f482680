"""Copies of services restarted and killed one after the other while users work: nothing is lost, nothing comes twice.

The quick one needs no server: copies of what keeps nothing, over the embedded stores. The whole one, every service
twice over Redis and PostgreSQL, is ``pytest -m container tests/chaos/test_rolling.py``.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.recovery import AGENTS
from tests.chaos.rolling import got_work, restart, work_while
from tests.support.postgres import PostgresServer
from tests.support.redis_servers import single_server
from tests.support.stack import RunningStack, running_stack

SEED = 20264
STATELESS = {"gateway": 2, "agent_instance": 2, "emitter": 2}
EVERYTHING = {**STATELESS, "execution": 2, "bridge": 2}
SETTINGS = {"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0", "CARREL_LOG_LEVEL": "info"}


@pytest.fixture
def stateless(tmp_path: Path) -> Iterator[RunningStack]:
    """Copies of what keeps nothing."""
    with running_stack(tmp_path, agents=[str(AGENTS)], environment=SETTINGS, replicas=STATELESS) as stack:
        yield stack


@pytest.fixture
async def everything(tmp_path: Path, postgres: PostgresServer) -> AsyncIterator[RunningStack]:
    """Every service twice."""
    database = await postgres.create()
    with (
        single_server(tmp_path / "redis", aof=True) as redis,
        running_stack(
            tmp_path,
            agents=[str(AGENTS)],
            environment=SETTINGS,
            replicas=EVERYTHING,
            redis=redis.url,
            postgres=postgres.url(database),
        ) as stack,
    ):
        yield stack
    await postgres.drop(database)


@pytest.mark.chaos
@pytest.mark.timeout(150)
async def test_copies_are_restarted_and_killed_under_load(stateless: RunningStack) -> None:
    async def doing() -> None:
        dice = random.Random(SEED)
        victims = {service: dice.choice(stateless.copies(service)) for service in STATELESS}
        others = [name for service in STATELESS for name in stateless.copies(service) if name != victims[service]]
        await asyncio.gather(*(restart(stateless, name, signal.SIGKILL) for name in victims.values()))
        await asyncio.gather(*(restart(stateless, name, signal.SIGTERM) for name in others))
        await got_work(stateless, ["agent_instance", "emitter"])

    workers = await work_while(stateless, 4, doing())
    assert sum(worker.reconnects for worker in workers) >= 2, "no gateway was left"
    assert sum(len(worker.runs) for worker in workers) > 12


@pytest.mark.chaos
@pytest.mark.container
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_service_is_restarted_in_order_under_load_and_new_copies_get_work(everything: RunningStack) -> None:
    async def doing() -> None:
        for service in EVERYTHING:
            for name in everything.copies(service):
                await restart(everything, name)
        await got_work(everything, ["agent_instance", "emitter", "bridge", "execution"])

    workers = await work_while(everything, 6, doing())
    assert not [worker.refused for worker in workers if worker.refused]


@pytest.mark.chaos
@pytest.mark.container
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_one_copy_of_every_service_is_killed_under_load(everything: RunningStack) -> None:
    async def doing() -> None:
        dice = random.Random(SEED)
        for service in sorted(EVERYTHING, key=lambda _: dice.random()):
            await restart(everything, dice.choice(everything.copies(service)), signal.SIGKILL)

    await work_while(everything, 6, doing())
