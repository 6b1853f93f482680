"""Keeps a bound run alive: one ``WatchRun`` stream to execution, opened again within the time that execution allows.

For ``InternalClient``; users' runs are kept by the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from carrel.client.models import Run
from carrel.errors import CarrelError, Status, TicketExpiredError

__all__ = ["Watch", "kept"]

Watch = Callable[[], AsyncIterator[Run]]

_AGAIN_S: Final = 0.2
_PASSING: Final = frozenset({Status.UNAVAILABLE, Status.CANCELLED, Status.UNKNOWN})


@asynccontextmanager
async def kept(watch: Watch) -> AsyncIterator[None]:
    """Keep the run that ``watch`` watches alive while the block runs.

    Args:
        watch: Opens the stream that keeps it.
    """
    keeper = asyncio.create_task(_keep(watch), name="keeper of a bound run")
    try:
        yield
    finally:
        keeper.cancel()
        # Why it can't be kept any more is what the run itself says: it was cancelled.
        with contextlib.suppress(asyncio.CancelledError, CarrelError):
            await keeper


async def _keep(watch: Watch) -> None:
    while True:
        try:
            async for run in watch():
                if run.state.terminal:
                    return
        except CarrelError as error:
            # A stream ends with its ticket; the next one has a fresh one.
            if not (isinstance(error, TicketExpiredError) or error.retryable or error.status in _PASSING):
                raise
        await asyncio.sleep(random.uniform(0.5, 1.5) * _AGAIN_S)  # noqa: S311 -- jitter
