"""A few runs' events out of a user's stream, to the end of each, over lost connections and resets.

A reset may take a run's last event with it. How the run stands is then told by ``run_state``, or asked for over REST
when that does not come; it is over once it has ended and the stream has been quiet for a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from carrel.client.models import Event
from carrel.client.notices import Notice, Reset, RunStatus
from carrel.errors import CarrelError

__all__ = ["follow"]

# How long nothing may come before a run that is known to have ended is over without its last event.
_QUIET_S: Final = 2.0
# How long `run_state` may take after a reset before REST is asked, and how often that is.
_TOLD_S: Final = 5.0

Take = Callable[[float | None], Awaitable[Event | Notice | None]]
Look = Callable[[str], Awaitable[RunStatus]]


async def follow(
    run_ids: Iterable[str],
    take: Take,
    look: Look,
    *,
    known_ended: Iterable[str] = (),
    steady: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Event | Notice]:
    """The runs' events, and what the stream says about itself, until each run has ended or the stream has.

    Args:
        run_ids: The runs.
        take: The next item of the stream, None at its end; TimeoutError when none comes within so many seconds.
        look: How a run stands.
        known_ended: Those of them that had ended before: their last event may not be in the log any more.

        steady: Whether the stream is being read: silence says nothing while the connection is away.

    Raises:
        CarrelError: The stream failed, or a run does not exist any more.
    """
    loop = asyncio.get_running_loop()
    pending, ended, untold = set(run_ids), set(known_ended), set[str]()
    look_at = 0.0
    while pending:
        wait_s = _QUIET_S if pending <= ended else (max(0.0, look_at - loop.time()) if untold else None)
        try:
            item = await take(wait_s)
        except TimeoutError:
            if pending <= ended:
                if steady():
                    return
                continue
            ended |= await _ended(untold, look)
            look_at = loop.time() + _TOLD_S
            continue
        if item is None:
            return
        if isinstance(item, Event) and item.run_id not in pending:
            continue
        yield item
        match item:
            case Reset():
                untold, look_at = pending - ended, loop.time() + _TOLD_S
            case RunStatus():
                untold.discard(item.run_id)
                if item.terminal:
                    ended.add(item.run_id)
            case Event(terminal=True):
                pending.discard(item.run_id)
                untold.discard(item.run_id)


async def _ended(untold: set[str], look: Look) -> set[str]:
    """Those of the runs that have ended; runs whose state is known leave ``untold``."""
    found = set()
    for run_id in sorted(untold):
        try:
            status = await look(run_id)
        except CarrelError as error:
            if not error.retryable:
                raise
            continue
        untold.discard(run_id)
        if status.terminal:
            found.add(run_id)
    return found
