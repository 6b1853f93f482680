"""The optimization stage's result: figures of both traces, and prices that add up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carrel.errors import InvalidRequestError
from examples.llm_costs import prices, traces
from examples.llm_costs.errors import InfeasibleError
from examples.llm_costs.params import Params
from examples.llm_costs.plan import least_cost
from examples.llm_costs.profile import profile
from examples.llm_costs.sources import DEFAULT_TRACE


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return profile(traces.load(DEFAULT_TRACE), prices.load(None))


def check(found: dict[str, Any]) -> None:
    """What holds of every plan."""
    assert found["cost_after"]["usd"] == pytest.approx(sum(row["usd"] for row in found["assignment"]))
    assert found["cost_after"]["usd"] == pytest.approx(sum(row["usd_after"] for row in found["models"]))
    priced = sum(row["shadow_price_usd"] * row["bound"] for row in found["constraints"])
    assert found["cost_after"]["usd"] == pytest.approx(priced)
    assert abs(found["duality_gap_usd"]) < 1e-9
    for row in found["constraints"]:
        slack = row["bound"] - row["used"]
        assert row["binding"] or row["shadow_price_usd"] == pytest.approx(0, abs=1e-12)
        assert {"large_share": slack <= 1e-3, "medium_share": slack <= 1e-3, "tokens_per_minute": slack >= -1e-3}.get(
            row["kind"], True
        )
    assert len(json.dumps(found)) < 16 * 1024


def test_synthetic_sample_at_least_cost(sample: dict[str, Any]) -> None:
    found = least_cost(sample, Params.parse({}))
    check(found)
    assert found["cost_before"]["usd"] == pytest.approx(6.5373175)
    assert found["cost_after"]["usd"] == pytest.approx(1.016149936)
    assert found["savings"]["percent"] == pytest.approx(84.456, abs=1e-3)
    assert found["models"][0]["model"] == "gpt-5"
    assert len(found["constraints"]) == 4 + 8 + 17


def test_real_trace_at_least_cost_has_a_binding_rate(real_trace: str) -> None:
    found = least_cost(profile(traces.load(real_trace), prices.load(None)), Params.parse({}))
    check(found)
    assert found["cost_before"]["usd"] == pytest.approx(25.0339275)
    assert found["cost_after"]["usd"] == pytest.approx(3.9329007540)
    (rate,) = (r for r in found["constraints"] if r["kind"] == "tokens_per_minute" and r["binding"])
    assert rate["name"] == "tokens_per_minute/gpt-5-nano"
    assert rate["shadow_price_usd"] == pytest.approx(-6.406875e-7)


@pytest.mark.parametrize(
    "params",
    [
        {"min_large_share": 0, "min_medium_share": 0, "tokens_per_minute": None},
        {"min_large_share": 1},
        {"tokens_per_minute": 60_000},
        {"tokens_per_minute": {"default": None, "small": 1000}},
        {"baseline_model": "claude-opus-4-5", "min_large_share": 0.05},
    ],
)
def test_other_parameters_keep_the_books_in_order(sample: dict[str, Any], params: dict[str, Any]) -> None:
    check(least_cost(sample, Params.parse(params)))


def test_without_shares_and_limits_the_cheapest_model_serves_all(sample: dict[str, Any]) -> None:
    params = {"min_large_share": 0, "min_medium_share": 0, "tokens_per_minute": {"default": None}}
    found = least_cost(sample, Params.parse(params))
    assert found["cost_after"]["usd"] == pytest.approx(sample["costs"][0]["usd"])
    assert {row["model"] for row in found["assignment"]} == {"gpt-5-nano"}
    assert {row["kind"] for row in found["constraints"]} == {"serve"}


def test_impossible_limits_are_named(sample: dict[str, Any]) -> None:
    with pytest.raises(InfeasibleError) as caught:
        least_cost(sample, Params.parse({"tokens_per_minute": {"large": 0, "default": None}}))
    assert {name.split("/")[0] for name in caught.value.details["constraints"]} == {"large_share", "tokens_per_minute"}
    assert "min_large_share" in caught.value.advice
    assert len(json.dumps(caught.value.to_dict())) < 8 * 1024


def test_a_remedy_and_the_conflict_name_the_same_limits(sample: dict[str, Any]) -> None:
    with pytest.raises(InfeasibleError) as caught:
        least_cost(sample, Params.parse({"tokens_per_minute": 1000, "min_large_share": 1}))
    error = caught.value
    assert "min_large_share" in error.advice
    assert "tokens_per_minute" in error.advice
    assert "large_share (" in error.message
    assert "tokens_per_minute (" in error.message
    assert {change["constraint"] for change in error.details["changes"]} <= set(error.details["constraints"])
    assert len(json.dumps(error.to_dict())) < 8 * 1024


def test_unknown_baseline_is_refused(sample: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="baseline_model"):
        least_cost(sample, Params.parse({"baseline_model": "gpt-6"}))
