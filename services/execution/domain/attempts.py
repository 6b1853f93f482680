"""Attempts of one run, one at a time: opened until agent_instance has taken one, and stopped when the run is over.

Whether another one follows is the driver's to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from carrel.errors import DrainingError, RunEndedError, WorkerLostError, WorkersBusyError
from servicekit.telemetry.names import AGENT, ATTEMPT, FENCE, STAGE, of_run
from services.execution.domain.budgets import Budgets
from services.execution.domain.errors import AgentInstanceLostError
from services.execution.domain.ports import StageFailure, StageResult, StageStart
from services.execution.domain.services import RunServices
from services.execution.domain.stage import StageSession

__all__ = ["Attempts", "is_lost"]


def is_lost(result: StageResult) -> bool:
    """Whether the attempt's worker died, so that the stage has neither a result nor an error of its own."""
    return isinstance(result.outcome, StageFailure) and result.outcome.error.get("code") == WorkerLostError.code


class Attempts:
    """Opens a run's attempts. ``is_over`` is asked before each opening."""

    def __init__(self, services: RunServices, budgets: Budgets, is_over: Callable[[], bool]) -> None:
        self._services = services
        self._budgets = budgets
        self._is_over = is_over
        self._session: StageSession | None = None
        self._unaccepted_s = services.options.retry_first_s

    @property
    def accepted(self) -> bool:
        """Whether agent_instance has said of the latest attempt that it had begun."""
        return self._session is not None and self._session.accepted

    async def run(self, start: StageStart) -> StageResult:
        """Run an attempt; while agent_instance is full or away, so that nothing has begun, ask again.

        Raises:
            AgentInstanceLostError: agent_instance was lost when it had, or may have, begun the attempt.
            CarrelError: agent_instance refused it, or the run is over.
        """
        options = self._services.options
        delay = options.retry_first_s
        while True:
            if self._is_over():
                raise RunEndedError("the run ended while it waited for a worker")
            session = self._session = StageSession(start, self._services, self._budgets)
            span = self._services.tracing.span(
                f"stage {start.agent_name}",
                {AGENT: start.agent_name, STAGE: start.index, ATTEMPT: start.attempt, FENCE: start.fence},
            )
            try:
                with span:
                    if span.recording:
                        span.set(of_run(start.identity.user, start.identity.run_id))
                    result = await session.run()
                    if isinstance(result.outcome, StageFailure):
                        span.fail(str(result.outcome.error.get("code", "")))
                    return result
            except AgentInstanceLostError:
                if session.sent:
                    raise
            except (WorkersBusyError, DrainingError, WorkerLostError) as error:
                # The last: no worker could be started for it, which says nothing of its agent.
                delay = min(max(delay * 2, error.retry_after_s or 0.0), options.busy_max_s)
            await self._pause(delay)

    async def pause(self) -> None:
        """Wait a while, longer each time, after an attempt that was lost before it was accepted."""
        await self._pause(self._unaccepted_s)
        self._unaccepted_s = min(self._unaccepted_s * 2, self._services.options.retry_max_s)

    def stop(self, reason: str) -> None:
        """Ask the attempt to end, and end it when the grace is over."""
        # Not awaited: a host that does not read must not hold up who ends the run.
        if self._session is not None:
            _ = self._services.start(self._session.cancel(reason), "cancel of an attempt")

    @staticmethod
    async def _pause(delay: float) -> None:
        # Spread, so that those who wait do not all come back together.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- guards nothing
