"""One cursor over copies: a run is read on every transport, at any gateway, through any bridge, while copies die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from carrel.client import Endpoints, GatewayTickets, InternalClient
from tests.conftest import Eventually
from tests.support.readers import TRANSPORTS, Reader, through_everything
from tests.support.redis_servers import single_server
from tests.support.stack import RunningStack, running_stack

SEED = 20265
_SLOW = Path(__file__).parents[1] / "e2e" / "slow_agents.py"


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[RunningStack]:
    """Two bridges over one Redis, two gateways."""
    with (
        single_server(tmp_path / "redis") as redis,
        running_stack(tmp_path, agents=[str(_SLOW)], replicas={"bridge": 2, "gateway": 2}, redis=redis.url) as stack,
    ):
        yield stack


@pytest.mark.chaos
@pytest.mark.container
@pytest.mark.timeout(150)
async def test_a_run_is_read_through_any_copy_while_copies_die(copies: RunningStack, eventually: Eventually) -> None:
    bridges = [copies.address(name) for name in copies.copies("bridge")]
    async with (
        aiohttp.ClientSession() as http,
        GatewayTickets(copies.url, copies.token("ann")) as tickets,
        InternalClient(Endpoints(copies.address("execution"), copies.address("emitter"), bridges[0]), tickets) as one,
        InternalClient(Endpoints(copies.address("execution"), copies.address("emitter"), bridges[1]), tickets) as two,
    ):
        run_id = (await one.execute("steps", params={"steps": 150}, pipeline=["slow"])).run_id
        readers = [Reader(copies, "ann", http, client) for client in (one, two) for _ in TRANSPORTS]
        reading = [
            asyncio.create_task(through_everything(reader, run_id, number, random.Random(f"{SEED} {number}")))
            for number, reader in enumerate(readers)
        ]
        chance = random.Random(SEED)
        killed: dict[str, int] = {}
        for service in ("bridge", "gateway"):
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            name = chance.choice(copies.copies(service))
            killed[name] = copies.kill(name)
        results = await asyncio.gather(*reading)
        for name, pid in killed.items():
            await eventually(partial(copies.restarted, name, pid), within=40, what=f"{name} is back")
    expected = results[0][0]
    assert len({seen.event_id for seen in expected}) == len(expected) > 150
    for number, (sequence, turns) in enumerate(results):
        assert sequence == expected, f"reader {number}, {turns} changes, seed {SEED}"
