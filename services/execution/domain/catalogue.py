"""What execution knows of agent_instance's registry: a copy, kept fresh enough to plan with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Final

from carrel.errors import CarrelError, UnavailableError
from servicekit.tasks import TaskOwner
from services.execution.domain.planning import Catalogue
from services.execution.domain.ports import AgentHost

__all__ = ["AgentCatalogue"]

# The registry changes only when agent_instance restarts with other agents.
_FRESH_S: Final = 5.0
# An unknown name is asked about at most this often, so that wrong requests are no load for agent_instance.
_ASK_AGAIN_S: Final = 0.5


class AgentCatalogue:
    """The registry's copy. It is looked up again in the background once old, and at once for a name it lacks."""

    def __init__(self, host: AgentHost, tasks: TaskOwner, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._tasks = tasks
        self._clock = clock
        self._known: Catalogue | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[Catalogue | CarrelError] | None = None
        # Not in the call of whoever happens to ask: its deadline is not the registry's.
        self._home = copy_context()

    async def covering(self, names: Sequence[str] = ()) -> Catalogue:
        """The catalogue, with ``names`` in it if agent_instance has them.

        Raises:
            DownstreamUnavailableError: Nothing is known yet and agent_instance does not answer.
        """
        known = self._known
        age = self._clock() - self._asked_at
        if known is None:
            return await self._ask()
        if age > _ASK_AGAIN_S and any(name not in known for name in names):
            try:
                return await self._ask()
            except UnavailableError:
                return known
        if age > _FRESH_S and self._asking is None:
            _ = self._start()
        return known

    def invalidate(self) -> None:
        """Agent_instance was lost: it may come back with other agents."""
        self._asked_at = float("-inf")

    async def _ask(self) -> Catalogue:
        # Shielded: a caller that gives up must not take the answer from the others.
        answer = await asyncio.shield(self._asking or self._start())
        if isinstance(answer, CarrelError):
            raise answer
        return answer

    def _start(self) -> asyncio.Task[Catalogue | CarrelError]:
        self._asking = self._home.run(self._tasks.start, self._load(), "agent catalogue")
        return self._asking

    async def _load(self) -> Catalogue | CarrelError:
        try:
            self._known = await self._host.catalogue()
            return self._known
        except CarrelError as error:  # its askers'; nobody may be asking
            return error
        finally:
            self._asked_at = self._clock()
            self._asking = None
