"""The price table: what a million tokens cost on each model, how long a request it takes, and how large it is.

Prices are data (``data/model_prices.csv``, source and date in the README beside it), not knowledge of this module.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from carrel.errors import InvalidRequestError
from examples.llm_costs.errors import MalformedCsvError
from examples.llm_costs.sources import read_text
from examples.llm_costs.traces import csv_rows

__all__ = ["MAX_MODELS", "TIERS", "Model", "find", "from_json", "load", "parse"]

TIERS: Final = ("small", "medium", "large")
MAX_MODELS: Final = 64
PACKAGED: Final = "data/model_prices.csv"
_COLUMNS: Final = (
    "model",
    "provider",
    "tier",
    "input_usd_per_million_tokens",
    "output_usd_per_million_tokens",
    "max_input_tokens",
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}")
_MAX_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the price table. Prices in USD per million tokens; ``tier`` is one of TIERS."""

    model: str
    provider: str
    tier: str
    input_usd: float
    output_usd: float
    max_input_tokens: int

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """USD for so many tokens at list price."""
        return (input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; ``from_json`` reads it back."""
        return asdict(self)


def load(path: str | None) -> tuple[Model, ...]:
    """The table at ``path`` (see ``sources.read_text``), or the packaged one for None.

    Raises:
        DataPathError: The path is not one that may be read.
        MalformedCsvError: A line is not what it should be.
    """
    return _packaged() if path is None else parse(path, read_text(path, max_bytes=_MAX_BYTES))


def parse(name: str, text: str) -> tuple[Model, ...]:
    """The table in ``text``; ``name`` is what errors call it."""
    models: dict[str, Model] = {}
    for line, row in csv_rows(name, text, _COLUMNS):
        model = _model(name, line, row)
        if model.model in models:
            raise MalformedCsvError(name, line, "model", "each model once", model.model)
        models[model.model] = model
        if len(models) > MAX_MODELS:
            raise MalformedCsvError(name, line, "model", f"at most {MAX_MODELS} models", model.model)
    if not models:
        raise MalformedCsvError(name, 2, "model", "at least one model below the header", "")
    return tuple(models.values())


def from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[Model, ...]:
    """The table as an earlier stage's result holds it."""
    # Numbers are converted back: on the way between stages whole ones may have become floats, or the reverse.
    return tuple(
        Model(
            str(row["model"]),
            str(row["provider"]),
            str(row["tier"]),
            float(row["input_usd"]),
            float(row["output_usd"]),
            int(row["max_input_tokens"]),
        )
        for row in rows
    )


def find(models: Iterable[Model], name: str, field: str) -> Model:
    """The model called ``name``.

    Raises:
        InvalidRequestError: There is none; ``field`` is the parameter to blame, and the advice names close matches.
    """
    known = {model.model: model for model in models}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
    raise InvalidRequestError(
        f"{field}: the price table has no model {name!r}",
        advice=f"use one of its models, for example {', '.join(near)}",
        fields={field: f"unknown model {name!r}"},
    )


@functools.cache
def _packaged() -> tuple[Model, ...]:
    return parse("the packaged price table", (Path(__file__).parent / PACKAGED).read_text(encoding="utf-8"))


def _model(name: str, line: int, row: list[str]) -> Model:
    label, provider, tier, input_usd, output_usd, window = row
    for column, value in (("model", label), ("provider", provider)):
        if not _NAME.fullmatch(value):
            raise MalformedCsvError(name, line, column, "a name of 1 to 64 letters, digits and . _ : / @ -", value)
    if tier not in TIERS:
        raise MalformedCsvError(name, line, "tier", f"one of {', '.join(TIERS)}", tier)
    if not (window.isascii() and window.isdigit() and 0 < len(window) <= 9 and int(window) > 0):
        raise MalformedCsvError(name, line, "max_input_tokens", "a whole number of tokens above 0", window)
    prices = [_price(name, line, *pair) for pair in zip(_COLUMNS[3:5], (input_usd, output_usd), strict=True)]
    return Model(label, provider, tier, prices[0], prices[1], int(window))


def _price(name: str, line: int, column: str, value: str) -> float:
    try:
        price = float(value)
    except ValueError:
        price = math.nan
    if not 0 <= price <= 1e6:
        raise MalformedCsvError(name, line, column, "a price in USD from 0 to 1,000,000", value)
    return price
