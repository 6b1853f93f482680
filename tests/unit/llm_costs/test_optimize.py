"""Least cost: against brute force, by duality, and named reasons where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llm_costs.errors import InfeasibleError
from examples.llm_costs.infeasible import explain
from examples.llm_costs.optimize import Problem, Solution, rows_of, solve
from examples.llm_costs.prices import Model

Make = Callable[..., Model]
SHARES = st.integers(0, 1_000_000).map(lambda millionths: millionths / 1e6)


def cell(quartile: int, requests: int, tokens: int, *, output: int = 0, longest: int | None = None) -> dict[str, Any]:
    """``requests`` requests of ``tokens`` input and ``output`` output tokens each."""
    return {
        "quartile": quartile,
        "window": None,
        "requests": requests,
        "input_tokens": requests * tokens,
        "output_tokens": requests * output,
        "longest": tokens + output if longest is None else longest,
    }


def problem(
    cells: list[dict[str, Any]],
    models: list[Model],
    *,
    busy: list[list[int]] | None = None,
    limits: Mapping[str, float | None] | None = None,
    shares: tuple[float, float] = (0.0, 0.0),
) -> Problem:
    return Problem(cells, models, busy or [], limits or {}, *shares)


def solved(of: Problem) -> Solution:
    found = solve(of)
    assert found is not None
    return found


def brute_force(of: Problem) -> float | None:
    """The least cost over whole requests, each cell split in every way there is."""
    best: float | None = None
    models = range(len(of.models))
    splits = [
        [s for s in itertools.product(range(c["requests"] + 1), repeat=len(of.models)) if sum(s) == c["requests"]]
        for c in of.cells
    ]
    for choice in itertools.product(*splits):
        flat = [amount for row in choice for amount in row]
        allowed = all(not choice[c][m] or of.fits(c, m) for c in range(len(of.cells)) for m in models)
        kept = all(
            sum(flat[column] * value for column, value in row.coefficients.items()) <= row.bound + 1e-9
            for row in rows_of(of)
        )
        if allowed and kept:
            cost = sum(choice[c][m] * of.cost(c, m) for c in range(len(of.cells)) for m in models)
            best = cost if best is None else min(best, cost)
    return best


def test_without_limits_everything_goes_to_the_cheapest_that_fits(model: Make) -> None:
    found = solved(
        problem(
            [cell(1, 10, 50), cell(4, 10, 500)], [model("dear", input_usd=5, window=1000), model("cheap", window=100)]
        )
    )
    assert found.x == [[0, 10], [10, 0]]
    assert found.usd == pytest.approx((10 * 50 * 1 + 10 * 500 * 5) / 1e6)


def test_output_counts_towards_the_window(model: Make) -> None:
    found = solved(problem([cell(1, 1, 90, output=20)], [model("a", window=100), model("b", input_usd=9, window=110)]))
    assert found.x == [[0, 1]]


def test_shares_hold_within_each_quartile(model: Make) -> None:
    models = [model("l", "large", 10), model("m", "medium", 3), model("s", "small", 1)]
    found = solved(problem([cell(1, 100, 10), cell(4, 100, 1000)], models, shares=(0.2, 0.5)))
    # Without quartiles all 40 requests for the large model would be taken from the short ones.
    assert found.x == [[20, 30, 50], [20, 30, 50]]


def test_large_models_count_towards_medium_or_larger(model: Make) -> None:
    models = [model("l", "large", 2), model("m", "medium", 3), model("s", "small", 1)]
    assert solved(problem([cell(1, 10, 10)], models, shares=(0.1, 0.5))).x == [[5, 0, 5]]


def test_rate_limit_moves_the_overflow_to_the_next_model(model: Make) -> None:
    of = problem(
        [cell(1, 100, 10)],
        [model("cheap"), model("dear", input_usd=2)],
        busy=[[200]],
        limits={"cheap": 150, "dear": None},
    )
    # 20 of the 100 requests come in the busy minute; the cheap model takes 150 of their 200 tokens.
    assert solved(of).x == [[75, 25]]


def test_every_busy_minute_is_held_against_the_limit(model: Make) -> None:
    cells = [cell(1, 10, 10), cell(4, 10, 100)]
    of = problem(
        cells, [model("cheap"), model("dear", input_usd=2)], busy=[[0, 800], [400, 100]], limits={"cheap": 400}
    )
    found = solved(of)
    # The first minute lets half of the long ones through; then the second one is too full for all the short ones.
    assert found.x[1][0] == pytest.approx(5)
    assert found.x[0][0] == pytest.approx(8.75)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.25, 0.5), (0.5, 0.5), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("window", [10, 200])
def test_agrees_with_brute_force(model: Make, shares: tuple[float, float], window: int) -> None:
    models = [model("l", "large", 7, 9), model("m", "medium", 4, 1), model("s", "small", 1, 3, window)]
    of = problem([cell(1, 4, 20, output=2), cell(4, 4, 90, output=5)], models, shares=shares)
    assert solved(of).usd == pytest.approx(brute_force(of))


@pytest.mark.parametrize("limit", [40, 80, 120, 200])
def test_agrees_with_brute_force_under_rate_limits(model: Make, limit: float) -> None:
    models = [model("l", "large", 7), model("m", "medium", 4), model("s", "small", 1)]
    # Each request is 20 tokens in its busy minute, so that the best split is one of whole requests.
    of = problem(
        [cell(1, 4, 20), cell(4, 4, 20)], models, busy=[[80, 80]], limits={"s": limit, "m": 80}, shares=(0.25, 0.25)
    )
    assert solved(of).usd == pytest.approx(brute_force(of))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    data=st.data(),
    shares=st.tuples(SHARES, SHARES),
    limit=st.one_of(st.none(), st.integers(0, 3000)),
)
def test_never_worse_than_brute_force_and_dual_to_the_cent(
    data: st.DataObject, shares: tuple[float, float], limit: float | None
) -> None:
    tiers = ("large", "medium", "small")
    models = [
        Model(
            f"m{i}",
            "test",
            tier,
            data.draw(st.floats(0, 20)),
            data.draw(st.floats(0, 20)),
            data.draw(st.sampled_from((50, 500))),
        )
        for i, tier in enumerate(tiers)
    ]
    cells = [cell(q, data.draw(st.integers(1, 4)), data.draw(st.integers(0, 200)), output=3) for q in (1, 4)]
    busy = [[data.draw(st.integers(0, c["input_tokens"] + c["output_tokens"])) for c in cells] for _ in range(2)]
    of = problem(cells, models, busy=busy, limits={"m1": limit, "m2": limit}, shares=shares)
    found, least = solve(of), brute_force(of)
    if found is None:
        assert least is None
        assert explain(of).details["constraints"]
        return
    if least is not None:
        assert found.usd <= least + 1e-9
    rows = rows_of(of)
    bounds = sum(price * c["requests"] for price, c in zip(found.serve_prices, cells, strict=True))
    bounds += sum(price * row.bound for price, row in zip(found.row_prices, rows, strict=True))
    assert found.usd == pytest.approx(bounds, rel=1e-6, abs=1e-9)
    assert all(price <= 1e-12 for price in found.row_prices)


def test_shadow_price_is_what_one_more_unit_costs(model: Make) -> None:
    models = [model("l", "large", 10), model("s", "small", 1)]
    cells = [cell(1, 100, 1000)]
    limits = {"s": 50_000.0}
    of = problem(cells, models, busy=[[100_000]], limits=limits, shares=(0.2, 0.0))
    more = problem(cells, models, busy=[[100_000]], limits={"s": 51_000.0}, shares=(0.2, 0.0))
    (price,) = (p for p, row in zip(solved(of).row_prices, rows_of(of), strict=True) if row.kind == "tokens_per_minute")
    assert solved(more).usd - solved(of).usd == pytest.approx(1000 * price)


def test_window_price_is_what_a_fitting_request_would_save(model: Make) -> None:
    found = solved(problem([cell(1, 5, 1000)], [model("wide", input_usd=5), model("narrow", window=100)]))
    assert found.window_prices == {1: pytest.approx(-1000 * 4 / 1e6)}


def reason(of: Problem) -> InfeasibleError:
    assert solve(of) is None
    return explain(of)


def test_no_large_model_names_the_large_share(model: Make) -> None:
    error = reason(problem([cell(1, 10, 10)], [model("m", "medium"), model("s")], shares=(0.2, 0.2)))
    assert error.details["constraints"] == ["large_share/quartile_1"]
    assert error.details["changes"] == [
        {"constraint": "large_share/quartile_1", "parameter": "min_large_share", "limit": 0.2, "possible": 0.0}
    ]
    assert "lower min_large_share from 0.2 to 0" in error.advice


def test_small_models_alone_name_the_medium_share_of_each_quartile(model: Make) -> None:
    error = reason(problem([cell(1, 10, 10), cell(3, 10, 20)], [model("s")], shares=(0.0, 0.5)))
    assert [change["constraint"] for change in error.details["changes"]] == [
        "medium_share/quartile_1",
        "medium_share/quartile_3",
    ]
    assert "lower min_medium_share from 0.5 to 0" in error.advice


def test_share_that_a_rate_cannot_carry_names_both(model: Make) -> None:
    models = [model("l", "large"), model("l2", "large"), model("s")]
    of = problem(
        [cell(1, 10, 100), cell(2, 10, 10)], models, busy=[[1000, 0]], limits={"l": 100, "l2": 100}, shares=(0.5, 0)
    )
    error = reason(of)
    assert error.details["constraints"] == ["large_share/quartile_1", "tokens_per_minute/l", "tokens_per_minute/l2"]
    (change,) = error.details["changes"]
    assert (change["constraint"], change["possible"]) == ("large_share/quartile_1", pytest.approx(0.2, abs=2e-4))


def test_rates_too_low_for_all_requests_name_them_and_how_much_is_needed(model: Make) -> None:
    error = reason(problem([cell(1, 10, 100)], [model("a")], busy=[[1000]], limits={"a": 400}))
    assert error.details["constraints"] == ["tokens_per_minute/a"]
    assert error.details["changes"][0]["possible"] == 1000
    assert "raise tokens_per_minute of a from 400 to 1,000" in error.advice


def test_every_constraint_that_the_remedy_changes_is_named(model: Make) -> None:
    """All rates together are too low, and after that the large models' alone are."""
    models = [model("l", "large", 3), model("s")]
    limits = {"l": 100.0, "s": 100.0}
    error = reason(problem([cell(1, 10, 100)], models, busy=[[1000]], limits=limits, shares=(1.0, 0)))
    changed = {change["constraint"] for change in error.details["changes"]}
    assert "large_share/quartile_1" in changed
    assert any(name.startswith("tokens_per_minute/") for name in changed)
    assert changed <= set(error.details["constraints"])
    assert "min_large_share" in error.advice
    assert "large_share (quartile_1)" in error.message
    assert "tokens_per_minute (" in error.message


def test_limit_missed_by_less_than_the_solver_sees_is_still_explained(model: Make) -> None:
    models = [model("l", "large", 3), model("m", "medium", 2), model("s")]
    cells, busy = [cell(1, 10, 100), cell(4, 20, 200)], [[500, 3000], [900, 2000]]
    error = reason(problem(cells, models, busy=busy, limits={"l": 0}, shares=(1e-9, 0)))
    assert error.details["constraints"]
    assert error.details["changes"][0]["possible"] == 0


def test_request_longer_than_every_window_names_the_window(model: Make) -> None:
    error = reason(
        problem([cell(1, 10, 10), cell(4, 3, 20_000)], [model("a"), model("b", window=500)], shares=(0.9, 0.9))
    )
    assert error.details["constraints"] == ["context_window"]
    assert "3 requests need up to 20,000 tokens" in error.message
    assert "10,000" in error.message


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    large=SHARES,
    medium=SHARES,
    limits=st.lists(st.one_of(st.none(), st.integers(0, 4000)), min_size=3, max_size=3),
)
def test_suggested_changes_make_it_possible(large: float, medium: float, limits: list[float | None]) -> None:
    models = [Model(f"m{i}", "test", tier, 3 - i, 1, 10_000) for i, tier in enumerate(("large", "medium", "small"))]
    cells, busy = [cell(1, 10, 100), cell(4, 20, 200)], [[500, 3000], [900, 2000]]
    of = problem(
        cells, models, busy=busy, limits={f"m{i}": limit for i, limit in enumerate(limits)}, shares=(large, medium)
    )
    if solve(of) is not None:
        return
    relaxed, shares = dict(of.limits), {"min_large_share": large, "min_medium_share": medium}
    error = explain(of)
    assert {change["constraint"] for change in error.details["changes"]} <= set(error.details["constraints"])
    for change in error.details["changes"]:
        if change["parameter"] == "tokens_per_minute":
            relaxed[change["constraint"].split("/")[1]] = change["possible"]
        else:
            shares[change["parameter"]] = min(shares[change["parameter"]], change["possible"])
    possible = (shares["min_large_share"], shares["min_medium_share"])
    assert solve(problem(cells, models, busy=busy, limits=relaxed, shares=possible)) is not None
