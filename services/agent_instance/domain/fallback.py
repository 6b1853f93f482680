"""``FallbackManager``: when an agent fails, which agent answers in its place, and how many such answers at once.

The registry has checked that fallbacks exist and end; running the fallback is ``stage``'s work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from carrel.errors import CancelledRunError, CarrelError, SealedLogError, StaleFenceError
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry

__all__ = ["FallbackManager"]

# Nobody is there for another answer: the run is cancelled, or somebody else's.
_FINAL: Final = (CancelledRunError, StaleFenceError, SealedLogError)


class FallbackManager:
    """``fallback_manager`` of the documents: chooses it, once per stage, at most ``limit`` at a time in the process."""

    def __init__(self, registry: AgentClassRegistry, *, limit: int = 20) -> None:
        self._registry = registry
        self._limit = limit
        self._active = 0

    @property
    def active(self) -> int:
        """Fallbacks that run now."""
        return self._active

    def choose(self, failed: AgentEntry, error: CarrelError, *, past_deadline: bool) -> AgentEntry | None:
        """The entry that answers, or None: none declared, no time left, too many at once, or nobody to answer."""
        if failed.fallback is None or past_deadline or self._active >= self._limit or isinstance(error, _FINAL):
            return None
        return self._registry[failed.fallback]

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """While the fallback runs."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
