"""A seeded sample of the fault matrix; ``make faults`` runs the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.recovery import AGENTS
from tests.faults.cells import CELLS
from tests.faults.edges import EDGES, edged_stack
from tests.faults.matrix import SETTINGS, run_cells, sample, table

SEED = 5
COUNT = 6


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_every_event_comes_once_and_in_order_whatever_breaks(tmp_path: Path) -> None:
    with edged_stack(tmp_path, agents=[str(AGENTS)], environment=SETTINGS) as (stack, net):
        outcomes = await run_cells(stack, net, sample(COUNT, SEED), SEED, users=3)
        bad = [outcome for outcome in outcomes if not outcome.good]
        told = "\n".join(f"{outcome.text()}\n  {outcome.row()['problems']}" for outcome in bad)
        assert not bad, f"{told}\n{stack.log()[-8000:]}"
        # A fault that did not reach the edge would prove nothing.
        assert all(net.passed(edge.name) for edge in EDGES)
    print(table(outcomes))
    assert len({outcome.cell.group for outcome in outcomes}) >= 5


def test_cells_have_names_of_their_own() -> None:
    names = [(cell.name, cell.stores) for cell in CELLS]
    assert len(set(names)) == len(names)
