"""What a trace says: how long requests are, what they cost on each model, and in which cells they can be planned.

A *cell* is all requests of one quartile of context length that need the same context window. Everything downstream
plans with cells, never with single requests, so results stay small however long the trace is. Within a cell an
assignment means a share of its requests at random: cells finer than that would let a planner hand a dear model the
cheapest requests of each quartile and still keep every promised share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from examples.llm_costs.errors import needs_extra
from examples.llm_costs.prices import Model
from examples.llm_costs.traces import Trace, iso

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["HOURS_PER_MONTH", "MAX_BUSY_MINUTES", "profile"]

HOURS_PER_MONTH: Final = 730.5
"""A twelfth of 365.25 days."""

MAX_BUSY_MINUTES: Final = 48
_MINUTE_US: Final = 60_000_000


def profile(trace: Trace, models: Sequence[Model]) -> dict[str, Any]:
    """Everything later stages need to know of ``trace``, as JSON values.

    Costs are USD at list price; ``monthly_factor`` takes a cost of the whole trace to a month at the trace's rate.
    """
    with needs_extra():
        import numpy as np
    context, generated = np.frombuffer(trace.context, np.int64), np.frombuffer(trace.generated, np.int64)
    minutes = (np.frombuffer(trace.timestamps, np.int64) - trace.timestamps[0] // _MINUTE_US * _MINUTE_US) // _MINUTE_US
    facts = _facts(trace, int(context.sum()), int(generated.sum()))
    edges = [float(edge) for edge in np.quantile(context, (0.25, 0.5, 0.75))]
    windows = sorted({model.max_input_tokens for model in models})
    cells, members = _cells(context, generated, edges, windows)
    return {
        "trace": facts,
        "distributions": {"context_tokens": _distribution(context), "generated_tokens": _distribution(generated)},
        "quartile_edges": edges,
        "costs": _costs(facts, models, context + generated),
        "peak_minute": _peak(trace, minutes, context + generated),
        "cells": cells,
        "busy_minutes": _busy_minutes(minutes, members, context + generated, len(cells)),
        "models": [model.to_json() for model in models],
    }


def _facts(trace: Trace, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    first, last = trace.timestamps[0], trace.timestamps[-1]
    # A trace shorter than a minute says nothing of a rate below a minute's.
    seconds = max((last - first) / 1e6, 60.0)
    return {
        "name": trace.name,
        "requests": len(trace),
        "first": iso(first),
        "last": iso(last),
        "duration_s": round(seconds, 3),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "monthly_factor": HOURS_PER_MONTH * 3600 / seconds,
    }


def _distribution(values: Ints) -> dict[str, float]:
    import numpy as np

    points = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}
    quantiles = np.quantile(values, list(points.values()))
    return {"mean": round(float(values.mean()), 3)} | {
        name: round(float(value), 3) for name, value in zip(points, quantiles, strict=True)
    }


def _costs(facts: dict[str, Any], models: Sequence[Model], need: Ints) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        usd = model.cost(facts["input_tokens"], facts["output_tokens"])
        rows.append(
            {
                "model": model.model,
                "tier": model.tier,
                "usd": usd,
                "usd_per_month": usd * facts["monthly_factor"],
                "requests_over_window": int((need > model.max_input_tokens).sum()),
            }
        )
    return sorted(rows, key=lambda row: row["usd"])


def _peak(trace: Trace, minutes: Ints, tokens: Ints) -> dict[str, Any]:
    import numpy as np

    occupied, place = np.unique(minutes, return_inverse=True)
    load = np.zeros(len(occupied), np.int64)
    np.add.at(load, place, tokens)
    busiest = int(load.argmax())
    start = trace.timestamps[0] // _MINUTE_US + int(occupied[busiest])
    requests = int((place == busiest).sum())
    return {"start": iso(start * _MINUTE_US), "tokens": int(load[busiest]), "requests": requests}


def _cells(
    context: Ints, generated: Ints, edges: Sequence[float], windows: Sequence[int]
) -> tuple[list[dict[str, Any]], Ints]:
    """The cells that hold requests, and for each request the index of its cell."""
    import numpy as np

    need = context + generated
    # side="left": a request exactly on an edge belongs below it, so that ties do not empty the lower quartile.
    key = np.searchsorted(edges, context, side="left") * (len(windows) + 1) + np.searchsorted(windows, need)
    occupied, members = np.unique(key, return_inverse=True)
    cells = []
    for index, value in enumerate(occupied):
        quartile, window = divmod(int(value), len(windows) + 1)
        mine = members == index
        cells.append(
            {
                "quartile": quartile + 1,
                # None: longer than any model takes.
                "window": windows[window] if window < len(windows) else None,
                "requests": int(mine.sum()),
                "input_tokens": int(context[mine].sum()),
                "output_tokens": int(generated[mine].sum()),
                "longest": int(need[mine].max()),
            }
        )
    return cells, members


def _busy_minutes(minutes: Ints, members: Ints, tokens: Ints, cells: int) -> dict[str, Any]:
    """Tokens by cell in the minutes that can limit a plan.

    A minute that has no more tokens than another in every cell can never be the one that a limit binds in, whatever
    the assignment; only the others are kept. Past MAX_BUSY_MINUTES the least busy are left out (``complete`` false).
    """
    import numpy as np

    occupied, place = np.unique(minutes, return_inverse=True)
    load = np.zeros((len(occupied), cells), np.int64)
    np.add.at(load, (place, members), tokens)
    kept: list[Ints] = []
    complete = True
    for row in load[np.argsort(-load.sum(axis=1), kind="stable")]:
        if any((row <= other).all() for other in kept):
            continue
        if len(kept) == MAX_BUSY_MINUTES:
            complete = False
            break
        kept.append(row)
    return {"tokens": [[int(value) for value in row] for row in kept], "complete": complete}
