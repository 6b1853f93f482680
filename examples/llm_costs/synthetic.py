"""Makes synthetic traces with the schema of the Azure LLM inference traces, from a seed.

**Nothing here is measured data.** The shape is meant to be like a code assistant's traffic (bursts and silences
within about an hour, contexts of widely different length with a heap just below a limit, short answers), so that the
agents have something lifelike to work on where no real trace is at hand. The same seed gives the same file on every
supported Python.

    python -m examples.llm_costs.synthetic --requests 2000 --seed 7 out.csv
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from examples.llm_costs.traces import COLUMNS, MAX_ROWS

__all__ = ["generate", "main", "to_csv"]

_START: Final = datetime(2026, 1, 5, 9, 0, 0, tzinfo=UTC)
_MINUTES: Final = 58
_CONTEXT_LIMIT: Final = 7_900
_OUTPUT_LIMIT: Final = 1_800


def generate(requests: int, seed: int) -> Iterator[tuple[datetime, int, int]]:
    """Yield ``requests`` rows (time, context tokens, generated tokens) in order of time.

    Raises:
        ValueError: ``requests`` is not between 1 and MAX_ROWS.
    """
    if not 1 <= requests <= MAX_ROWS:
        raise ValueError(f"requests must be from 1 to {MAX_ROWS:,}, not {requests:,}")
    rng = random.Random(seed)  # noqa: S311  (repeatable on purpose, and no secret)
    weights = [_minute_weight(rng) for _ in range(_MINUTES)]
    minutes = rng.choices(range(_MINUTES), weights, k=requests)
    for second in sorted(minute * 60 + rng.random() * 60 for minute in minutes):
        yield _START + timedelta(microseconds=round(second * 1e6)), _context(rng), _generated(rng)


def _minute_weight(rng: random.Random) -> float:
    if rng.random() < 0.15:
        return 0.02  # nearly silent, but never all minutes at once
    return rng.lognormvariate(0.0, 0.9)


def _context(rng: random.Random) -> int:
    if rng.random() < 0.08:
        # Prompts cut at the assistant's own limit.
        return _CONTEXT_LIMIT - rng.randrange(8) * 60
    while True:
        length = math.floor(rng.lognormvariate(math.log(1500), 1.15))
        if 3 <= length <= _CONTEXT_LIMIT:
            return length


def _generated(rng: random.Random) -> int:
    return min(6 + math.floor(rng.lognormvariate(math.log(9), 1.25)), _OUTPUT_LIMIT)


def to_csv(requests: int, seed: int) -> str:
    """The same rows as CSV, times with seven digits after the second as in the Azure traces."""
    rows = [",".join(COLUMNS)]
    rows += [f"{when:%Y-%m-%d %H:%M:%S.%f}0,{context},{out}" for when, context, out in generate(requests, seed)]
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a trace to a file, for the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.llm_costs.synthetic", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="number of rows (default 2000)")
    parser.add_argument("--seed", type=int, default=7, help="the same seed gives the same file (default 7)")
    parser.add_argument("out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    try:
        text = to_csv(options.requests, options.seed)
        options.out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{options.out}: {options.requests} synthetic requests, seed {options.seed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
