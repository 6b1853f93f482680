"""A seeded sample of the fault matrix; ``make faults`` runs the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cells import CELLS
from tests.faults.matrix import run_cells, sample, table
from tests.faults.stores import PLANTS

SEED = 5
# On embedded stores, in two copies of everything on a Redis and a PostgreSQL, and on a Redis that fails over.
SAMPLES = [("sqlite", 3), ("copies", 2), ("sentinel", 1)]


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("stores", "count"), SAMPLES)
async def test_every_event_comes_once_and_in_order_whatever_breaks(stores: str, count: int, tmp_path: Path) -> None:
    with PLANTS[stores](tmp_path) as plant:
        outcomes = await run_cells(plant, sample(count, SEED, stores), SEED, users=3)
        bad = [outcome for outcome in outcomes if not outcome.good]
        told = "\n".join(f"{outcome.text()}\n  {outcome.row()['problems']}" for outcome in bad)
        assert not bad, f"{told}\n{plant.stack.log()[-8000:]}"
        # A fault that did not reach the edge would prove nothing.
        assert all(plant.net.passed(edge) for edge in plant.net.edges)
    print(table(outcomes))
    assert len(outcomes) == count


def test_cells_have_names_of_their_own() -> None:
    names = [(cell.name, cell.stores) for cell in CELLS]
    assert len(set(names)) == len(names)
