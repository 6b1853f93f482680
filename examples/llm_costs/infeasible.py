"""Says why no assignment of requests to models keeps every limit, and what would have to give.

Two answers, both from further linear programs: ``conflict`` is a set of constraints that cannot hold together while
any of them left out would let the rest hold (found by leaving out one after the other); ``changes`` is the smallest
change that makes an assignment possible, each constraint measured against its own size (an elastic program). The
second may have to touch constraints beyond the first, since there may be several conflicts; the error names them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from examples.llm_costs.errors import InfeasibleError
from examples.llm_costs.optimize import Problem, Row, matrix, rows_of, serve_matrix, solve

__all__ = ["explain"]

_TOLERANCE: Final = 5e-7
"""Half of the finest share there is (see ``params``), and above the solver's own tolerance of 1e-7."""
_PARAMETER_OF: Final = {
    "large_share": "min_large_share",
    "medium_share": "min_medium_share",
    "tokens_per_minute": "tokens_per_minute",
}


def explain(problem: Problem) -> InfeasibleError:
    """The error to raise for a problem without a solution; its details name every constraint involved."""
    too_long = [cell for index, cell in enumerate(problem.cells) if not _fits_any(problem, index)]
    if too_long:
        return _too_long(problem, too_long)
    rows = rows_of(problem)
    conflict = _conflict(problem, rows)
    changes = _changes(problem, rows, conflict)
    names = {row.name: None for row in conflict}
    others = [change["constraint"] for change in changes if change["constraint"] not in names]
    also = f"; the smallest change that helps has to touch, besides: {_grouped(others)}" if others else ""
    return InfeasibleError(
        f"no assignment of requests to models keeps every limit; what cannot hold together: {_grouped(names)}{also}",
        advice=f"for example {_advice(changes)}",
        constraints=sorted({*names, *others}),
        changes=changes,
    )


def _fits_any(problem: Problem, cell: int) -> bool:
    return any(problem.fits(cell, model) for model in range(len(problem.models)))


def _too_long(problem: Problem, cells: Sequence[Any]) -> InfeasibleError:
    longest = max(int(cell["longest"]) for cell in cells)
    window = max(model.max_input_tokens for model in problem.models)
    requests = sum(int(cell["requests"]) for cell in cells)
    return InfeasibleError(
        f"no model takes the longest requests: up to {requests:,} requests need up to {longest:,} tokens, "
        f"and the largest context window in the price table is {window:,}",
        advice="leave those requests out of the trace, or add a model with a larger window to the price table",
        constraints=["context_window"],
        changes=[{"constraint": "context_window", "limit": window, "needed": longest}],
    )


def _conflict(problem: Problem, rows: Sequence[Row]) -> list[Row]:
    kept = list(rows)
    for name in dict.fromkeys(row.name for row in rows):
        fewer = [row for row in kept if row.name != name]
        if solve(problem, fewer) is None:
            kept = fewer
    return kept


def _changes(problem: Problem, rows: Sequence[Row], conflict: Sequence[Row]) -> list[dict[str, Any]]:
    slacks = {name: slack for name, slack in _slacks(problem, rows).items() if slack > _TOLERANCE}
    # A limit missed by less than the solver's tolerance: the elastic program sees no violation, so one step it is.
    slacks = slacks or {conflict[0].name: 0.0}
    by_name = {row.name: row for row in rows}
    changes = []
    for name, slack in slacks.items():
        row = by_name[name]
        # Rounded to the side on which the suggestion works.
        if row.kind == "tokens_per_minute":
            limit = row.bound
            possible = float(max(math.ceil(limit + slack * row.scale), math.floor(limit) + 1))
        else:
            limit = -row.bound / row.scale
            possible = max(0.0, math.floor((limit - slack) * 1e4 - 1e-3) / 1e4)
        changes.append({"constraint": name, "parameter": _PARAMETER_OF[row.kind], "limit": limit, "possible": possible})
    return changes


def _slacks(problem: Problem, rows: Sequence[Row]) -> dict[str, float]:
    """The least sum of violations, by constraint, each as a share of the constraint's own size."""
    from scipy.optimize import linprog

    cells, models = len(problem.cells), len(problem.models)
    width = cells * models
    names = list(dict.fromkeys(row.name for row in rows))
    if not names:
        return {}
    elastic = [
        # In shares of the row's size throughout, so that the solver's absolute tolerances mean the same in every row.
        Row(
            row.name,
            row.kind,
            {column: value / row.scale for column, value in row.coefficients.items()}
            | {width + names.index(row.name): -1.0},
            row.bound / row.scale,
            1.0,
        )
        for row in rows
    ]
    serve = serve_matrix(cells, models)
    serve.resize((cells, width + len(names)))
    outcome = linprog(
        [0.0] * width + [1.0] * len(names),
        A_ub=matrix(elastic, width + len(names)),
        b_ub=[row.bound for row in elastic],
        A_eq=serve,
        b_eq=[float(cell["requests"]) for cell in problem.cells],
        bounds=[(0.0, None if problem.fits(c, m) else 0.0) for c in range(cells) for m in range(models)]
        + [(0.0, None)] * len(names),
        method="highs",
    )
    if outcome.status != 0:
        raise RuntimeError(f"HiGHS ended with status {outcome.status}: {outcome.message}")
    return dict(zip(names, (float(value) for value in outcome.x[width:]), strict=True))


def _grouped(names: Iterable[str]) -> str:
    """``large_share (quartile_4), tokens_per_minute (gpt-5, gpt-4.1 and 5 more)``."""
    by_kind: dict[str, list[str]] = {}
    for name in names:
        kind, _, member = name.partition("/")
        by_kind.setdefault(kind, []).append(member)
    return ", ".join(f"{kind} ({_some(members)})" for kind, members in by_kind.items())


def _advice(changes: Iterable[dict[str, Any]]) -> str:
    """What to write instead; a share is one parameter for all quartiles, so the lowest that is needed counts."""
    parts: list[str] = []
    lowest: dict[str, dict[str, Any]] = {}
    for change in changes:
        if change["parameter"] == "tokens_per_minute":
            model = change["constraint"].split("/", 1)[1]
            parts.append(f"raise tokens_per_minute of {model} from {change['limit']:,.0f} to {change['possible']:,.0f}")
        elif change["possible"] < lowest.get(change["parameter"], {"possible": math.inf})["possible"]:
            lowest[change["parameter"]] = change
    parts += [f"lower {name} from {change['limit']:g} to {change['possible']:g}" for name, change in lowest.items()]
    return _some(parts, " and ")


def _some(parts: Sequence[str], separator: str = ", ") -> str:
    return separator.join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")
