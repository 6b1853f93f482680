"""Charts and Markdown: the same bytes for the same numbers, and nothing a name could break."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from examples.llm_costs import charts, markdown, prices, traces
from examples.llm_costs.params import Params
from examples.llm_costs.plan import least_cost
from examples.llm_costs.profile import profile
from examples.llm_costs.sources import DEFAULT_TRACE

Stages = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def stages() -> Stages:
    data = profile(traces.load(DEFAULT_TRACE), prices.load(None))
    data["load"] = {
        "start": "2026-01-05T09:00:00Z",
        "bucket_minutes": 1,
        "requests": [3, 0, 5],
        "input_tokens": [3000, 0, 5000],
        "output_tokens": [30, 0, 50],
    }
    return data, least_cost(data, Params.parse({}))


def test_charts_are_svg_with_letters_as_paths(stages: Stages) -> None:
    drawn = charts.render(*stages)
    assert set(drawn) == {"cost_by_model.svg", "load_over_time.svg", "assignment.svg"}
    for svg in drawn.values():
        root = ET.fromstring(svg)
        assert not list(root.iter("{http://www.w3.org/2000/svg}text"))
        assert len(svg) < 200_000


def test_same_numbers_give_the_same_bytes_from_any_thread(stages: Stages) -> None:
    drawn: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: drawn.append(charts.render(*stages))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn[0] == drawn[1] == drawn[2]


def test_drawing_leaves_the_settings_of_the_process_alone(stages: Stages) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    charts.render(*stages)
    assert dict(mpl.rcParams) == before


def test_chart_of_days_has_dates_and_whole_numbers_as_floats_do_not_matter(stages: Stages) -> None:
    data, optimization = stages
    load = {
        "start": "2026-01-05T09:00:00Z",
        "bucket_minutes": 60.0,
        "requests": [1.0] * 72,
        "input_tokens": [3e6] * 72,
        "output_tokens": [0.0] * 72,
    }
    assert charts.render({**data, "load": load}, optimization)["load_over_time.svg"]


def test_report_has_the_figures(stages: Stages) -> None:
    text = markdown.write(*stages)
    assert "2,000 requests" in text
    assert "**synthetic**" in text
    assert "| **gpt-5** | large | 6.54 | 5,030 | 0 |" in text
    assert "| gpt-5-nano | small | 1,000 | 0.13 | 347,566 | 500,000 |" in text
    assert "large_share/quartile_4" in text


def test_trace_of_ones_own_is_not_called_synthetic_and_its_name_breaks_nothing(stages: Stages) -> None:
    data, optimization = stages
    named = {**data, "trace": {**data["trace"], "name": "a`b\n# x.csv"}}
    text = markdown.write(named, optimization)
    assert "`a?b?# x.csv`" in text
    assert "synthetic" not in text


def test_free_limits_and_requests_over_the_window_are_told(stages: Stages) -> None:
    data, _ = stages
    free = least_cost(data, Params.parse({"min_large_share": 0, "min_medium_share": 0, "tokens_per_minute": "1e9"}))
    text = markdown.write(data, {**free, "baseline_over_window": 12, "peak_complete": False})
    assert "No limit costs anything" in text
    assert "up to 12 requests are longer than the window of gpt-5" in text
    assert "Only the busiest minutes" in text
