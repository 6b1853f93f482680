"""Runs the named cases one after the other: ``python -m benchmarks --cases "events context" --out figures.json``."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import uvloop

from benchmarks.cases import CASES
from benchmarks.report import missed, table


def main(argv: list[str] | None = None) -> int:
    """Run the cases; 2 for a name that is none, 1 with ``--fail-on-miss`` when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--cases", default="", help=f"names, separated by spaces; all of them when empty: {' '.join(CASES)}"
    )
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    parser.add_argument("--fail-on-miss", action="store_true", help="exit with 1 when a target is missed")
    arguments = parser.parse_args(argv)
    names = arguments.cases.replace(",", " ").split() or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        print(f"no case is called {', '.join(unknown)}; there are: {' '.join(CASES)}", file=sys.stderr)
        return 2
    figures: dict[str, dict[str, float]] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for name in names:
            print(f"running {name} …", file=sys.stderr, flush=True)
            figures[name] = runner.run(CASES[name]())
            if arguments.out:
                arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))
    print(json.dumps(figures))
    if arguments.fail_on_miss and (late := missed(figures)):
        print(f"missed: {', '.join(late)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
