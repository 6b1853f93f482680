"""Users at work while things break: each runs pipelines over a socket that comes back by itself, keeping all of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from carrel.client import Backoff, Event, Position, SocketClient
from carrel.errors import CarrelError, Status
from carrel.ids import new_id
from tests.faults.onlookers import AgentLister, RunWatcher
from tests.faults.oracle import TERMINAL, LogEnd, Received, Verdict, judge, read_log
from tests.support.stack import RunningStack

__all__ = ["Load", "LoadOptions", "LoadUser"]

ASK_S: Final = 60.0
END_S: Final = 90.0
CAUGHT_UP_S: Final = 20.0
_PAUSE_S: Final = 0.02
_STEPS: Final = (8, 30)
# What a user may be told while something is broken, and comes again.
_REFUSALS: Final = frozenset(
    {
        Status.RESOURCE_EXHAUSTED,
        Status.UNAVAILABLE,
        Status.FAILED_PRECONDITION,
        Status.ABORTED,
        Status.DEADLINE_EXCEEDED,
    }
)
# How no run of these agents may end, whatever is broken.
_TERMINAL_STATES: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})
NEVER: Final = frozenset({"INTERNAL", "AGENT_FAILED", "PROTOCOL", "INVALID_RESULT"})


@dataclass(frozen=True, slots=True)
class _Done:
    """A run that has ended: when it was asked for, and when its end was heard of."""

    asked_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How many users; whether the store may lose what it had; whether tickets may be refused meanwhile."""

    users: int
    lossy: bool = False
    tickets_refused: bool = False


class LoadUser:
    """One user. ``live`` works until ``finish``; then everything asked for has ended, or ``problems`` says what not."""

    def __init__(self, stack: RunningStack, url: str, name: str, seed: str, options: LoadOptions) -> None:
        self.name = name
        self._lossy = options.lossy
        self._refusals = _REFUSALS | ({Status.UNAUTHENTICATED} if options.tickets_refused else set())
        self._stack = stack
        self._random = random.Random(f"{seed} {name}")
        self.received = Received(name)
        self.client = SocketClient(
            url,
            self.token,
            resume=Position(),
            batch=self._random.random() < 0.5,
            backoff=Backoff(attempts=100_000, first_s=0.05, longest_s=0.5),
            patient=True,
        )
        self.accepted: set[str] = set()
        self.done: dict[str, _Done] = {}
        self.refused: Counter[str] = Counter()
        self.problems: list[str] = []
        self.event_count = 0
        self.log: LogEnd | None = None
        self.asked: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._finish_after = float("inf")

    def token(self) -> str:
        """A fresh login."""
        return self._stack.token(self.name)

    def finish(self, healed_at: float) -> None:
        """Stop after a run that was asked for after this moment (of the monotonic clock) has ended."""
        self._finish_after = healed_at

    @property
    def recovered_at(self) -> float | None:
        """When the first run that was asked for after ``finish``'s moment had ended."""
        ends = [done.ended_at for done in self.done.values() if done.asked_at >= self._finish_after]
        return min(ends, default=None)

    async def live(self) -> None:
        """Work."""
        async with self.client:
            reading = asyncio.create_task(self._read(), name=f"events of {self.name}")
            try:
                while self.recovered_at is None:
                    await self._run()
                await self._settle()
            finally:
                reading.cancel()
                (error,) = await asyncio.gather(reading, return_exceptions=True)
                if isinstance(error, Exception):
                    self.problems.append(f"{self.name} stopped reading: {type(error).__name__}: {error}")

    async def _settle(self) -> None:
        """Wait until the log holds the end of every run that it knows, and the last entry of it has come.

        A request whose answer was lost may have been admitted all the same: its events count, too.
        """
        deadline = time.monotonic() + CAUGHT_UP_S
        while time.monotonic() < deadline:
            self.log = await read_log(self._stack, self.name)
            runs = Counter(entry.event_type == TERMINAL for entry in self.log.entries)[True]
            whole = self._lossy or runs == len({entry.run_id for entry in self.log.entries})
            if whole and self.log.entries[-1].event_id in {event.event_id for event in self.received.events}:
                return
            await asyncio.sleep(0.1)

    async def _run(self) -> None:
        steps, asked_at = self._random.randint(*_STEPS), time.monotonic()
        pipeline = ["slow"] if self._random.random() < 0.7 else ["talk", "tell"]
        params = {"steps": steps if pipeline == ["slow"] else 2, "pause_s": _PAUSE_S, "canary": self.name}
        ref = new_id("ref")
        try:
            run = await self.client.execute("go", params=params, pipeline=pipeline, client_ref=ref, timeout_s=ASK_S)
        except CarrelError as error:
            self.refused[error.code] += 1
            if error.status not in self._refusals:
                self.problems.append(f"{self.name} was refused: {error.code} {error.message}")
            await asyncio.sleep(0.2)
            return
        self.accepted.add(run.run_id)
        self.asked[run.run_id] = asked_at
        if await self._ended_within(run.run_id, END_S):
            self.done[run.run_id] = _Done(asked_at, self._ended[run.run_id])
            return
        self.problems.append(
            f"{self.name} heard nothing of the end of {run.run_id} within {END_S:g} s, at {self.client.position}"
        )
        self._finish_after = min(self._finish_after, 0.0)
        raise AssertionError(self.problems[-1])

    async def _ended_within(self, run_id: str, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                while run_id not in self._ended:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        async for item in self.client.items():
            self.received.add(item)
            if isinstance(item, Event):
                self.event_count += 1
                if item.event_type == TERMINAL:
                    self._ended[item.run_id] = time.monotonic()
                    self._judge_end(item)
                self._changed.set()
            elif item.kind == "run_state" and item.body.get("status") in _TERMINAL_STATES:
                # After a reset: how a run ended whose end is in the log no more.
                self._ended.setdefault(str(item.body["run_id"]), time.monotonic())
                self._changed.set()

    def _judge_end(self, event: Event) -> None:
        error = event.data.get("error") or {}
        if error.get("code", "") in NEVER:
            self.problems.append(f"{self.name}: {event.run_id} ended so: {error}")

    async def verdict(self) -> Verdict:
        """Everything about this user, once ``live`` has come to its end."""
        log = self.log or await read_log(self._stack, self.name)
        self.received.wire_repeats = self.client.reader.duplicates
        self.received.wire_holes = self.client.reader.holes
        verdict = judge(self.received, log, self.accepted, lossy=self._lossy)
        verdict.problems += self.problems
        return verdict


class Watcher:
    """A further connection of a user's, which begins at the beginning of the log while that grows."""

    def __init__(self, user: LoadUser, url: str) -> None:
        self._user = user
        self.received = Received(user.name)
        self.client = SocketClient(
            url,
            user.token,
            resume=Position(),
            batch=True,
            backoff=Backoff(attempts=100_000, longest_s=0.5),
            patient=True,
        )
        self._stop = asyncio.Event()
        self.begun = asyncio.Event()

    async def live(self) -> None:
        """Read until ``end``."""
        async with self.client:
            reading = asyncio.create_task(self._read(), name=f"replay of {self._user.name}")
            await self._stop.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        async for item in self.client.items():
            self.received.add(item)
            self.begun.set()

    async def end(self) -> Verdict:
        """Once the log has its end: what came of it."""
        log = self._user.log
        assert log is not None
        deadline = time.monotonic() + CAUGHT_UP_S
        while time.monotonic() < deadline:
            if log.entries[-1].event_id in {event.event_id for event in self.received.events}:
                break
            await asyncio.sleep(0.05)
        self._stop.set()
        self.received.wire_repeats = self.client.reader.duplicates
        self.received.wire_holes = self.client.reader.holes
        return judge(self.received, log)


class Load:
    """Several users; ``start`` them, break something, then ``end``."""

    def __init__(self, stack: RunningStack, url: str, prefix: str, seed: str, options: LoadOptions) -> None:
        self._stack = stack
        self.users = [LoadUser(stack, url, f"{prefix}-{number}", seed, options) for number in range(options.users)]
        self._url = url
        self._tasks: list[asyncio.Task[None]] = []
        self._watchers: list[tuple[Watcher, asyncio.Task[None]]] = []
        first = self.users[0]
        self._lister = AgentLister(stack.http(f"{prefix}-lister", url=url))
        self._run_watcher = RunWatcher(stack, first.name, first.asked)
        # What a store has lost whoever watches runs misses as well: it is there, and is not judged.
        self._lossy = options.lossy
        self._onlookers: list[asyncio.Task[None]] = []

    def watch(self) -> list[Watcher]:
        """Let every user open a further connection, from the beginning of its log."""
        watchers = [Watcher(user, self._url) for user in self.users]
        self._watchers += [(watcher, asyncio.create_task(watcher.live())) for watcher in watchers]
        return watchers

    @property
    def event_count(self) -> int:
        """Events that have arrived, of all users."""
        return sum(user.event_count for user in self.users)

    async def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(user.live(), name=user.name) for user in self.users]
        self._onlookers = [asyncio.create_task(each) for each in (self._lister.live(), self._run_watcher.live())]

    async def events(self, more: int, within: float = 30.0) -> None:
        """Wait until so many more events have arrived.

        Raises:
            AssertionError: They did not.
        """
        wanted, deadline = self.event_count + more, time.monotonic() + within
        while self.event_count < wanted:
            assert time.monotonic() < deadline, f"only {self.event_count} of {wanted} events came in {within:g} s"
            await asyncio.sleep(0.002)

    async def end(self) -> tuple[Verdict, float]:
        """All is whole again: (what came of it, seconds until every user's new run had ended)."""
        healed_at = time.monotonic()
        for user in self.users:
            user.finish(healed_at)
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        verdict = Verdict()
        for user, error in zip(self.users, ended, strict=True):
            if isinstance(error, Exception) and not isinstance(error, AssertionError):
                verdict.problems.append(f"{user.name}: {type(error).__name__}: {error}")
            verdict += await user.verdict()
        verdict.problems += [problem for watcher, _ in self._watchers for problem in (await watcher.end()).problems]
        await asyncio.gather(*(task for _, task in self._watchers), return_exceptions=True)
        verdict.problems += await self._lister.end(self._onlookers[0])
        if not self._lossy and (log := self.users[0].log) is not None:
            verdict.problems += await self._run_watcher.end(self._onlookers[1], log)
        slowest = max((user.recovered_at or healed_at for user in self.users), default=healed_at)
        return verdict, slowest - healed_at

    async def cancel(self) -> None:
        """Stop at once, when the cell itself has failed."""
        tasks = [*self._tasks, *(task for _, task in self._watchers), *self._onlookers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
