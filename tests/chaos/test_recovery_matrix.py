"""A sample of the recovery matrix; ``make recovery`` runs the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.recovery import AGENTS, cells, run_cells, table
from tests.support.stack import running_stack

SEED = 3
CELLS = 8


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_runs_survive_a_kill_of_each_process_in_turn(tmp_path: Path) -> None:
    with running_stack(tmp_path, agents=[str(AGENTS)]) as stack:
        outcomes, failures = await run_cells(stack, tmp_path, cells(CELLS, SEED))
        assert not failures, "\n\n".join([*failures, stack.log()[-6000:]])
    print(table(outcomes))
    assert len(outcomes) == CELLS
