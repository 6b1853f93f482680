"""Figures as people read them: percentiles, and a table with the target beside each figure that has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["TARGETS", "percentile", "table"]

# What the project wants to reach: (case, metric) -> text. A figure beside its target is a fact, not a verdict.
TARGETS: Final[Mapping[tuple[str, str], str]] = {
    ("first_event", "c1_p50_ms"): "≤ 5",
    ("events", "p50_ms"): "≤ 2",
    ("events", "p99_ms"): "≤ 10",
    ("events", "max_per_s"): "≥ 20000",
    ("context", "wire_bytes"): "≤ 1024 beside the ticket",
    ("startup", "ready_s"): "≤ 3",
}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie; they need not be sorted.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One line for each figure."""
    rows = [
        (case, metric, f"{value:,.3f}".rstrip("0").rstrip("."), TARGETS.get((case, metric), ""))
        for case, metrics in figures.items()
        for metric, value in metrics.items()
    ]
    head = ("case", "metric", "value", "target")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
    lines = [f"{c:<{widths[0]}}  {m:<{widths[1]}}  {v:>{widths[2]}}  {t}".rstrip() for c, m, v, t in [head, *rows]]
    return "\n".join(lines)
