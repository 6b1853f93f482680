"""A sample of the recovery matrix, of which ``make recovery`` runs the whole, and a kill while the store is held up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from carrel.client import Event
from tests.chaos.agents import CALLS
from tests.chaos.recovery import AGENTS, STAGES, calls_of, cells, check_cell, run_cells, table, told, wait_whole
from tests.e2e.checks import TERMINAL
from tests.support.stack import RunningStack, running_stack

SEED = 3
CELLS = 8
HELD_S = 1.5


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack"), agents=[str(AGENTS)]) as running:
        yield running


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_runs_survive_a_kill_of_each_process_in_turn(stack: RunningStack, tmp_path: Path) -> None:
    outcomes, failures = await run_cells(stack, tmp_path, cells(CELLS, SEED))
    assert not failures, "\n\n".join([*failures, stack.log()[-6000:]])
    print(table(outcomes))
    assert len(outcomes) == CELLS


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_one_call_at_most_is_repeated_when_execution_dies_before_it_could_store_any(
    stack: RunningStack, tmp_path: Path
) -> None:
    await wait_whole(stack)
    events: list[Event] = []
    held = False
    async with stack.client("held-up") as client, asyncio.timeout(60):
        params = {"folder": str(tmp_path), "pause_s": 0.1}
        run = await client.execute("go", pipeline=list(STAGES), params=params)
        async for event in client.events():
            events.append(event)
            if not held and event.data.get("number") == 1:
                held = True
                await _kill_while_held_up(stack, tmp_path)
            if event.event_type == TERMINAL:
                break
    try:
        _, attempts, repeated = check_cell(events, run.run_id, "held-up", tmp_path)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{told(events)}\n{stack.log()[-6000:]}") from error
    assert (attempts, repeated) == (2, 1)


async def _kill_while_held_up(stack: RunningStack, place: Path) -> None:
    """Let execution write nothing to its store for a while, in which an agent that goes on calls; then kill it."""
    path = stack.state.root / "execution" / "runs.sqlite3"
    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as store:
        store.execute("BEGIN IMMEDIATE")
        loop = asyncio.get_running_loop()
        until = loop.time() + HELD_S
        while loop.time() < until and len(calls_of(place)) < CALLS:  # noqa: ASYNC110  (a file)
            await asyncio.sleep(0.02)
        stack.kill("execution")
