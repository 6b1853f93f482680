"""A run's artifacts, from the gateway to a folder, when the run has ended: also when the gateway is away just then.

Not what is said of them, nor where they go.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from carrel.cli.reconnect import reconnect_backoff
from carrel.cli.render import clean
from carrel.client.backoff import Backoff
from carrel.client.http import GatewayHttp
from carrel.client.models import Artifact
from carrel.errors import CarrelError, StartupError

__all__ = ["fetch_artifacts"]

T = TypeVar("T")

_REASON: Final = 200


async def fetch_artifacts(
    http: GatewayHttp, run_id: str, folder: Path, stop: asyncio.Event, backoff: Backoff | None = None
) -> list[tuple[Artifact, Path]]:
    """Save every artifact of a run; what cannot be read now is tried again, as often as a lost connection is made.

    Args:
        http: The gateway.
        run_id: The run, which has ended.
        folder: Where they go; made when there are any.
        stop: Set when somebody no longer wants to wait.
        backoff: How often and how fast to try again; as connections are by default.

    Raises:
        CarrelError: They cannot be had: trying again was of no use, or cannot be.
        StartupError: The folder can't be written.
    """
    again = _Again(stop, backoff or reconnect_backoff())
    artifacts = await again.tried(partial(http.artifacts, run_id))
    try:
        return [(artifact, await again.tried(partial(http.save, artifact, folder))) for artifact in artifacts]
    except OSError as error:
        raise StartupError(
            f"the run has ended, and what it brought along can't be written to {folder}: {error.strerror or error}",
            advice="name a folder that you may write with --save; the artifacts stay where they are",
        ) from None


class _Again:
    """Tries a call again while that may help."""

    def __init__(self, stop: asyncio.Event, backoff: Backoff) -> None:
        self._stop = stop
        self._backoff = backoff

    async def tried(self, call: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await call()
            except CarrelError as error:
                failures += 1
                delay = self._backoff.delay_s(failures, error.retry_after_s or 0.0)
                if not error.retryable or delay is None or self._stop.is_set():
                    raise
                # Beside what is printed of the run, not among it.
                print(  # noqa: T201 -- for the person
                    f"carrel: the run's artifacts cannot be read: {clean(error.message, _REASON)}; "
                    f"trying again in {delay:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
