"""Who uses the edges that no run needs: one reads a user's runs from execution, one asks the gateway for the agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from carrel.client import Event, GatewayHttp
from carrel.client.internal import Endpoints, InternalClient
from carrel.client.models import LogReset, Position, Run
from carrel.client.tickets import Ticket
from carrel.errors import CarrelError, Status
from tests.faults.oracle import LogEnd
from tests.support.stack import RunningStack

__all__ = ["AgentLister", "RunWatcher"]

# For a connection of which nobody said that it is dead: until the keepalive finds out.
_ENDS_S: Final = 75.0
_LIST_S: Final = 0.25
_AGAIN_S: Final = 0.1


class _Tickets:
    """A fresh session ticket for each call."""

    def __init__(self, stack: RunningStack, user: str) -> None:
        self._stack = stack
        self._user = user

    async def session(self) -> Ticket:
        text = self._stack.session_context(self._user).ticket
        return Ticket("session", text, time.time() + 600, user_id=self._user)

    async def run(self, *, run_id: str = "", thread_id: str = "") -> Ticket:
        raise NotImplementedError

    async def service(self) -> Ticket:
        raise NotImplementedError


class RunWatcher:
    """Watches one run of a user's after the other with their events, which execution reads from the bridge.

    Args:
        stack: Whose execution is asked, past the gateway.
        user: Whose runs.
        runs: The user's runs that have been accepted, oldest first, as keys; grows.
    """

    def __init__(self, stack: RunningStack, user: str, runs: dict[str, float]) -> None:
        self._user = user
        self._runs = runs
        self._endpoints = Endpoints(stack.address(stack.copies("execution")[0]))
        self._tickets = _Tickets(stack, user)
        self._seen: dict[str, list[Event]] = {}
        self._finish = False
        self._resets = 0

    async def live(self) -> None:
        """Watch until ``end``."""
        async with InternalClient(self._endpoints, self._tickets) as client:
            while not (self._finish and self._seen):
                newest = next(reversed(self._runs), None)
                if newest is None or newest in self._seen:
                    await asyncio.sleep(0.02)
                else:
                    await self._watch(client, newest)

    async def _watch(self, client: InternalClient, run_id: str) -> None:
        seen = self._seen.setdefault(run_id, [])
        position: Position | None = None
        ended = False
        while not ended:
            try:
                async for item in client.watch_run_events(run_id, position):
                    if isinstance(item, Event):
                        seen.append(item)
                        position = item.position
                    elif isinstance(item, LogReset):
                        self._resets += 1
                        position = item.position
                    else:
                        ended = _is_over(item)
            except CarrelError as error:
                if error.status in {Status.NOT_FOUND, Status.INTERNAL, Status.INVALID_ARGUMENT}:
                    raise
            if not ended:
                await asyncio.sleep(_AGAIN_S)

    async def end(self, task: asyncio.Task[None], log: LogEnd) -> list[str]:
        """Once the log has its end: what is wrong."""
        self._finish = True
        try:
            async with asyncio.timeout(_ENDS_S):
                await task
        except TimeoutError:
            return [f"whoever watches the runs of {self._user} does not hear of their end within {_ENDS_S:g} s"]
        except CarrelError as error:
            return [f"whoever watches the runs of {self._user} was refused: {error.code} {error.message}"]
        return [problem for run_id, seen in self._seen.items() for problem in self._compare(run_id, seen, log)]

    def _compare(self, run_id: str, seen: Sequence[Event], log: LogEnd) -> list[str]:
        wanted = [entry.event_id for entry in log.entries if entry.run_id == run_id]
        got = [event.event_id for event in seen]
        if got == wanted or (self._resets and not set(wanted) - set(got)):
            return []
        lost, more = set(wanted) - set(got), len(got) - len(set(got) & set(wanted))
        return [f"whoever watches {run_id} of {self._user} got {len(got)} events, {len(lost)} too few, {more} too many"]


def _is_over(run: Run) -> bool:
    return run.state.terminal


class AgentLister:
    """Asks the gateway again and again which agents there are, which it asks agent_instance."""

    def __init__(self, http: GatewayHttp) -> None:
        self._http = http
        self._problems: list[str] = []
        self._finish = False

    async def live(self) -> None:
        """Ask until ``end``, and then until there is an answer."""
        async with self._http as http:
            while True:
                last = self._finish
                try:
                    answered = bool((await http.get("/api/agents"))["agents"])
                except CarrelError as error:
                    answered = False
                    if error.status is Status.INTERNAL:
                        self._problems.append(f"no list of agents: {error.code} {error.message}")
                if last and answered:
                    return
                await asyncio.sleep(_LIST_S)

    async def end(self, task: asyncio.Task[None]) -> list[str]:
        """All is whole again: what is wrong."""
        self._finish = True
        try:
            async with asyncio.timeout(_ENDS_S):
                await task
        except TimeoutError:
            return [*self._problems, f"the gateway has no list of agents within {_ENDS_S:g} s"]
        return self._problems
