"""Runs that live no longer than the connection that asked for them: one open stream to execution for each.

Execution ends a bound run when its stream ends, whoever ended it: the connection, this gateway's drain, or its death.
Not here: runs of REST requests, which are kept by what waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from carrel.errors import CarrelError, LimitExceededError
from gateway.login import Login
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner

__all__ = ["BoundRuns", "BoundRunsLimitError", "Keeping"]

_log = get_logger("gateway.bound")

MOST: Final = 16


class BoundRunsLimitError(LimitExceededError):
    """The connection has as many bound runs as it may."""

    default_advice = "wait until one of them has ended, or ask for the run without `bound`"


class Keeping(Protocol):
    """Keeps a run alive for as long as the call lasts; it returns once the run has ended."""

    async def keep(self, login: Callable[[], Login], run_id: str) -> None: ...


class BoundRuns:
    """One connection's bound runs. Closing it lets go of them all.

    Args:
        runs: Keeps them.
        login: The connection's login as it is at the moment: it may be refreshed while a run is kept.
        most: How many there may be at once.
    """

    def __init__(self, runs: Keeping, login: Callable[[], Login], most: int = MOST) -> None:
        self._runs = runs
        self._login = login
        self._most = most
        self._asked = 0
        # A keeper that fails ends its own run, which the log of the gateway says; nobody else's.
        self._keepers = TaskOwner(on_failure=lambda name, error: None)
        self._kept: set[str] = set()

    def __len__(self) -> int:
        return len(self._keepers) + self._asked

    @contextmanager
    def place(self) -> Iterator[Callable[[str], None]]:
        """Room for one more run while it is asked for; what it gives keeps the run that was admitted.

        Raises:
            BoundRunsLimitError: There is no room.
        """
        if len(self) >= self._most:
            raise BoundRunsLimitError(
                f"this connection has {len(self)} bound runs that have not ended",
                limit="max_bound_runs_per_connection",
                limit_value=self._most,
                use=len(self),
                retry_after_s=1.0,
            )
        self._asked += 1
        try:
            yield self._keep
        finally:
            self._asked -= 1

    async def aclose(self) -> None:
        """Let go of all. Idempotent."""
        await self._keepers.aclose()

    def _keep(self, run_id: str) -> None:
        # The same request sent twice names the same run.
        if run_id not in self._kept:
            self._kept.add(run_id)
            _ = self._keepers.start(self._until_ended(run_id), f"keeper of {run_id}")

    async def _until_ended(self, run_id: str) -> None:
        try:
            await self._runs.keep(self._login, run_id)
        except CarrelError as error:
            _log.warning("a bound run is no longer kept", code=error.code, run_id=run_id)
        finally:
            self._kept.discard(run_id)
