"""The table of cases: name to coroutine function that measures and returns metric names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from benchmarks.context_case import context
from benchmarks.events_case import events
from benchmarks.first_event_case import first_event
from benchmarks.process_cases import memory, startup

__all__ = ["CASES"]

CASES: Final[Mapping[str, Callable[[], Coroutine[Any, Any, dict[str, float]]]]] = {
    "context": context,
    "startup": startup,
    "first_event": first_event,
    "events": events,
    "memory": memory,
}
