"""Where a run's time goes: a clock that always runs for one part, so that the parts cannot but add up to the whole.

Kept for the latest runs of this process, in memory: what another process did of a run, before or after, is not known
here in detail. Not metrics, which are told of each run once, at its end.
"""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from services.execution.models import UserKey

__all__ = ["Part", "RunClock", "RunTimings"]

_KEPT: Final = 2_000


class Part(enum.StrEnum):
    """What a run's time may go to."""

    EARLIER = "earlier"  # before this process took the run up
    ADMISSION = "admission"  # from the request's arrival to the durable run
    QUEUE = "queue"  # QUEUED: for the thread, or for an engine
    WAITING = "waiting"  # WAITING: for a person
    EXECUTION_ENGINE = "execution_engine"  # what is prepared for stages, between everything else
    AGENT_INSTANCE = "agent_instance"  # the wait for a worker, its creation, and what surrounds the agent there
    AGENT = "agent"  # the agent's own time
    WEBSOCKET_EMITTER = "websocket_emitter"  # of the waits for the log: the emitter's part
    BRIDGE_INTEGRATION = "bridge_integration"  # of the waits for the log: the bridge's and its store's part
    DELIVERY = "delivery"  # of the waits for the log: the way there and back
    CHECKPOINT = "checkpoint"  # writes of the run store
    LOST = "lost_attempts"  # attempts that were lost and tried again


class RunClock:
    """One run's. ``enter`` names the part that time goes to from now on.

    Args:
        part: What it goes to at first.
        before_s: What has passed already, for that part.
    """

    __slots__ = ("_clock", "_decided", "_part", "_parts", "_since", "done")

    def __init__(self, part: Part, before_s: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._part = part
        self._since = clock()
        self._parts: dict[Part, float] = {part: before_s}
        self._decided = False
        self.done = False

    def enter(self, part: Part) -> None:
        """From now on for this part. Of no effect once the outcome is decided: what an attempt still does is over."""
        if not self._decided:
            self._switch(part)

    @contextmanager
    def spent(self, part: Part, then: Part = Part.EXECUTION_ENGINE) -> Iterator[None]:
        """For the length of the block for this part, and for ``then`` afterwards."""
        self.enter(part)
        try:
            yield
        finally:
            self.enter(then)

    def decide(self) -> None:
        """The outcome is decided: what is left is to be delivered."""
        if not self._decided:
            self._switch(Part.DELIVERY)
            self._decided = True

    def close(self) -> None:
        """All is done. Idempotent."""
        if not self.done:
            self._switch(Part.DELIVERY)
            self.done = True

    def move(self, source: Part, target: Part, seconds: float) -> None:
        """So much of what went to ``source`` was for ``target``; at most what there is."""
        self._switch(self._part)
        seconds = min(max(seconds, 0.0), self._parts.get(source, 0.0))
        if seconds:
            self._parts[source] -= seconds
            self._parts[target] = self._parts.get(target, 0.0) + seconds

    def share(self, wait_s: float, emitter_s: float, bridge_s: float) -> None:
        """A wait for the log, which was for delivery, in its parts; the last word of the log told those of the hops."""
        bridge_s = min(bridge_s, wait_s)
        self.move(Part.DELIVERY, Part.BRIDGE_INTEGRATION, bridge_s)
        self.move(Part.DELIVERY, Part.WEBSOCKET_EMITTER, min(emitter_s - bridge_s, wait_s - bridge_s))

    def so_far(self) -> Mapping[Part, float]:
        """Seconds by part, up to now."""
        if not self.done:
            self._switch(self._part)
        return dict(self._parts)

    def lose(self, before: Mapping[Part, float]) -> None:
        """What has gone to anything since ``before`` was for an attempt that is lost."""
        for part, seconds in self.so_far().items():
            self.move(part, Part.LOST, seconds - before.get(part, 0.0))

    def _switch(self, part: Part) -> None:
        if self.done:
            return
        now = self._clock()
        self._parts[self._part] = self._parts.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now


class RunTimings:
    """The clocks of the latest runs, the oldest of which give way.

    Args:
        ended: Told the parts of each run that has come to its end here.
    """

    def __init__(self, ended: Callable[[Mapping[Part, float]], None] = lambda parts: None, kept: int = _KEPT) -> None:
        self._ended = ended
        self._kept = kept
        self._clocks: OrderedDict[tuple[UserKey, str], RunClock] = OrderedDict()

    def admitted(self, user: UserKey, run_id: str, seconds: float) -> RunClock:
        """A run was admitted here, which took so long."""
        return self._keep(user, run_id, RunClock(Part.ADMISSION, seconds))

    def of(self, user: UserKey, run_id: str, age_s: float = 0.0) -> RunClock:
        """The run's clock; a new one, for a run of this age, when it was admitted elsewhere or long ago."""
        return self._clocks.get((user, run_id)) or self._keep(user, run_id, RunClock(Part.EARLIER, age_s))

    def known(self, user: UserKey, run_id: str) -> RunClock | None:
        """The run's clock, if it is one of those kept."""
        return self._clocks.get((user, run_id))

    def forget(self, user: UserKey, run_id: str) -> None:
        """The run is another process's: what becomes of it is not known here."""
        self._clocks.pop((user, run_id), None)

    def close(self, user: UserKey, run_id: str) -> None:
        """All of the run is done."""
        clock = self._clocks.get((user, run_id))
        if clock is not None and not clock.done:
            clock.close()
            self._ended(clock.so_far())

    def _keep(self, user: UserKey, run_id: str, clock: RunClock) -> RunClock:
        self._clocks[user, run_id] = clock
        while len(self._clocks) > self._kept:
            # The oldest that has ended; if none has, the oldest: it begins anew when it is asked for again.
            ended = next((key for key, known in self._clocks.items() if known.done), next(iter(self._clocks)))
            del self._clocks[ended]
        return clock
