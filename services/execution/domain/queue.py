"""Runs that wait get their turn: as soon as something becomes free here, and on a poll for what others free or decide.

Who may begin is the store's to say. With nothing that waits and nothing that runs, nothing is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NoReturn

from carrel.errors import CarrelError, InputExpiredError, UnknownRunError
from servicekit.logs import get_logger
from services.execution.domain.holding import Holdings
from services.execution.domain.services import RunServices
from services.execution.models import RunState, UserKey

__all__ = ["DecisionWatch", "end_expired", "promote", "promote_for_ever", "watch_decisions"]

_log = get_logger("execution.queue")
_AT_ONCE: Final = 50
_WAITING_AT_ONCE: Final = 100
# The share of its time that the queue leaves alone, as a multiple of what it takes.
_REST: Final = 4.0


async def promote(services: RunServices, holdings: Holdings) -> int:
    """Begin the runs that may; how many."""
    total = 0
    while not holdings.draining and holdings.waits:
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
    polled_at = loop.time()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll_s if holdings.waits else None):
                await holdings.freed.wait()
        holdings.freed.clear()
        began = loop.time()
        polls = began >= polled_at + poll_s
        if not holdings.waits or not (polls or holdings.count(RunState.QUEUED)):
            continue
        try:
            await promote(services, holdings)
            if polls:
                polled_at = began
                await end_expired(services, holdings)
        except CarrelError as error:
            _log.warning("waiting runs could not be looked after", code=error.code, reason=error.message)
            await asyncio.sleep(poll_s)
        # A long queue takes long to look through: it must not take the store from those who run.
        await asyncio.sleep(min(poll_s, _REST * (loop.time() - began)))


class DecisionWatch:
    """Notices what others have ended: of the runs that run here all at each look, of those that wait some in turn."""

    def __init__(self, services: RunServices, holdings: Holdings) -> None:
        self._services = services
        self._holdings = holdings
        self._next = 0

    async def look(self) -> int:
        """Stop what others have ended; how many runs."""
        held = (*self._holdings.driven(), *self._some_waiting())
        if not held:
            return 0
        gone = await self._services.store.decided(held)
        await self._holdings.look_after(gone)
        return len(gone)

    def _some_waiting(self) -> tuple[tuple[UserKey, str], ...]:
        # Whoever ended a waiting run relays its end too, so this is in no hurry; all of them would cost too much.
        if not self._holdings.waits:
            return ()
        waiting = self._holdings.waiting()
        first = self._next if self._next < len(waiting) else 0
        self._next = first + _WAITING_AT_ONCE
        return waiting[first : self._next]


async def watch_decisions(services: RunServices, watch: DecisionWatch) -> NoReturn:
    """``DecisionWatch.look`` every so often: more often while other processes can't tell by themselves."""
    options = services.options
    while True:
        await asyncio.sleep(options.decided_told_s if services.wakeups.listening else options.decided_poll_s)
        try:
            await watch.look()
        except CarrelError as error:
            _log.warning("runs that others ended could not be looked for", code=error.code, reason=error.message)
