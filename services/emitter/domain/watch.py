"""Notices that the log takes too long. It alerts and says so in readiness; it never gives an event up."""

from __future__ import annotations

from typing import Final

from servicekit.logs import get_logger
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics

__all__ = ["Watch"]

_log: Final = get_logger("services.emitter")


class Watch:
    """Looks at the age of what is held longest: past ``late_s`` it is logged, past ``stuck_s`` we are not ready."""

    def __init__(self, ledger: Ledger, statistics: Statistics, *, late_s: float, stuck_s: float) -> None:
        self._ledger = ledger
        self._statistics = statistics
        self._late_s = late_s
        self._stuck_s = stuck_s
        self._late = False
        self.stuck = False

    def look(self, now: float) -> None:
        """Judge the present state; called about once a second."""
        oldest = self._ledger.queue.oldest()
        age = 0.0 if oldest is None else now - oldest
        late = age > self._late_s
        if late and not self._late:
            self._statistics.delivery_late += 1
            _log.warning("delivery is late", age_s=round(age, 1), queued_events=self._ledger.queue.events)
        elif self._late and not late:
            _log.info("delivery is on time again")
        self._late = late
        self.stuck = age > self._stuck_s
