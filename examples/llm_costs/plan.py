"""Puts a solved problem into the words of the user: assignment, costs before and after, prices of the constraints.

The mathematics is in ``optimize``; here are JSON results only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from examples.llm_costs import prices
from examples.llm_costs.infeasible import explain
from examples.llm_costs.optimize import Problem, Solution, solve
from examples.llm_costs.params import Params
from examples.llm_costs.prices import Model

__all__ = ["least_cost"]

_UNITS = {
    "large_share": "USD per request more that must go to a large model",
    "medium_share": "USD per request more that must go to a medium or large model",
    "tokens_per_minute": "USD per token a minute more",
    "serve": "USD per request more",
    "context_window": "USD per request more that fits this model",
}


def least_cost(data: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """The cheapest assignment for the data stage's result.

    Raises:
        InfeasibleError: There is none; it names the constraints and what would have to give.
        InvalidRequestError: The baseline or a limit names a model that the price table does not have.
    """
    models = prices.from_json(data["models"])
    baseline = prices.find(models, params.baseline_model, "baseline_model")
    problem = Problem(
        cells=data["cells"],
        models=models,
        busy=data["busy_minutes"]["tokens"],
        limits=params.limits(models),
        min_large_share=params.min_large_share,
        min_medium_share=params.min_medium_share,
    )
    solution = solve(problem)
    if solution is None:
        raise explain(problem)
    before = baseline.cost(float(data["trace"]["input_tokens"]), float(data["trace"]["output_tokens"]))
    constraints = _constraints(problem, solution)
    return {
        "status": "optimal",
        "baseline_model": baseline.model,
        **_money(before, solution.usd, float(data["trace"]["monthly_factor"])),
        "baseline_over_window": sum(
            int(cell["requests"]) for cell in problem.cells if int(cell["longest"]) > baseline.max_input_tokens
        ),
        "models": _by_model(problem, solution, baseline, before),
        "assignment": _assignment(problem, solution),
        "constraints": constraints,
        "duality_gap_usd": solution.usd - sum(row["shadow_price_usd"] * row["bound"] for row in constraints),
        "peak_complete": bool(data["busy_minutes"]["complete"]),
        "limits": {"min_large_share": params.min_large_share, "min_medium_share": params.min_medium_share},
    }


def _money(before: float, after: float, monthly_factor: float) -> dict[str, dict[str, float]]:
    saved = before - after
    return {
        "cost_before": {"usd": before, "usd_per_month": before * monthly_factor},
        "cost_after": {"usd": after, "usd_per_month": after * monthly_factor},
        "savings": {
            "usd": saved,
            "usd_per_month": saved * monthly_factor,
            "percent": 100 * saved / before if before else 0.0,
        },
    }


def _assignment(problem: Problem, solution: Solution) -> list[dict[str, Any]]:
    rows = []
    for index, cell in enumerate(problem.cells):
        requests = float(cell["requests"])
        for place, model in enumerate(problem.models):
            amount = solution.x[index][place]
            if amount > requests * 1e-9:
                rows.append(
                    {
                        "quartile": int(cell["quartile"]),
                        "window": cell["window"],
                        "model": model.model,
                        "tier": model.tier,
                        "requests": round(amount, 3),
                        "share": round(amount / requests, 6),
                        "usd": amount * problem.cost(index, place),
                    }
                )
    return rows


def _by_model(problem: Problem, solution: Solution, baseline: Model, before: float) -> list[dict[str, Any]]:
    """Every model that serves something before or after; the costliest before, then after, first."""
    rows = []
    cells = range(len(problem.cells))
    for place, model in enumerate(problem.models):
        requests = sum(solution.x[cell][place] for cell in cells)
        if requests > 1e-6 or model is baseline:
            rows.append(
                {
                    "model": model.model,
                    "tier": model.tier,
                    "requests": round(requests, 3),
                    "usd_before": before if model is baseline else 0.0,
                    "usd_after": sum(solution.x[cell][place] * problem.cost(cell, place) for cell in cells),
                    "peak_tokens_per_minute": round(_peak(problem, solution, place)),
                    "tokens_per_minute": problem.limits.get(model.model),
                }
            )
    return sorted(rows, key=lambda row: (-row["usd_before"], -row["usd_after"]))


def _peak(problem: Problem, solution: Solution, place: int) -> float:
    served = [solution.x[index][place] / float(cell["requests"]) for index, cell in enumerate(problem.cells)]
    return max((_dot(served, minute) for minute in problem.busy), default=0.0)


def _constraints(problem: Problem, solution: Solution) -> list[dict[str, Any]]:
    """Each constraint with bound, use and shadow price; prices times bounds add up to the cost."""
    rows = [
        _constraint(
            f"serve/quartile_{cell['quartile']}" + (f"/window_{cell['window']}" if _windows_differ(problem) else ""),
            "serve",
            float(cell["requests"]),
            float(cell["requests"]),
            solution.serve_prices[index],
        )
        for index, cell in enumerate(problem.cells)
    ]
    flat = [value for row in solution.x for value in row]
    by_name: dict[str, dict[str, Any]] = {}
    for row, price in zip(solution.rows, solution.row_prices, strict=True):
        used = sum(flat[column] * value for column, value in row.coefficients.items())
        # Shares are solved as -Σx ≤ -bound; users meet them as "at least".
        sign = 1.0 if row.kind == "tokens_per_minute" else -1.0
        entry = _constraint(row.name, row.kind, sign * row.bound, sign * used, sign * price)
        known = by_name.setdefault(row.name, entry)
        if known is not entry:
            # The minutes of one model's rate limit share their bound, so their prices add up to that of the limit.
            known["used"] = max(known["used"], entry["used"])
            known["shadow_price_usd"] += entry["shadow_price_usd"]
            known["binding"] = known["binding"] or entry["binding"]
    rows += by_name.values()
    rows += [
        _constraint(f"context_window/{problem.models[model].model}", "context_window", 0.0, 0.0, price)
        for model, price in sorted(solution.window_prices.items())
    ]
    return rows


def _constraint(name: str, kind: str, bound: float, used: float, price: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "bound": bound,
        "used": round(used, 3),
        "binding": abs(used - bound) <= 1e-6 * max(abs(bound), 1.0),
        # -0.0 reads badly in a table.
        "shadow_price_usd": price + 0.0,
        "unit": _UNITS[kind],
    }


def _windows_differ(problem: Problem) -> bool:
    return len({cell["quartile"] for cell in problem.cells}) < len(problem.cells)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
