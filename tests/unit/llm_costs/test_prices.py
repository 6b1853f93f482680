"""The price table: the packaged one, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.errors import InvalidRequestError
from examples.llm_costs import prices
from examples.llm_costs.errors import MalformedCsvError

HEADER = "model,provider,tier,input_usd_per_million_tokens,output_usd_per_million_tokens,max_input_tokens\n"
GOOD = "m,p,small,1,2,1000\n"


def test_packaged_table_has_every_tier() -> None:
    models = prices.load(None)
    assert len(models) == 17
    assert {model.tier for model in models} == set(prices.TIERS)
    gpt = prices.find(models, "gpt-5", "baseline_model")
    assert (gpt.input_usd, gpt.output_usd, gpt.max_input_tokens) == (1.25, 10.0, 272_000)


def test_source_and_date_of_the_packaged_table_are_kept() -> None:
    readme = (Path(prices.__file__).parent / "data" / "README.md").read_text(encoding="utf-8")
    assert "litellm 1.109.1" in readme
    assert "2026" in readme


def test_table_of_ones_own_is_read_from_the_data_folder(data_dir: Path) -> None:
    (data_dir / "p.csv").write_text(HEADER + GOOD, encoding="utf-8")
    (model,) = prices.load("p.csv")
    assert model.cost(1e6, 1e6) == 3.0


def test_table_survives_json_with_whole_numbers_as_floats() -> None:
    rows = [model.to_json() | {"max_input_tokens": float(model.max_input_tokens)} for model in prices.load(None)]
    assert prices.from_json(rows) == prices.load(None)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("m|x,p,small,1,2,1000", "model"),
        ("n,,small,1,2,1000", "provider"),
        ("n,p,huge,1,2,1000", "tier"),
        ("n,p,small,-1,2,1000", "input_usd_per_million_tokens"),
        ("n,p,small,1,nan,1000", "output_usd_per_million_tokens"),
        ("n,p,small,1,2,0", "max_input_tokens"),
        ("m,p,small,1,2,1000", "model"),
    ],
)
def test_wrong_row_names_line_and_column(row: str, column: str) -> None:
    with pytest.raises(MalformedCsvError) as caught:
        prices.parse("p.csv", HEADER + GOOD + row + "\n")
    assert (caught.value.details["line"], caught.value.details["column"]) == (3, column)


def test_empty_and_endless_tables_are_refused() -> None:
    with pytest.raises(MalformedCsvError, match="at least one model"):
        prices.parse("p.csv", HEADER)
    with pytest.raises(MalformedCsvError, match="at most 64 models"):
        prices.parse("p.csv", HEADER + "".join(f"m{i},p,small,1,2,1000\n" for i in range(65)))


def test_unknown_model_is_answered_with_close_ones() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        prices.find(prices.load(None), "gpt5", "baseline_model")
    assert "gpt-5" in caught.value.advice
    assert "baseline_model" in caught.value.fields
