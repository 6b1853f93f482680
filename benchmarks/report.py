"""Figures as people read them: percentiles, and a table with the target beside each figure that has one."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from benchmarks.contracts_case import CONTRACT_TARGETS

__all__ = ["TARGETS", "missed", "percentile", "table"]

# What the project wants to reach: (case, metric) -> a sign, a number, and whatever is to be said with them. On a
# machine that others use, a missed target says nothing yet.
TARGETS: Final[Mapping[tuple[str, str], str]] = {
    ("first_event", "c1_p50_ms"): "≤ 5",
    ("events", "p50_ms"): "≤ 2",
    ("events", "p99_ms"): "≤ 10",
    ("events", "max_per_s"): "≥ 20000",
    ("redis_events", "p50_ms"): "≤ 3",
    ("redis_events", "p99_ms"): "≤ 15",
    ("redis_events", "max_per_s"): "≥ 15000",
    ("context", "wire_bytes"): "≤ 1024 beside the ticket",
    ("sanitizer", "thought_ratio"): "≤ 0.2",
    ("sanitizer", "tool_call_ratio"): "≤ 0.2",
    ("sanitizer", "message_ratio"): "≤ 0.08",
    ("startup", "ready_s"): "≤ 3",
    ("worker_start", "warm_p50_ms"): "≤ 1",
    ("worker_start", "cold_p50_ms"): "≤ 10",
    ("runs", "process_c50_per_s"): "≥ 120",
    ("runs", "task_c50_per_s"): "≥ 250",
    ("cancel", "ask_p50_ms"): "≤ 100",
    ("cancel", "dead_p99_ms"): "≤ 1000",
    ("recovery", "worker_first_event_s"): "≤ 5",
    ("recovery", "agent_instance_first_event_s"): "≤ 5",
    ("recovery", "execution_first_event_s"): "≤ 5",
    ("fairness", "p99_ratio"): "≤ 2",
    ("connections", "kb_per_idle_connection"): "≤ 20",
    ("connections", "idle_cpu_percent"): "≤ 5",
    ("reconnect_storm", "caught_up_s"): "≤ 10",
    ("stalled_readers", "p99_ratio"): "≤ 2",
    ("active_users", "active_at_once"): "≥ 1000",
    ("active_users", "not_succeeded"): "≤ 0",
    ("telemetry_overhead", "events_slower_percent"): "≤ 5",
    ("telemetry_overhead", "runs_slower_percent"): "≤ 5",
    ("telemetry_overhead", "events_cpu_more_percent"): "≤ 5",
    ("telemetry_overhead", "runs_cpu_more_percent"): "≤ 5",
    ("memory_per_run", "worker_private_mb"): "≤ 3",
    **CONTRACT_TARGETS,
}
_TARGET: Final = re.compile(r"([≤≥]) ([0-9.]+)")
_SIGNS: Final[Mapping[str, Callable[[float, float], bool]]] = {"≤": operator.le, "≥": operator.ge}


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
    """One line for each figure, with its target and whether it is met."""
    rows = [
        (case, metric, f"{value:,.3f}".rstrip("0").rstrip("."), target, _met(value, target))
        for case, metrics in figures.items()
        for metric, value in metrics.items()
        for target in [TARGETS.get((case, metric), "")]
    ]
    head = ("case", "metric", "value", "target", "met")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(5)]
    lines = [
        f"{c:<{widths[0]}}  {m:<{widths[1]}}  {v:>{widths[2]}}  {t:<{widths[3]}}  {y}".rstrip()
        for c, m, v, t, y in [head, *rows]
    ]
    return "\n".join(lines)


def missed(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What has a target and does not reach it: ``case metric`` each."""
    return [
        f"{case} {metric}"
        for case, metrics in figures.items()
        for metric, value in metrics.items()
        if _met(value, TARGETS.get((case, metric), "")) == "no"
    ]


def _met(value: float, target: str) -> str:
    found = _TARGET.match(target)
    if found is None:
        return ""
    return "yes" if _SIGNS[found[1]](value, float(found[2])) else "no"
