"""Notices that something held up the event loop: one blocking call stands still for everybody, and leaves no trace.

It says that it happened and for how long, not what it was. For that, run with ``PYTHONASYNCIODEBUG=1``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from servicekit.logs import get_logger
from servicekit.telemetry.buckets import Buckets

__all__ = ["watch_loop"]

_LOOK_S: Final = 0.25
_HELD_UP_S: Final = 1.0
_QUIET_S: Final = 10.0

_log = get_logger("servicekit.watchdog")


async def watch_loop(
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    lag: Buckets | None = None,
) -> NoReturn:
    """Sleep a little again and again; a warning when a wake comes more than a second late.

    One line in ten seconds at most; ``times`` and the longest ``seconds`` are of everything since the line before.
    ``lag`` gets how late each wake came, in seconds.
    """
    quiet_until, times, longest = 0.0, 0, 0.0
    while True:
        due = clock() + _LOOK_S
        await sleep(_LOOK_S)
        now = clock()
        if lag is not None:
            lag.add(now - due)
        if now - due > _HELD_UP_S:
            times, longest = times + 1, max(longest, now - due)
        if times and now >= quiet_until:
            _log.warning("event loop was held up", seconds=round(longest, 3), times=times)
            quiet_until, times, longest = now + _QUIET_S, 0, 0.0
