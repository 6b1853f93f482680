"""All scenarios for clients, in their order, and the command that plays them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from conformance.client import faults, manners
from conformance.client.harness import Stage
from conformance.report import Result, Scenario, as_json, as_table, run_scenarios

__all__ = ["ALL", "add_arguments", "main", "play"]

# Until a client that was started says what it is.
_START_S: Final = 60.0

ALL: tuple[Scenario[Stage], ...] = (*faults.SCENARIOS, *manners.SCENARIOS)


async def play(
    command: Sequence[str],
    only: Sequence[str] = (),
    tell: Callable[[Result], None] = lambda _: None,
    at_once: int = 4,
) -> list[Result]:
    """Play the scenarios to a client.

    Args:
        command: Starts it; see ``conformance.client`` for what it must speak.
        only: Names of scenarios, or how they begin; all when empty.
        tell: Called with each result as it comes.
        at_once: How many at a time, each with a client and a gateway of its own.
    """
    chosen = [
        replace(item, within_s=item.within_s + _START_S)
        for item in ALL
        if not only or item.name.startswith(tuple(only))
    ]
    return await run_scenarios(chosen, Stage(command), tell, at_once)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--json", metavar="FILE", help="write the results there, - for standard output")
    parser.add_argument("--only", action="append", default=[], help="a scenario's name, or how it begins; repeatable")
    parser.add_argument("--at-once", type=int, default=4, help="scenarios at a time")
    parser.add_argument("command", nargs="+", help="starts the client; after --")


def main(given: argparse.Namespace) -> int:
    """Play, print, and give the exit code: 0 when nothing failed."""
    results = asyncio.run(play(given.command, given.only, _print, given.at_once))
    print(as_table(results).splitlines()[-1])
    if given.json == "-":
        print(as_json(results))
    elif given.json:
        Path(given.json).write_text(as_json(results) + "\n", encoding="utf-8")
    return 1 if any(result.outcome == "failed" for result in results) else 0


def _print(result: Result) -> None:
    print(as_table([result]).splitlines()[0], flush=True)
