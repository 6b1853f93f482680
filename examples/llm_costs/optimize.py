"""The cheapest assignment of requests to models, as a linear program solved by HiGHS (through scipy).

Variables are numbers of requests x[cell, model] (see ``profile`` for what a cell is). Fractions are meant: an
assignment is a routing share, not a list of requests.

    minimise    Σ cost[cell, model] · x[cell, model]
    serve       Σ over models of x = the cell's requests                                    (each cell)
    context     x = 0 where the cell's longest request does not fit the model's window      (a bound)
    shares      Σ of x on large models            ≥ min_large_share  · requests             (each quartile of length)
                Σ of x on medium and large models ≥ min_medium_share · requests             (each quartile of length)
    rate        Σ of x · the cell's tokens per request in that minute ≤ tokens per minute   (each model, busy minute)

Why an assignment is impossible when it is, ``infeasible`` finds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from examples.llm_costs.errors import needs_extra
from examples.llm_costs.prices import TIERS, Model

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Problem", "Row", "Solution", "at_least", "rows_of", "solve"]

_UNIT: Final = 1e6
"""Costs go to the solver in millionths of a USD: its tolerances are absolute, and a request costs about 1e-3 USD."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be planned: ``cells`` and ``busy`` as ``profile`` gives them, ``limits`` in tokens a minute."""

    cells: Sequence[Mapping[str, Any]]
    models: Sequence[Model]
    busy: Sequence[Sequence[int]]
    limits: Mapping[str, float | None]
    min_large_share: float
    min_medium_share: float

    def fits(self, cell: int, model: int) -> bool:
        """Whether every request of the cell fits the model's context window, answer included."""
        return int(self.cells[cell]["longest"]) <= self.models[model].max_input_tokens

    def cost(self, cell: int, model: int) -> float:
        """USD for one average request of the cell on the model."""
        facts = self.cells[cell]
        total = self.models[model].cost(float(facts["input_tokens"]), float(facts["output_tokens"]))
        return total / float(facts["requests"])


@dataclass(frozen=True, slots=True)
class Row:
    """One inequality ``Σ coefficients · x ≤ bound``. Rows of one ``name`` are one constraint to the user."""

    name: str
    kind: str
    coefficients: Mapping[int, float]
    bound: float
    scale: float
    """What one whole of this constraint is: a quartile's requests, a model's limit."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The optimum: ``x`` by cell and model, ``usd``, and the multipliers HiGHS ends with, in USD per unit."""

    x: list[list[float]]
    usd: float
    serve_prices: list[float]
    row_prices: list[float]
    window_prices: dict[int, float]
    """By model with requests that do not fit it: USD saved if one more request of the most costly such cell did."""
    rows: list[Row]


def at_least(tier: str) -> tuple[str, ...]:
    """The tiers that are ``tier`` or larger."""
    return TIERS[TIERS.index(tier) :]


def rows_of(problem: Problem) -> list[Row]:
    """The shares and the rate limits of ``problem``, named as users see them."""
    return [*_share_rows(problem), *_rate_rows(problem)]


def solve(problem: Problem, rows: Sequence[Row] | None = None) -> Solution | None:
    """The optimum, or None when no assignment keeps every limit; ``rows`` are the limits, all of them by default."""
    with needs_extra():
        import numpy as np
        from scipy.optimize import linprog
    cells, models = len(problem.cells), len(problem.models)
    rows = rows_of(problem) if rows is None else list(rows)
    outcome = linprog(
        [problem.cost(cell, model) * _UNIT for cell in range(cells) for model in range(models)],
        A_ub=matrix(rows, cells * models) if rows else None,
        b_ub=[row.bound for row in rows] if rows else None,
        A_eq=serve_matrix(cells, models),
        b_eq=[float(cell["requests"]) for cell in problem.cells],
        bounds=[(0.0, None if problem.fits(cell, model) else 0.0) for cell in range(cells) for model in range(models)],
        method="highs",
    )
    if outcome.status == 2:
        return None
    if outcome.status != 0:
        raise RuntimeError(f"HiGHS ended with status {outcome.status}: {outcome.message}")
    shape = (cells, models)
    upper = np.asarray(outcome.upper.marginals).reshape(shape) / _UNIT
    return Solution(
        x=np.asarray(outcome.x).reshape(shape).tolist(),
        usd=float(outcome.fun) / _UNIT,
        serve_prices=[float(value) / _UNIT for value in outcome.eqlin.marginals],
        row_prices=[float(value) / _UNIT for value in outcome.ineqlin.marginals] if rows else [],
        window_prices={
            model: float(upper[:, model].min())
            for model in range(models)
            if not all(problem.fits(cell, model) for cell in range(cells))
        },
        rows=rows,
    )


def matrix(rows: Sequence[Row], width: int) -> csr_array:
    """The coefficients of ``rows`` as a sparse matrix of ``width`` columns."""
    from scipy.sparse import csr_array

    values: list[float] = []
    columns: list[int] = []
    starts = [0]
    for row in rows:
        values += row.coefficients.values()
        columns += row.coefficients.keys()
        starts.append(len(values))
    return csr_array((values, columns, starts), shape=(len(rows), width))


def serve_matrix(cells: int, models: int) -> csr_array:
    """One row for each cell: all its requests go to some model."""
    from scipy.sparse import csr_array

    size = cells * models
    return csr_array(([1.0] * size, list(range(size)), list(range(0, size + 1, models))), shape=(cells, size))


def _share_rows(problem: Problem) -> Iterator[Row]:
    width = len(problem.models)
    for kind, tier, share in (
        ("large_share", "large", problem.min_large_share),
        ("medium_share", "medium", problem.min_medium_share),
    ):
        chosen = [index for index, model in enumerate(problem.models) if model.tier in at_least(tier)]
        for quartile in sorted({int(cell["quartile"]) for cell in problem.cells}):
            mine = [index for index, cell in enumerate(problem.cells) if cell["quartile"] == quartile]
            requests = float(sum(problem.cells[index]["requests"] for index in mine))
            if share > 0:
                coefficients = {cell * width + model: -1.0 for cell in mine for model in chosen}
                yield Row(f"{kind}/quartile_{quartile}", kind, coefficients, -share * requests, requests)


def _rate_rows(problem: Problem) -> Iterator[Row]:
    width = len(problem.models)
    for index, model in enumerate(problem.models):
        limit = problem.limits.get(model.model)
        if limit is None:
            continue
        for minute in problem.busy:
            coefficients = {
                cell * width + index: tokens / float(problem.cells[cell]["requests"])
                for cell, tokens in enumerate(minute)
                if tokens and problem.fits(cell, index)
            }
            if coefficients:
                name = f"tokens_per_minute/{model.model}"
                yield Row(name, "tokens_per_minute", coefficients, float(limit), max(float(limit), 1.0))
