"""What other processes tell of runs, acted upon: watchers look, holders stop what others ended, what waits may begin.

Every hint is followed by a look into the store; the polls of ``queue`` find the same without any, only later.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from carrel.errors import CarrelError
from servicekit.logs import get_logger
from services.execution.domain.holding import Holdings
from services.execution.domain.services import RunServices
from services.execution.models import RunState, UserKey
from services.execution.models_steps import Hints

__all__ = ["HintedLooks"]

_log = get_logger("execution.wakeups")


class HintedLooks:
    """Looks at the runs of this process's that others have told of."""

    def __init__(self, services: RunServices, holdings: Holdings) -> None:
        self._services = services
        self._holdings = holdings
        self._due: set[tuple[UserKey, str]] = set()
        self._wake = asyncio.Event()

    def heard(self, hints: Hints) -> None:
        """Take what was told; returns at once."""
        if hints.missed:
            self._services.changes.wake_all()
            self._due.update(self._holdings.driven())
            self._holdings.freed.set()
        for key in hints.runs:
            self._services.changes.wake(*key)
            if self._holdings.holds(*key):
                self._due.add(key)
        if hints.freed:
            self._holdings.freed.set()
        if self._due:
            self._wake.set()

    async def look_for_ever(self) -> NoReturn:
        """Look whenever there is something to look at."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, set()
            try:
                await self._look(due)
            except CarrelError as error:
                _log.warning("runs that others changed could not be looked at", code=error.code, reason=error.message)

    async def _look(self, due: set[tuple[UserKey, str]]) -> None:
        gone = await self._services.store.decided(tuple(due))
        await self._holdings.look_after(gone)
        for key in due - gone:
            if self._holdings.waits_for_input(*key):
                run = await self._services.store.get_run(*key)
                if run is not None and run.state is RunState.QUEUED:
                    self._holdings.answered(run)
