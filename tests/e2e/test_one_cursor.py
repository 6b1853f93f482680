"""One cursor on every transport: the same sequence, the same positions, and what is read on one goes on on another.

Over a real stack. The cuts are random and seeded: ``ONE_CURSOR_SEED`` tries others, and the failure names it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from itertools import product
from typing import Final

import aiohttp
import pytest

from carrel.client import Position
from carrel.errors import NotFoundError
from carrel.ids import new_id
from tests.conftest import Eventually
from tests.e2e.test_internal_client import internal
from tests.support.readers import TERMINAL, TRANSPORTS, Reader, Seen, through_everything
from tests.support.stack import RunningStack

SEED: Final = int(os.environ.get("ONE_CURSOR_SEED", "7"))


async def _all(events: AsyncIterator[Seen]) -> list[Seen]:
    return [seen async for seen in events]


async def _some(events: AsyncIterator[Seen], count: int) -> list[Seen]:
    found: list[Seen] = []
    async with aclosing(events) as reading:  # type: ignore[type-var]  # it is a generator
        async for seen in reading:
            found.append(seen)
            if len(found) == count:
                break
    return found


async def _cut_and_resumed(user: Reader, run_id: str, first: str, second: str, cut: int) -> list[Seen]:
    """``cut`` events on one transport, the rest on another."""
    head = await _some(user.read(first, run_id), cut)
    return head + await _all(user.read(second, run_id, head[-1].position))


@pytest.fixture
async def people(slow_stack: RunningStack) -> AsyncIterator[Callable[[str], Awaitable[Reader]]]:
    """``await people("ann")`` is somebody new."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def somebody(name: str) -> Reader:
            user = new_id(name)
            return Reader(slow_stack, user, http, await stack.enter_async_context(internal(slow_stack, user)))

        yield somebody


async def _started(user: Reader, steps: int) -> str:
    return (await user.client.execute("steps", params={"steps": steps}, pipeline=["slow"])).run_id


async def test_four_transports_give_one_sequence_and_every_cut_goes_on_on_another(
    people: Callable[[str], Awaitable[Reader]],
) -> None:
    chance = random.Random(SEED)
    ann = await people("ann")
    run_id, other = await _started(ann, 80), await _started(ann, 60)
    pairs = list(product(TRANSPORTS, TRANSPORTS))
    cuts = [chance.randint(1, 60) for _ in pairs]
    read = await asyncio.gather(
        *(_all(ann.read(transport, run_id)) for transport in TRANSPORTS),
        *(_cut_and_resumed(ann, run_id, *pair, cut) for pair, cut in zip(pairs, cuts, strict=True)),
    )
    whole, resumed = read[: len(TRANSPORTS)], read[len(TRANSPORTS) :]
    expected = whole[0]
    assert [seen.run_id for seen in expected] == [run_id] * len(expected)
    assert [seen.event_type for seen in expected].count(TERMINAL) == 1
    assert expected[-1].event_type == TERMINAL
    assert len({seen.event_id for seen in expected}) == len(expected) > 80
    for transport, sequence in zip(TRANSPORTS, whole, strict=True):
        assert sequence == expected, transport
    for pair, cut, sequence in zip(pairs, cuts, resumed, strict=True):
        assert sequence == expected, f"{pair} cut at {cut}, seed {SEED}"
    # And for somebody who comes after the end, when other runs' events lie between.
    _ = await _all(ann.read("read_events", other))
    for pair in pairs:
        cut = chance.randint(1, len(expected) - 1)
        assert await _cut_and_resumed(ann, run_id, *pair, cut) == expected, f"{pair} cut at {cut}, seed {SEED}"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_foreign_position_is_reset_and_the_run_comes_whole(
    transport: str, people: Callable[[str], Awaitable[Reader]]
) -> None:
    ann, bob = await people("ann"), await people("bob")
    foreign = (await _all(bob.read("sse", await _started(bob, 5))))[2].position
    run_id = await _started(ann, 5)
    expected = await _all(ann.read("sse", run_id))
    for wrong in (foreign, Position(expected[3].position.epoch, expected[3].position.offset, foreign.event_id)):
        reset, *events = await _all(ann.read(transport, run_id, wrong))
        assert reset == Seen(Position(expected[0].position.epoch, 0), "reset")
        assert events == expected


async def test_another_user_s_run_is_not_found_like_one_that_does_not_exist(
    people: Callable[[str], Awaitable[Reader]],
) -> None:
    ann, bob = await people("ann"), await people("bob")
    run_id = await _started(ann, 5)
    _ = await _all(ann.read("watch_run", run_id))
    for asked in (run_id, "run-of-nobody"):
        with pytest.raises(NotFoundError):
            await _all(bob.read("watch_run", asked))
        with pytest.raises(NotFoundError):
            _ = [item async for item in bob.client.read_events(run_id=asked)]
        url = f"{bob.stack.url}/api/runs/{asked}/events"
        async with bob.http.get(url, headers=bob.headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "UNKNOWN_RUN")


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.parametrize("service", ["bridge", "gateway", "execution"])
async def test_readers_that_change_transports_while_a_process_dies_get_each_event_once(
    service: str, people: Callable[[str], Awaitable[Reader]], slow_stack: RunningStack, eventually: Eventually
) -> None:
    chance = random.Random(f"{SEED} {service}")
    ann = await people("ann")
    run_id = await _started(ann, 120)
    readers = [
        asyncio.create_task(through_everything(ann, run_id, first, random.Random(f"{SEED} {service} {first}")))
        for first in range(len(TRANSPORTS))
    ]
    await asyncio.sleep(chance.uniform(0.2, 1.5))
    pid = slow_stack.kill(service)
    results = await asyncio.gather(*readers)
    await eventually(lambda: slow_stack.restarted(service, pid), within=40, what=f"{service} is back")
    expected = await _all(ann.read("read_events", run_id))
    assert len({seen.event_id for seen in expected}) == len(expected)
    for first, (sequence, turns) in enumerate(results):
        assert sequence == expected, f"{TRANSPORTS[first]} first, {turns} changes, seed {SEED}"
        assert turns > 1
