"""The emitter's look for secrets: what it costs an event that holds none, beside cleaning the event in any case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import orjson

from services.emitter.domain.sanitize import Sanitizer

__all__ = ["sanitizer"]

_ROUNDS: Final = 200
_TEXT: Final = (
    "The trace has 8,819 requests in an hour; most are short, and the longest tenth holds a third of the load. "
    "Next I compare the monthly cost of each model at this rate, and what moves to a smaller one. "
)
_CALL: Final = "call-0193f0c2a1b40007d0c1f6b2a9e4"
_EVENTS: Final[Mapping[str, dict[str, Any]]] = {
    "thought": {"text": "The cheapest model could take most of the load at night."},
    "tool_call": {
        "tool_name": "query_trace",
        "tool_call_id": _CALL,
        "arguments": {"sql": "select count(*) from requests where cost > 0.5", "limit": 100},
    },
    "message": {"text": _TEXT * 5},
    "tool_result": {
        "tool_call_id": _CALL,
        "result": {
            "rows": [{"model": f"gpt-4o-2024-08-{n:02}", "cost": n * 1.5, "id": f"{n:032x}"} for n in range(22)]
        },
    },
}


async def sanitizer() -> dict[str, float]:
    """For each kind of event ``…_us`` of processor time, and ``…_ratio`` of it to the whole cleaning."""
    looks = Sanitizer()
    figures: dict[str, float] = {}
    for name, payload in _EVENTS.items():
        data = orjson.dumps(payload)
        value = orjson.loads(data)
        # In turns, so that what else the machine does meets both.
        looked, cleaned = _best_us(partial(looks.is_suspect, data, value), partial(looks.clean, data, value))
        figures[f"{name}_us"] = looked
        figures[f"{name}_ratio"] = looked / cleaned
    return figures


def _best_us(*works: Callable[[], object]) -> list[float]:
    """The best of thirty rounds each, in µs of this thread's processor time."""
    best = [float("inf")] * len(works)
    for _ in range(30):
        for number, work in enumerate(works):
            began = time.thread_time_ns()
            for _ in range(_ROUNDS):
                work()
            best[number] = min(best[number], (time.thread_time_ns() - began) / _ROUNDS / 1000)
    return best
