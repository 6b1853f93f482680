"""What a trace says: figures of the synthetic sample, of the real trace, and of small ones worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from examples.llm_costs import prices, traces
from examples.llm_costs.prices import Model
from examples.llm_costs.profile import MAX_BUSY_MINUTES, profile
from examples.llm_costs.sources import DEFAULT_TRACE

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_real_trace_costs_25_usd_on_gpt_5(real_trace: str) -> None:
    found = profile(traces.load(real_trace), prices.load(None))
    facts = found["trace"]
    assert (facts["requests"], facts["input_tokens"], facts["output_tokens"]) == (8819, 18_059_974, 245_896)
    costs = {row["model"]: row["usd"] for row in found["costs"]}
    assert costs["gpt-5"] == pytest.approx(25.0339275)
    assert costs["gpt-5-nano"] == pytest.approx(1.0013571)
    assert found["peak_minute"] == {"start": "2023-11-16T18:31:00Z", "tokens": 1_257_868, "requests": 585}
    assert found["distributions"]["context_tokens"]["p50"] == 1469
    assert found["distributions"]["generated_tokens"]["max"] == 1899
    assert [cell["requests"] for cell in found["cells"]] == [2208, 2208, 2198, 2205]


def test_synthetic_sample_has_its_own_figures() -> None:
    found = profile(traces.load(DEFAULT_TRACE), prices.load(None))
    facts = found["trace"]
    assert (facts["requests"], facts["input_tokens"], facts["output_tokens"]) == (2000, 4_836_086, 49_221)
    costs = {row["model"]: row for row in found["costs"]}
    assert costs["gpt-5"]["usd"] == pytest.approx(6.5373175)
    assert costs["gpt-5"]["usd_per_month"] == pytest.approx(6.5373175 * 730.5 * 3600 / 3418.177, rel=1e-6)
    assert found["distributions"]["context_tokens"] == {
        "mean": 2418.043,
        "min": 20,
        "p25": 675,
        "p50": 1581,
        "p75": 3440.5,
        "p90": 6602.3,
        "p99": 7840,
        "max": 7900,
    }
    assert found["peak_minute"] == {"start": "2026-01-05T09:55:00Z", "tokens": 695_132, "requests": 269}
    assert len(json.dumps(found)) < 8 * 1024


def test_costs_are_sorted_and_count_requests_over_the_window(model: Callable[..., Model]) -> None:
    trace = traces.parse("t", HEADER + "2024-01-01 00:00:00,90,10\n2024-01-01 00:00:30,91,10\n")
    found = profile(trace, [model("dear", input_usd=9, window=100), model("cheap", window=1000)])
    assert [(row["model"], row["requests_over_window"]) for row in found["costs"]] == [("cheap", 0), ("dear", 1)]
    assert found["trace"]["duration_s"] == 60.0  # never a rate from less than a minute


def test_cells_are_quartiles_by_window_needed(model: Callable[..., Model]) -> None:
    rows = "".join(f"2024-01-01 00:00:00,{tokens},1\n" for tokens in (1, 2, 3, 4, 5, 6, 7, 100))
    found = profile(traces.parse("t", HEADER + rows), [model("a", window=50), model("b", window=8)])
    cells = [(cell["quartile"], cell["window"], cell["requests"], cell["longest"]) for cell in found["cells"]]
    assert cells == [(1, 8, 2, 3), (2, 8, 2, 5), (3, 8, 2, 7), (4, 8, 1, 8), (4, None, 1, 101)]
    assert sum(cell["input_tokens"] for cell in found["cells"]) == 128


def test_equal_requests_are_one_cell(model: Callable[..., Model]) -> None:
    found = profile(traces.parse("t", HEADER + "2024-01-01 00:00:00,5,1\n" * 8), [model("a")])
    assert [(cell["quartile"], cell["requests"]) for cell in found["cells"]] == [(1, 8)]


def test_minutes_that_another_outdoes_in_every_cell_are_left_out(model: Callable[..., Model]) -> None:
    rows = ["00:00:00,1,0", "00:00:01,9,0", "00:01:00,1,0", "00:02:00,9,0", "00:02:01,9,0", "00:03:00,1,0"]
    found = profile(traces.parse("t", HEADER + "".join(f"2024-01-01 {row}\n" for row in rows)), [model("a")])
    assert found["busy_minutes"] == {"tokens": [[0, 18], [1, 9]], "complete": True}


def test_busy_minutes_are_bounded_and_say_so(model: Callable[..., Model]) -> None:
    # Minute i has 100 - i short requests and i long ones: no minute outdoes another.
    rows = "".join(
        f"2024-01-01 {i // 60:02}:{i % 60:02}:00,{tokens},0\n"
        for i in range(1, 100)
        for tokens in [1] * (100 - i) + [9] * i
    )
    busy = profile(traces.parse("t", HEADER + rows), [model("a")])["busy_minutes"]
    assert (len(busy["tokens"]), busy["complete"]) == (MAX_BUSY_MINUTES, False)
