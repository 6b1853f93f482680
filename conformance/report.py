"""What scenarios found: passed, failed and why, or skipped and why; as a table for people and as JSON for machines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

__all__ = ["BreachError", "Result", "Scenario", "SkipError", "as_json", "as_table", "expect", "run_scenarios"]

W = TypeVar("W")


class BreachError(Exception):
    """The implementation does not do what the protocol says."""


class SkipError(Exception):
    """The scenario cannot be played here; the text says why."""


def expect(holds: object, otherwise: str) -> None:
    """Raises:
    BreachError: It does not hold.
    """
    if not holds:
        raise BreachError(otherwise)


@dataclass(frozen=True)
class Scenario(Generic[W]):
    """One thing that the protocol promises. ``section`` is a heading of docs/protocol.md."""

    name: str
    section: str
    what: str
    play: Callable[[W], Awaitable[None]]
    within_s: float = 30.0


@dataclass(frozen=True)
class Result:
    """How a scenario went: ``passed``, ``failed`` or ``skipped``."""

    name: str
    section: str
    what: str
    outcome: str
    why: str = ""
    seconds: float = 0.0


async def run_scenarios(
    scenarios: Iterable[Scenario[W]], world: W, tell: Callable[[Result], None] = lambda _: None, at_once: int = 1
) -> list[Result]:
    """Play the scenarios, one after another or a few at once; the results are in their order.

    Args:
        scenarios: What to play.
        world: What they are given.
        tell: Called with each result as it comes.
        at_once: How many at a time; more than one only for scenarios that share nothing.
    """
    turn = asyncio.Semaphore(at_once)

    async def played(scenario: Scenario[W]) -> Result:
        async with turn:
            began = time.monotonic()
            outcome, why = await _play(scenario, world)
            seconds = round(time.monotonic() - began, 3)
        result = Result(scenario.name, scenario.section, scenario.what, outcome, why, seconds)
        tell(result)
        return result

    return list(await asyncio.gather(*(played(scenario) for scenario in scenarios)))


async def _play(scenario: Scenario[W], world: W) -> tuple[str, str]:
    try:
        async with asyncio.timeout(scenario.within_s):
            await scenario.play(world)
    except SkipError as reason:
        return "skipped", str(reason)
    except BreachError as breach:
        return "failed", str(breach)
    except TimeoutError:
        return "failed", f"what was waited for did not come within {scenario.within_s:g} s"
    except Exception as error:  # noqa: BLE001 -- whatever an implementation provokes is its failure, and not the suite's
        return "failed", f"{type(error).__name__}: {error}"
    return "passed", ""


def as_table(results: Sequence[Result]) -> str:
    """One line for each scenario, and the sums."""
    marks = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}
    width = max((len(result.name) for result in results), default=0)
    lines = []
    for result in results:
        why = f": {result.why}" if result.why else ""
        lines.append(f"{marks[result.outcome]}  {result.name:<{width}}  [{result.section}] {result.what}{why}")
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in marks}
    return "\n".join([*lines, "", ", ".join(f"{count} {outcome}" for outcome, count in counts.items())])


def as_json(results: Sequence[Result]) -> str:
    """Everything, as one object."""
    failed = sum(result.outcome == "failed" for result in results)
    return json.dumps({"ok": failed == 0, "failed": failed, "results": [asdict(result) for result in results]})
