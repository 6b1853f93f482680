"""Writes the report's Markdown from the results of the data and optimization stages.

Charts are referred to by file name, so the files of one run, saved in one folder, make a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from examples.llm_costs.sources import SAMPLE_PREFIX

__all__ = ["summary", "write"]


def summary(data: Mapping[str, Any], optimization: Mapping[str, Any]) -> str:
    """The outcome in two sentences."""
    before, after, saved = (optimization[name] for name in ("cost_before", "cost_after", "savings"))
    return (
        f"The {_count(data['trace']['requests'])} requests of the trace cost {_usd(before['usd'])} on "
        f"{optimization['baseline_model']} and {_usd(after['usd'])} at least cost within the limits: "
        f"{float(saved['percent']):.1f} % less. At this rate that is {_usd(before['usd_per_month'])} against "
        f"{_usd(after['usd_per_month'])} a month."
    )


def write(data: Mapping[str, Any], optimization: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [
        "# What serving these requests costs, and what it could cost",
        summary(data, optimization),
        *_trace(data),
        *_costs(data, optimization),
        *_assignment(optimization),
        *_constraints(optimization),
        *_method(data, optimization),
    ]
    return "\n\n".join(parts) + "\n"


def _trace(data: Mapping[str, Any]) -> list[str]:
    facts, peak = data["trace"], data["peak_minute"]
    name = _code(str(facts["name"]))
    synthetic = " (**synthetic**: made up, not measured)" if str(facts["name"]).startswith(SAMPLE_PREFIX) else ""
    distributions = data["distributions"]
    points = ("mean", "p50", "p90", "p99", "max")
    return [
        "## The requests",
        (
            f"Trace {name}{synthetic}: {_count(facts['requests'])} requests from {facts['first']} to {facts['last']}, "
            f"{_count(facts['input_tokens'])} input and {_count(facts['output_tokens'])} output tokens. "
            f"The busiest minute, {peak['start']}, has {_count(peak['requests'])} requests and "
            f"{_count(peak['tokens'])} tokens."
        ),
        _table(
            ("tokens per request", *points),
            [
                (label, *(f"{float(distributions[key][point]):,.0f}" for point in points))
                for label, key in (("context", "context_tokens"), ("generated", "generated_tokens"))
            ],
        ),
        "![Tokens and requests over time](load_over_time.svg)",
    ]


def _costs(data: Mapping[str, Any], optimization: Mapping[str, Any]) -> list[str]:
    parts = [
        "## Cost",
        "![Cost by model, before and after](cost_by_model.svg)",
        "Everything on one model would cost:",
        _table(
            ("model", "tier", "trace, USD", "month, USD", "requests over its window"),
            [
                (
                    _bold(str(row["model"]), row["model"] == optimization["baseline_model"]),
                    row["tier"],
                    f"{float(row['usd']):,.2f}",
                    f"{float(row['usd_per_month']):,.0f}",
                    _count(row["requests_over_window"]),
                )
                for row in data["costs"]
            ],
        ),
    ]
    if over := int(optimization["baseline_over_window"]):
        parts.append(
            f"**Mind:** up to {_count(over)} requests are longer than the window of {optimization['baseline_model']}; "
            "the cost before counts them as if they fitted."
        )
    return parts


def _assignment(optimization: Mapping[str, Any]) -> list[str]:
    return [
        "## Assignment at least cost",
        "![Share of requests by model and quartile of context length](assignment.svg)",
        _table(
            ("model", "tier", "requests", "USD", "tokens in its busiest minute", "limit"),
            [
                (
                    row["model"],
                    row["tier"],
                    f"{float(row['requests']):,.0f}",
                    f"{float(row['usd_after']):,.2f}",
                    _count(row["peak_tokens_per_minute"]),
                    "none" if row["tokens_per_minute"] is None else _count(row["tokens_per_minute"]),
                )
                for row in optimization["models"]
                if float(row["requests"]) > 0
            ],
        ),
    ]


def _constraints(optimization: Mapping[str, Any]) -> list[str]:
    binding = [
        row for row in optimization["constraints"] if row["kind"] != "serve" and abs(row["shadow_price_usd"]) > 1e-15
    ]
    intro = (
        "A shadow price says by how much the cost of the trace changes when a limit moves by one unit; "
        "limits that are not listed cost nothing at present."
    )
    if not binding:
        return ["## What the limits cost", "No limit costs anything: every request goes to the cheapest model."]
    rows = [
        (row["name"], f"{float(row['bound']):,.0f}", f"{float(row['shadow_price_usd']):.3g}", row["unit"])
        for row in binding
    ]
    return ["## What the limits cost", intro, _table(("constraint", "bound", "shadow price", "unit"), rows)]


def _method(data: Mapping[str, Any], optimization: Mapping[str, Any]) -> list[str]:
    limits = optimization["limits"]
    lines = [
        "List prices, without discounts for caching, batches or volume; the packaged table is dated in its README.",
        "A month is the trace's rate kept up for 730.5 hours; one trace says little of nights and weekends.",
        (
            "Least cost by linear programming (HiGHS): in each quartile of context length at least "
            f"{float(limits['min_large_share']):.0%} of requests on large and "
            f"{float(limits['min_medium_share']):.0%} on medium or large models, each request within the model's "
            "context window, and each model within its tokens per minute in every minute of the trace."
        ),
        "Sizes are a coarse stand-in for quality: try a cheaper model on your own requests before you move them.",
    ]
    if not optimization["peak_complete"]:
        lines.append("Only the busiest minutes were held against the limits; the trace has too many different ones.")
    return ["## How this was calculated", "\n".join(f"- {line}" for line in lines)]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    # The first column holds names, the others numbers or short words.
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(value) for value in line)} |" for line in lines)


def _code(text: str) -> str:
    return "`" + "".join(c if c.isprintable() and c != "`" else "?" for c in text) + "`"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _count(value: Any) -> str:
    return f"{round(float(value)):,}"


def _usd(value: Any) -> str:
    return f"{float(value):,.2f} USD"
