"""How long an agent may be silent and how long it may take: one clock for each turn of an agent, and its watchdog.

Idle time ends with any event or tool activity. A tool in progress counts as activity, up to its own time limit. What
the host spends waiting for the log or for storage is not the agent's time: the clock is stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from carrel.errors import AgentError, AgentIdleTimeoutError, EngineTimeoutError
from services.agent_instance.domain.registry import AgentEntry

__all__ = ["ActivityClock", "TimeLimits", "TimePolicy"]


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """One turn's limits: seconds without activity, seconds in all, and Unix time at which the host ends it."""

    idle_s: float
    wall_s: float
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class TimePolicy:
    """The operator's limits in seconds: defaults, and caps on what an agent class may ask for.

    The end of a run's engine is execution's to declare; the host steps in only ``deadline_margin_s`` later, so that
    the user hears of it once.
    """

    idle_s: float = 30.0
    idle_max_s: float = 300.0
    wall_s: float = 300.0
    wall_max_s: float = 3600.0
    deadline_margin_s: float = 1.0

    def limits(self, entry: AgentEntry, deadline: float | None) -> TimeLimits:
        """What holds for this class, in a run whose engine ends at ``deadline``."""
        idle = self.idle_s if entry.idle_timeout_s is None else min(entry.idle_timeout_s, self.idle_max_s)
        wall = self.wall_s if entry.timeout_s is None else min(entry.timeout_s, self.wall_max_s)
        return TimeLimits(idle, wall, None if deadline is None else deadline + self.deadline_margin_s)


class ActivityClock:
    """Knows when the agent last did something, and says when it has been too long.

    ``clock`` is monotonic; ``unix`` is compared with the deadline. Tests give their own. ``outer`` is the clock of the
    agent that this sub-agent works for: what it does is activity of that one, and both stand still together.
    """

    def __init__(
        self,
        limits: TimeLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
        outer: ActivityClock | None = None,
    ) -> None:
        self.limits = limits
        self._outer = outer
        self._clock = clock
        self._begun = self._active = self._spoken = clock()
        # The deadline is carried over to the monotonic clock once: a step of the wall clock must end nobody.
        self._end = None if limits.deadline is None else self._begun + (limits.deadline - unix())
        self._stopped_at: float | None = None
        self._stops = 0
        self._stopped_s = 0.0
        self._tools: dict[str, float] = {}

    def touch(self) -> None:
        """The agent did something."""
        self._active = self._now()
        if self._outer is not None:
            self._outer.touch()

    def spoke(self) -> None:
        """The agent produced an event, which is activity too."""
        self._spoken = self._clock()
        self.touch()
        if self._outer is not None:
            self._outer.spoke()

    def tool_began(self, call_id: str, timeout_s: float) -> None:
        """A tool is at work: activity, for at most ``timeout_s``."""
        self._tools[call_id] = self._now() + timeout_s
        self.touch()

    def tool_ended(self, call_id: str) -> None:
        """It is done."""
        if self._tools.pop(call_id, None) is not None:
            self.touch()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While the host waits for others than the agent."""
        with nullcontext() if self._outer is None else self._outer.stopped():
            yield from self._stopped()

    def _stopped(self) -> Iterator[None]:
        self._stops += 1
        if self._stops == 1:
            self._stopped_at = self._clock()
        try:
            yield
        finally:
            self._stops -= 1
            if self._stops == 0 and self._stopped_at is not None:
                pause = self._clock() - self._stopped_at
                self._stopped_at = None
                self._stopped_s += pause
                self._active += pause
                self._tools = {call_id: until + pause for call_id, until in self._tools.items()}

    @property
    def left_s(self) -> float:
        """Seconds that the agent may still take."""
        left = self.limits.wall_s - self.agent_s
        return max(0.0, left if self._end is None else min(left, self._end - self._clock()))

    @property
    def agent_s(self) -> float:
        """The agent's own time so far, without what the host waited for others."""
        return self._now() - self._begun - self._stopped_s

    @property
    def idle_s(self) -> float:
        """Seconds without activity."""
        now = self._now()
        # A tool past its limit was activity up to that limit.
        latest = max((min(until, now) for until in self._tools.values()), default=self._active)
        return max(0.0, now - max(latest, self._active))

    @property
    def silent_s(self) -> float:
        """Seconds without an event of the agent's, waiting for others included: what its user sees."""
        return self._clock() - self._spoken

    def overdue(self) -> AgentError | None:
        """The error that ends the turn now, if one does."""
        limits = self.limits
        if self._end is not None and self._clock() >= self._end:
            return EngineTimeoutError(
                "the run's engine has used up its time",
                advice="ask for less at once, or have the operator raise engine_timeout_seconds",
            )
        if self.agent_s >= limits.wall_s:
            return EngineTimeoutError(
                f"the agent took longer than its {limits.wall_s:g} s",
                advice="ask for less at once, or raise the agent's timeout_s",
                limit_s=limits.wall_s,
            )
        if self.idle_s >= limits.idle_s:
            return AgentIdleTimeoutError(
                f"the agent showed no activity for {limits.idle_s:g} s",
                advice="try again; an agent that works long without events should call ctx.thinking from time to time, "
                "or declare a larger idle_timeout_s",
                limit_s=limits.idle_s,
            )
        return None

    @property
    def past_deadline(self) -> bool:
        """Whether the run's engine has ended: nothing more may be tried."""
        return self._end is not None and self._clock() >= self._end

    async def watch(self, tick_s: float = 0.05) -> AgentError:
        """Wait until the turn is overdue; returns the error."""
        while True:
            error = self.overdue()
            if error is not None:
                return error
            await asyncio.sleep(max(tick_s, min(self._remaining(), 1.0)))

    def _remaining(self) -> float:
        left = [self.limits.wall_s - self.agent_s, self.limits.idle_s - self.idle_s]
        if self._end is not None:
            left.append(self._end - self._clock())
        return min(left)

    def _now(self) -> float:
        return self._clock() if self._stopped_at is None else self._stopped_at
