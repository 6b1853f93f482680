"""The parameters of these agents, read from a request and checked all at once.

What only the price table can tell (whether a model of that name exists) is checked where the table is at hand.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from carrel.errors import InvalidRequestError
from examples.llm_costs import prices
from examples.llm_costs.prices import TIERS, Model
from examples.llm_costs.sources import DEFAULT_TRACE
from examples.llm_costs.sql_guard import MAX_SQL_CHARS

__all__ = ["DEFAULT_TOKENS_PER_MINUTE", "PLAN_FIELDS", "Params"]

DEFAULT_TOKENS_PER_MINUTE: Final = 500_000.0
"""An assumption of this example, for every model: what a provider grants depends on the account."""

PLAN_FIELDS: Final = ("pipeline", "goal")
_MAX_PATH: Final = 512


@dataclass(frozen=True, slots=True)
class Params:
    """What a run is asked to calculate with.

    ``tokens_per_minute`` has limits by model name, by tier and under ``default``, the most specific wins; None means no
    limit. Shares are fractions of the requests in each quartile of context length.
    """

    trace: str
    prices: str | None
    baseline_model: str
    min_large_share: float
    min_medium_share: float
    tokens_per_minute: Mapping[str, float | None]
    question: str | None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Params:
        """The parameters in a request; what is missing has its default.

        Raises:
            InvalidRequestError: Some are unknown or wrong; ``fields`` names each and what it must be.
        """
        reader = _Reader(given)
        params = cls(
            trace=reader.text("trace", DEFAULT_TRACE, _MAX_PATH) or DEFAULT_TRACE,
            prices=reader.text("prices", None, _MAX_PATH),
            baseline_model=reader.text("baseline_model", "gpt-5", 64) or "gpt-5",
            min_large_share=reader.share("min_large_share", 0.2),
            min_medium_share=reader.share("min_medium_share", 0.5),
            tokens_per_minute=reader.limits("tokens_per_minute"),
            question=reader.text("question", None, MAX_SQL_CHARS),
        )
        reader.finish(tuple(cls.__dataclass_fields__))
        return params

    def limits(self, models: Sequence[Model]) -> dict[str, float | None]:
        """Tokens per minute for each model.

        Raises:
            InvalidRequestError: A limit is for a model that the price table does not have.
        """
        limits = self.tokens_per_minute
        for name in limits:
            if name != "default" and name not in TIERS:
                prices.find(models, name, "tokens_per_minute")
        default = limits.get("default", DEFAULT_TOKENS_PER_MINUTE)
        return {model.model: limits.get(model.model, limits.get(model.tier, default)) for model in models}


class _Reader:
    """Takes parameters out of a mapping and collects what is wrong with them."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._wrong: dict[str, str] = {}

    def text(self, name: str, default: str | None, longest: int) -> str | None:
        value = self._given.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip() or len(value) > longest:
            self._wrong[name] = f"must be text of 1 to {longest} characters"
            return default
        return value.strip()

    def share(self, name: str, default: float) -> float:
        value = self._given.get(name)
        if value is None:
            return default
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            self._wrong[name] = "must be a fraction from 0 to 1, for example 0.2 for a fifth"
            return default
        # What is finer than this is beneath the solver's tolerance.
        return round(number, 6)

    def limits(self, name: str) -> dict[str, float | None]:
        value = self._given.get(name)
        if value is None:
            return {}
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                return self._wrong_limits(name)
        entries = value if isinstance(value, Mapping) else {"default": value}
        found: dict[str, float | None] = {}
        for model, limit in entries.items():
            number = None if limit is None else _number(limit)
            if limit is not None and (number is None or number < 0):
                return self._wrong_limits(name)
            found[str(model)] = number
        return found

    def _wrong_limits(self, name: str) -> dict[str, float | None]:
        self._wrong[name] = (
            "must be a number of tokens from 0 for all models, or a map such as "
            '{"default": 500000, "large": 200000, "gpt-5-nano": null} (null: no limit)'
        )
        return {}

    def finish(self, known: Sequence[str]) -> None:
        for name in self._given:
            if name not in known and name not in PLAN_FIELDS:
                near = difflib.get_close_matches(str(name), known, n=1)
                self._wrong[str(name)[:64]] = "is not a parameter" + (f"; did you mean {near[0]}?" if near else "")
        if self._wrong:
            raise InvalidRequestError(
                "; ".join(f"{name} {problem}" for name, problem in self._wrong.items()),
                advice=f"parameters are {', '.join((*known, *PLAN_FIELDS))}",
                fields=self._wrong,
            )


def _number(value: object) -> float | None:
    """A finite number, also when it came as text, as it does from a command line."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
