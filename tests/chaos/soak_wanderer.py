"""A reader of the soak who never stays: a few events over the socket, gone, the next over Server-Sent Events, gone.

Each time it comes back with the position of the last event that it was given, on whichever transport gave it. What it
was given in all is one sequence, and judged as if it had come over one connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, Final

from carrel.client import Backoff, Event, Notice, Position
from carrel.errors import CarrelError
from tests.faults.oracle import LogEnd, Received, Verdict, judge_delivery
from tests.support.stack import RunningStack

__all__ = ["Wanderer"]

_STAYS: Final = (1, 80)
_STAYS_S: Final = (0.2, 4.0)
_AWAY_S: Final = (0.0, 1.0)
_CATCHES_UP_S: Final = 60.0
_BACKOFF: Final = Backoff(attempts=10_000, first_s=0.05, longest_s=0.5)


class Wanderer:
    """Reads what ``user`` is sent, beside the user's own connection."""

    def __init__(self, stack: RunningStack, user: str, seed: int) -> None:
        self._stack = stack
        self.user = user
        self._random = random.Random(f"{seed} wanderer {user}")
        self.received = Received(user)
        self.stays: dict[str, int] = {"socket": 0, "SSE": 0}
        self._position = Position()
        self._seen: set[str] = set()

    async def live(self) -> None:
        """Wander until cancelled."""
        while True:
            transport = self._random.choice(list(self.stays))
            count, seconds = self._random.randint(*_STAYS), self._random.uniform(*_STAYS_S)
            self.stays[transport] += 1
            with suppress(TimeoutError, CarrelError):
                # Services may be away when it comes; it comes again.
                async with asyncio.timeout(seconds), AsyncExitStack() as stack:
                    items = await self._open(stack, transport)
                    async for item in items:
                        self._take(item)
                        count -= isinstance(item, Event)
                        if count <= 0:
                            break
            await asyncio.sleep(self._random.uniform(*_AWAY_S))

    async def _open(self, stack: AsyncExitStack, transport: str) -> AsyncIterator[Event | Notice]:
        if transport == "socket":
            client = self._stack.client(self.user, resume=self._position, backoff=_BACKOFF, patient=True)
            opened: Any = (await stack.enter_async_context(client)).items()
        else:
            http = await stack.enter_async_context(self._stack.http(self.user))
            opened = http.events(resume=self._position, backoff=_BACKOFF)
        return await stack.enter_async_context(aclosing(opened))

    def _take(self, item: Event | Notice) -> None:
        if isinstance(item, Notice):
            self.received.add(item)
            if item.kind == "reset":
                body = item.body
                self._position = Position(str(body.get("epoch") or ""), int(body.get("offset") or 0), "")
            return
        self._position = item.position
        if item.event_id in self._seen and self.received.resets:
            return  # everything that is kept comes again after a reset
        self._seen.add(item.event_id)
        self.received.add(item)

    async def end(self, wandering: asyncio.Task[None], log: LogEnd) -> Verdict:
        """Wait until it has the log's last entry, or time is up; then stop it, and judge."""
        deadline = time.monotonic() + _CATCHES_UP_S
        while log.entries and log.entries[-1].event_id not in self._seen:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        wandering.cancel()
        ended = await asyncio.gather(wandering, return_exceptions=True)
        verdict = judge_delivery(self.received, log)
        verdict.problems += [f"a wanderer of {self.user}: {error!r}" for error in ended if isinstance(error, Exception)]
        verdict.problems = [f"over socket and SSE in turn: {problem}" for problem in verdict.problems]
        return verdict
