"""Parameters: defaults, forms, and every wrong one at once."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errors import InvalidRequestError
from examples.llm_costs import prices
from examples.llm_costs.params import DEFAULT_TOKENS_PER_MINUTE, Params
from examples.llm_costs.sources import DEFAULT_TRACE


def test_nothing_given_means_the_sample_and_the_defaults() -> None:
    params = Params.parse({"goal": "report", "pipeline": None})
    assert (params.trace, params.prices, params.baseline_model) == (DEFAULT_TRACE, None, "gpt-5")
    assert (params.min_large_share, params.min_medium_share) == (0.2, 0.5)
    assert set(params.limits(prices.load(None)).values()) == {DEFAULT_TOKENS_PER_MINUTE}


def test_numbers_may_come_as_text_from_a_command_line() -> None:
    params = Params.parse({"min_large_share": "0.3", "min_medium_share": 1, "tokens_per_minute": "250000"})
    assert (params.min_large_share, params.min_medium_share) == (0.3, 1.0)
    assert params.tokens_per_minute == {"default": 250_000.0}


@pytest.mark.parametrize("as_text", [False, True])
def test_most_specific_limit_wins(as_text: bool) -> None:
    given: Any = {"default": 10, "large": 5, "gpt-5": None}
    limits = Params.parse(
        {"tokens_per_minute": '{"default": 10, "large": 5, "gpt-5": null}' if as_text else given}
    ).limits(prices.load(None))
    assert (limits["gpt-5"], limits["gpt-4o"], limits["gpt-5-nano"]) == (None, 5.0, 10.0)


def test_limit_for_an_unknown_model_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no model 'gpt-9'"):
        Params.parse({"tokens_per_minute": {"gpt-9": 1}}).limits(prices.load(None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trace", 5),
        ("trace", " "),
        ("trace", "x" * 513),
        ("prices", ["a"]),
        ("baseline_model", ""),
        ("min_large_share", 1.2),
        ("min_large_share", -0.1),
        ("min_large_share", "many"),
        ("min_medium_share", True),
        ("min_medium_share", float("nan")),
        ("tokens_per_minute", -1),
        ("tokens_per_minute", "many"),
        ("tokens_per_minute", "{broken"),
        ("tokens_per_minute", {"gpt-5": "x"}),
        ("tokens_per_minute", [1]),
        ("question", 7),
        ("question", "x" * 10_001),
    ],
)
def test_wrong_value_is_named_with_what_it_must_be(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Params.parse({name: value})
    assert list(caught.value.fields) == [name]
    assert caught.value.fields[name].startswith("must be")


def test_all_wrong_ones_are_reported_at_once_and_typos_are_recognized() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Params.parse({"min_large_shar": 0.1, "trace": 1, "min_medium_share": 2})
    assert set(caught.value.fields) == {"min_large_shar", "trace", "min_medium_share"}
    assert "did you mean min_large_share" in caught.value.message
