"""Runs that wait get their turn: as soon as something becomes free here, and on a poll for what others free or decide.

Who may begin is the store's to say. With nothing that waits and nothing that runs, nothing is asked.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from carrel.errors import CarrelError, InputExpiredError, UnknownRunError
from servicekit.logs import get_logger
from services.execution.domain.holding import Holdings
from services.execution.domain.services import RunServices
from services.execution.models import RunState

__all__ = ["end_expired", "notice_decisions", "promote", "promote_for_ever", "watch_decisions"]

_log = get_logger("execution.queue")
_AT_ONCE: Final = 50
_LOOK_AGAIN_S: Final = 1.0


async def promote(services: RunServices, holdings: Holdings) -> int:
    """Begin the runs that may; how many."""
    total = 0
    while not holdings.draining and holdings.waiting():
        steps = await services.store.promote(_AT_ONCE)
        for step in steps:
            holdings.go_on(step.run)
            services.changes.notify(step.run.identity.user, step.run.identity.run_id)
        total += len(steps)
        if len(steps) < _AT_ONCE:
            break
    return total


async def end_expired(services: RunServices, holdings: Holdings) -> int:
    """End the runs whose question nobody has answered in time; how many."""
    now = services.clock()
    if all(expires_at > now for expires_at in holdings.questions()):
        return 0
    expired = await services.store.expired_inputs()
    for run in expired:
        error = InputExpiredError("nobody answered the run's question in time", run_id=run.identity.run_id)
        try:
            await holdings.end(run.identity.user, run.identity.run_id, RunState.TIMED_OUT, error)
        except UnknownRunError:
            continue
    return len(expired)


async def promote_for_ever(services: RunServices, holdings: Holdings, poll_s: float) -> NoReturn:
    """``promote`` and ``end_expired`` whenever there is reason to, and every ``poll_s`` while something waits."""
    loop = asyncio.get_running_loop()
    looked_at = loop.time()
    while True:
        try:
            async with asyncio.timeout(poll_s if holdings.waiting() else None):
                await holdings.freed.wait()
        except TimeoutError:
            pass
        holdings.freed.clear()
        if not holdings.waiting():
            continue
        try:
            await promote(services, holdings)
            if loop.time() >= looked_at + min(_LOOK_AGAIN_S, poll_s):
                looked_at = loop.time()
                await end_expired(services, holdings)
        except CarrelError as error:
            _log.warning("waiting runs could not be looked after", code=error.code, reason=error.message)
            await asyncio.sleep(poll_s)


async def notice_decisions(services: RunServices, holdings: Holdings) -> int:
    """Stop what others have ended; how many runs."""
    held = (*holdings.driven(), *holdings.waiting())
    if not held:
        return 0
    gone = await services.store.decided(held)
    await holdings.look_after(gone)
    return len(gone)


async def watch_decisions(services: RunServices, holdings: Holdings, poll_s: float) -> NoReturn:
    """``notice_decisions`` every ``poll_s``."""
    while True:
        await asyncio.sleep(poll_s)
        try:
            await notice_decisions(services, holdings)
        except CarrelError as error:
            _log.warning("runs that others ended could not be looked for", code=error.code, reason=error.message)
