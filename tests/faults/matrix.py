"""The fault matrix over real processes: every cell breaks one thing under load and is judged by one oracle.

    python -m tests.faults.matrix [--seed 1] [--cells "kill bridge"] [--repeats 3] [--out faults.json] [--list]

Not the tests: those take a seeded sample of the cells (``test_sample``). What a cell does is in ``cells``; what must
hold after each of them is in ``oracle``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from _pytest.outcomes import Skipped

from tests.faults.cells import CELLS, Cell, Scene
from tests.faults.load import Load, LoadOptions
from tests.faults.oracle import Verdict
from tests.faults.stores import PLANTS, Plant
from tests.support.processes import worker_pids
from tests.support.stack import RunningStack

__all__ = ["Outcome", "run_cell", "run_cells", "sample", "table", "wait_whole"]

USERS: Final = 4
_CELL_S: Final = 180.0
_RECOVERS_S: Final = 30.0
_WHOLE_S: Final = 30.0


@dataclass
class Outcome:
    """How one cell went."""

    cell: Cell
    seed: str
    verdict: Verdict
    took_s: float
    recovered_s: float
    problems: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything held."""
        return self.verdict.good and not self.problems

    def row(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "cell": self.cell.name,
            "group": self.cell.group,
            "stores": self.cell.stores,
            "seed": self.seed,
            "ok": self.good,
            **self.verdict.counts(),
            "notices": dict(self.verdict.notices),
            "ends": dict(self.verdict.ends),
            "took_s": round(self.took_s, 1),
            "recovered_s": round(self.recovered_s, 1),
            "said": self.said,
            "problems": [*self.problems, *self.verdict.problems],
        }

    def text(self) -> str:
        """One line."""
        numbers = self.verdict.counts()
        wrong = [f"{name} {numbers[name]}" for name in self.verdict.MUST_BE_0 if numbers[name]]
        said = ", ".join(f"{count} x {what}" for what, count in sorted(self.verdict.notices.items()))
        ends = ", ".join(f"{count} {what}" for what, count in sorted(self.verdict.ends.items()))
        return (
            f"{'ok    ' if self.good else 'FAILED'} {self.cell.name:<46} {numbers['committed']:>5} committed, "
            f"back after {self.recovered_s:4.1f} s, {self.took_s:5.1f} s in all; {ends}{'; ' + said if said else ''}"
            f"{'; ' + ', '.join(wrong) if wrong else ''}{'; ' + '; '.join(self.said) if self.said else ''}"
        )


def sample(count: int, seed: int, stores: str = "sqlite") -> list[Cell]:
    """So many of the short cells, as even over the groups as can be."""
    chooser = random.Random(seed)
    by_group: dict[str, list[Cell]] = {}
    for cell in CELLS:
        if cell.stores == stores and not cell.long:
            by_group.setdefault(cell.group, []).append(cell)
    for cells in by_group.values():
        chooser.shuffle(cells)
    groups = sorted(by_group)
    chooser.shuffle(groups)
    chosen: list[Cell] = []
    while len(chosen) < count and any(by_group.values()):
        chosen += [by_group[group].pop() for group in groups if by_group[group]]
    return chosen[:count]


async def wait_whole(stack: RunningStack) -> None:
    """Until every process says that it is ready, and agent_instance has workers.

    Raises:
        AssertionError: They are not in time.
    """
    deadline = time.monotonic() + _WHOLE_S
    while not _whole(stack):
        assert time.monotonic() < deadline, f"not whole within {_WHOLE_S:g} s: {stack.facts.get('processes')}"
        await asyncio.sleep(0.02)


def _whole(stack: RunningStack) -> bool:
    processes = stack.facts.get("processes", {})
    hosts = [stack.pid(name) for name in stack.copies("agent_instance")]
    ready = all(process.get("ready") for process in processes.values())
    return ready and all(pid is not None and worker_pids(pid) for pid in hosts)


async def run_cell(plant: Plant, cell: Cell, seed: str, users: int = USERS) -> Outcome:
    """Run one cell on a stack that is whole; afterwards it is whole again, or the outcome says what is not."""
    stack, net = plant.stack, plant.net
    await wait_whole(stack)
    name = "-".join(filter(str.isalnum, cell.name.split()))
    prefix, seeded = f"{name}-{time.monotonic_ns() // 1_000_000}", f"{seed} {cell.name}"
    options = LoadOptions(users, lossy=cell.lossy, tickets_refused=cell.group == "clock")
    load = Load(stack, net.gateway_url, prefix, seeded, options)
    scene = Scene(stack, net, load, random.Random(seeded), plant.servers)
    began = time.monotonic()
    problems: list[str] = []
    verdict, recovered_s = Verdict(), 0.0
    await load.start()
    try:
        async with asyncio.timeout(_CELL_S):
            try:
                await cell.act(scene)
            except (AssertionError, TimeoutError) as error:
                problems.append(f"the fault could not be made: {type(error).__name__}: {error}")
            finally:
                net.heal()
            await wait_whole(stack)
            verdict, recovered_s = await load.end()
    except (AssertionError, TimeoutError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    finally:
        await load.cancel()
    if recovered_s > _RECOVERS_S:
        problems.append(f"only {recovered_s:.1f} s after the end of the fault every user's new run had ended")
    problems += scene.notes
    return Outcome(cell, seed, verdict, time.monotonic() - began, recovered_s, problems, scene.said)


async def run_cells(
    plant: Plant, cells: Iterable[Cell], seed: int, repeats: int = 1, users: int = USERS
) -> list[Outcome]:
    """One after the other on one stack."""
    outcomes: list[Outcome] = []
    for cell in cells:
        for turn in range(repeats):
            outcome = await run_cell(plant, cell, f"{seed}.{turn}", users)
            outcomes.append(outcome)
            print(outcome.text(), flush=True)
            for problem in [*outcome.problems, *outcome.verdict.problems][:10]:
                print(f"         {problem}", flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """As Markdown: each cell, and how it went."""
    lines = [
        "| fault | stores | committed | lost | repeated | foreign | unexplained gaps | runs without end | back after |"
    ]
    lines.append("|---" * 9 + "|")
    for outcome in outcomes:
        numbers = outcome.verdict.counts()
        told = " | ".join(str(numbers[name]) for name in ("committed", *Verdict.MUST_BE_0))
        mark = "" if outcome.good else "**failed** "
        lines.append(f"| {mark}{outcome.cell.name} | {outcome.cell.stores} | {told} | {outcome.recovered_s:.1f} s |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """All cells, or those whose names hold the words; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--cells", default="", help="parts of names, separated by commas; all cells without")
    parser.add_argument("--sample", type=int, help="so many, chosen by the seed")
    parser.add_argument("--repeats", type=int, default=1, help="how often each, with another seed each time")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--out", type=Path, help="a file for the outcomes as JSON, which are printed without")
    parser.add_argument("--list", action="store_true", help="name the cells and do nothing")
    parser.add_argument("--keep", type=Path, help="where to copy the processes' log")
    arguments = parser.parse_args(argv)
    words = [word.strip() for word in arguments.cells.split(",") if word.strip()]
    chosen = [cell for cell in CELLS if not words or any(word in cell.name or word == cell.group for word in words)]
    if arguments.sample:
        chosen = sample(arguments.sample, arguments.seed)
    if arguments.list:
        print("\n".join(f"{cell.group:<10} {cell.stores:<16} {cell.name}" for cell in chosen))
        return 0
    if not chosen:
        parser.error(f"no cell is called like {arguments.cells!r}; --list names them")
    outcomes = _run(chosen, arguments)
    print(table(outcomes))
    bad = [outcome for outcome in outcomes if not outcome.good]
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} went well (seed {arguments.seed})")
    told = {"seed": arguments.seed, "cells": [outcome.row() for outcome in outcomes]}
    if arguments.out:
        arguments.out.write_text(json.dumps(told, indent=1), encoding="utf-8")
    else:
        print(json.dumps(told))
    return 1 if bad else 0


def _run(chosen: Sequence[Cell], arguments: argparse.Namespace) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for cells in _by_stack(chosen):
        with tempfile.TemporaryDirectory(prefix="carrel-faults-") as name:
            try:
                with PLANTS[cells[0].stores](Path(name)) as plant:
                    print(f"== {cells[0].stores}", flush=True)
                    outcomes += asyncio.run(run_cells(plant, cells, arguments.seed, arguments.repeats, arguments.users))
                    if arguments.keep:
                        arguments.keep.with_suffix(f".{cells[0].stores}").write_text(
                            plant.stack.log(), encoding="utf-8"
                        )
            except AssertionError as error:
                # Of the stack itself: it did not start, or did not end.
                outcomes.append(Outcome(cells[-1], str(arguments.seed), Verdict(), 0.0, 0.0, [str(error)]))
                print(outcomes[-1].text(), error, sep="\n", flush=True)
            except Skipped as reason:
                print(f"== {cells[0].stores}: left out, {reason}", flush=True)
    return outcomes


def _by_stack(chosen: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that share a stack, and each that leaves its stack in no state for another by itself."""
    together = {stores: [cell for cell in chosen if cell.stores == stores and not cell.alone] for stores in PLANTS}
    return [cells for cells in together.values() if cells] + [[cell] for cell in chosen if cell.alone]


if __name__ == "__main__":
    sys.exit(main())
