"""The recovery matrix: a pipeline of three stages, and ``kill -9`` of each process at each boundary and in each stage.

    python -m tests.chaos.recovery [--seed 1] [--sample 8]        all cells without --sample; prints the table

Not the tests: those take a sample of the cells (``test_recovery_matrix``). What holds for each cell is ``check_cell``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.client import Event
from tests.chaos.agents import CALLS
from tests.e2e.checks import TERMINAL, check_run, check_sequence
from tests.support.processes import kill_all, worker_pids, zygote_pid
from tests.support.stack import SERVICES, RunningStack, running_stack

AGENTS: Final = Path(__file__).with_name("agents.py")
STAGES: Final = ("stage_one", "stage_two", "stage_three")
VICTIMS: Final = ("worker", "zygote", "agent_instance", "execution", "emitter", "bridge", "gateway")
POINTS: Final = (
    "accepted",
    *(f"{moment} {stage}" for stage in STAGES for moment in ("start of", "middle of", "end of")),
)
PAUSE_S: Final = 0.03
_WITHIN_S: Final = 40.0
_BACK_S: Final = 15.0
_SQUARES: Final = [number * number for number in range(1, CALLS + 1)]


@dataclass(frozen=True)
class Outcome:
    """How one cell went. ``repeated``: calls whose body ran twice; ``pause_s``: the longest silence the user saw."""

    point: str
    victim: str
    status: str
    attempts: int
    repeated: int
    pause_s: float
    took_s: float

    def text(self) -> str:
        """For the table."""
        again = "" if self.attempts == 1 else f", {self.attempts} attempts"
        twice = "" if not self.repeated else f", {self.repeated} call twice"
        return f"{self.status.lower()}{again}{twice}, {self.pause_s:.1f} s"


def cells(sample: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """All cells, or so many of them: each victim at least once when there are enough."""
    every = [(point, victim) for point in POINTS for victim in VICTIMS]
    if sample is None:
        return every
    chooser = random.Random(seed)
    chosen = [(chooser.choice(POINTS), victim) for victim in VICTIMS][:sample]
    rest = [cell for cell in every if cell not in chosen]
    return chosen + chooser.sample(rest, max(0, sample - len(chosen)))


async def run_cell(stack: RunningStack, folder: Path, point: str, victim: str) -> Outcome:
    """One run with one kill in it, checked.

    Raises:
        AssertionError: Something was lost, doubled, or done again; says what, and with which events.
    """
    user = f"matrix-{point}-{victim}-{time.monotonic_ns()}".replace(" ", "-")
    place = folder / user
    place.mkdir()
    events: list[Event] = []
    times: list[float] = []
    killed_at = 0.0
    async with stack.client(user) as client:
        began = time.monotonic()
        params = {"folder": str(place), "pause_s": PAUSE_S}
        run = await client.execute("go", pipeline=list(STAGES), params=params)
        try:
            async with asyncio.timeout(_WITHIN_S):
                async for event in client.events():
                    events.append(event)
                    times.append(time.monotonic())
                    if not killed_at and is_point(event, point):
                        _kill(stack, victim)
                        killed_at = time.monotonic()
                    if event.event_type == TERMINAL:
                        break
        except TimeoutError:
            raise AssertionError(f"{point}, {victim}: no end within {_WITHIN_S:g} s\n{told(events)}") from None
        took = time.monotonic() - began
    try:
        outcome = check_cell(events, run.run_id, user, place)
    except AssertionError as error:
        raise AssertionError(f"{point}, kill -9 of {victim}: {error}\n{told(events)}") from error
    pauses = [later - max(at, killed_at) for at, later in itertools.pairwise(times) if later > killed_at]
    return Outcome(point, victim, *outcome, pause_s=max(pauses, default=0.0), took_s=took)


def is_point(event: Event, point: str) -> bool:
    """Whether this event is the moment to kill at."""
    if point == "accepted":
        return event.event_type == "run_accepted"
    moment, _, stage = point.rpartition(" ")
    if event.agent_name != stage:
        return False
    if moment == "start of":
        return event.event_type == "agent_started"
    if moment == "end of":
        return event.event_type == "agent_completed"
    return event.event_type == "agent_thinking" and event.data.get("number") == CALLS // 2


def check_cell(events: Sequence[Event], run_id: str, user: str, place: Path) -> tuple[str, int, int]:
    """(status, attempts of the stage with the most, calls whose body ran twice) of a run that went as it must."""
    check_sequence(events, user)
    mine = check_run(events, run_id)
    end = mine[-1].data
    assert end["status"] == "SUCCEEDED", f"it ended so: {end}"
    _check_result(end)
    _check_stages(mine)
    repeated = _check_calls(calls_of(place), mine)
    starts = Counter(event.agent_name for event in mine if event.event_type == "agent_started")
    return str(end["status"]), max(starts.values()), repeated


def _check_result(end: Any) -> None:
    result = end["result"]
    result = result.get("stage_three", result)
    assert result["squares"] == _SQUARES, f"the last stage's result is {result}"
    assert result["before"] == dict.fromkeys(STAGES[:2], _SQUARES), f"a checkpointed result was lost: {result}"


def _check_stages(mine: Sequence[Event]) -> None:
    """A stage that another one followed was checkpointed, and does not begin again."""
    seen = -1
    for event in mine:
        if event.event_type == "agent_started" and event.agent_name in STAGES:
            stage = STAGES.index(event.agent_name)
            assert stage >= seen, f"{event.agent_name} ran again after {STAGES[seen]} had begun"
            seen = stage
    for stage_name in STAGES:
        kinds = [event.event_type for event in mine if event.agent_name == stage_name]
        assert kinds.count("agent_completed") >= 1, f"{stage_name} has no end"
        numbers = [event.data["number"] for event in mine if event.agent_name == stage_name and "number" in event.data]
        assert set(numbers) >= set(range(1, CALLS + 1)), f"events of {stage_name} are missing: {numbers}"


def _check_calls(lines: Sequence[str], mine: Sequence[Event]) -> int:
    """Every call's body ran, and ran again only if its result had not come to the agent.

    The agent says a word after each call. A call whose word was heard is in the journal. Returns how many ran twice.
    """
    ran: dict[tuple[str, int], list[int]] = {}
    for line in lines:
        where, counted, attempt, _ = line.split()
        ran.setdefault((where, int(counted)), []).append(int(attempt))
    every = {(stage, number) for stage in STAGES for number in range(1, CALLS + 1)}
    assert ran.keys() == every, f"calls: {lines}"
    had: dict[tuple[str, int], int] = {}
    for event in mine:
        if event.event_type == "agent_thinking" and "number" in event.data:
            had.setdefault((event.agent_name, int(event.data["number"])), event.attempt)
    for (stage, number), attempts in ran.items():
        first = had[stage, number]
        late = [attempt for attempt in attempts if attempt > first]
        assert not late, f"{stage} {number} ran again in attempt {late}, and {first} had it: {lines}"
    twice = [call for call, attempts in ran.items() if len(attempts) > 1]
    assert len(twice) <= 1, f"more than the one call that was under way ran again: {twice}: {lines}"
    return len(twice)


def told(events: Sequence[Event]) -> str:
    """The events as lines, for a failure."""
    return "\n".join(
        f"  {event.offset:>3} {event.event_type:<16} {event.agent_name:<12} attempt {event.attempt} {dict(event.data)}"[
            :200
        ]
        for event in events
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Points down, victims across, as Markdown."""
    by_cell = {(outcome.point, outcome.victim): outcome.text() for outcome in outcomes}
    points = [point for point in POINTS if any(outcome.point == point for outcome in outcomes)]
    lines = ["| kill -9 at | " + " | ".join(VICTIMS) + " |", "|---" * (len(VICTIMS) + 1) + "|"]
    lines += [
        f"| {point} | " + " | ".join(by_cell.get((point, victim), "") for victim in VICTIMS) + " |" for point in points
    ]
    return "\n".join(lines)


async def wait_whole(stack: RunningStack) -> None:
    """Until all five processes are ready and the zygote is there."""
    deadline = time.monotonic() + _BACK_S
    while not _whole(stack):
        if time.monotonic() > deadline:
            raise AssertionError(f"not whole again within {_BACK_S:g} s: {stack.facts.get('processes')}")
        await asyncio.sleep(0.02)


def _whole(stack: RunningStack) -> bool:
    facts = stack.facts.get("processes", {})
    pid = stack.pid("agent_instance")
    return all(facts.get(name, {}).get("ready") for name in SERVICES) and pid is not None and bool(worker_pids(pid))


def _kill(stack: RunningStack, victim: str) -> None:
    pid = stack.pid("agent_instance")
    if victim == "worker":
        assert pid is not None
        kill_all(worker_pids(pid))
    elif victim == "zygote":
        zygote = None if pid is None else zygote_pid(pid)
        assert zygote is not None, "there is no zygote"
        kill_all([zygote])
    else:
        stack.kill(victim)


def calls_of(place: Path) -> list[str]:
    """The lines that the tools of a run have written."""
    path = place / "calls.txt"
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []


async def run_cells(
    stack: RunningStack, folder: Path, chosen: Sequence[tuple[str, str]]
) -> tuple[list[Outcome], list[str]]:
    """One after the other, in a stack that is whole before each; outcomes, and what went wrong."""
    outcomes: list[Outcome] = []
    failures: list[str] = []
    for point, victim in chosen:
        await wait_whole(stack)
        try:
            outcomes.append(await run_cell(stack, folder, point, victim))
        except AssertionError as error:
            failures.append(str(error))
            print(f"FAILED {error}", flush=True)
        else:
            print(f"{point}, {victim}: {outcomes[-1].text()}", flush=True)
    return outcomes, failures


def main(argv: Sequence[str] | None = None) -> int:
    """All cells, or a sample; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.recovery", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, help="so many cells, chosen by the seed")
    parser.add_argument("--only", nargs=2, metavar=("POINT", "VICTIM"), help="one cell")
    arguments = parser.parse_args(argv)
    chosen = [tuple(arguments.only)] if arguments.only else cells(arguments.sample, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="carrel-recovery-") as name:
        folder = Path(name)
        with running_stack(folder, agents=[str(AGENTS)]) as stack:
            outcomes, failures = asyncio.run(run_cells(stack, folder, chosen))
            if failures:
                print(stack.log()[-6000:])
    print(table(outcomes))
    print(f"{len(outcomes)} cells went well, {len(failures)} did not (seed {arguments.seed})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
