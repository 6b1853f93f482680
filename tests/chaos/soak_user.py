"""One user of the soak: random runs, answers, cancels, a look at every frame for somebody else's canary, and a record
of everything that came, to be compared with what the log has."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import orjson

from carrel.client import Accepted, Backoff, Event, Position, SocketClient
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, Status, UnavailableError
from tests.chaos.canaries import Canaries
from tests.e2e.checks import TERMINAL
from tests.faults.oracle import LogEnd, Received, Verdict, judge, read_log
from tests.support.stack import RunningStack

STRATEGIES: Final = ("reject", "enqueue", "interrupt", "rollback")
_RUN_WITHIN_S: Final = 90.0
_THINK_S: Final = 1.5
_ANSWER_TRIES: Final = 60
_TERMINAL: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})
_TERMINAL_TRIES: Final = 80
_SETTLES_WITHIN_S: Final = 60.0
_NEWEST: Final = 100
# What a user may be told and lives with; anything else is a failure of the soak.
_REFUSALS: Final = frozenset(
    {Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE, Status.FAILED_PRECONDITION, Status.ABORTED}
)
# How no run of these agents may end, whatever is killed.
_NEVER: Final = frozenset({"INTERNAL", "AGENT_FAILED", "PROTOCOL", "INVALID_RESULT"})


class SoakUser:
    """Runs ``live`` until told to stop; afterwards ``unended`` names the runs without a terminal event."""

    def __init__(self, stack: RunningStack, number: int, seed: int, canaries: Canaries, counts: Counter[str]) -> None:
        self.name = f"soak-{number}"
        self._stack = stack
        self._random = random.Random(f"{seed} {number}")
        self._canaries = canaries
        self._counts = counts
        # A gateway that is killed again and again is away for longer than a client tries by default.
        self._client: SocketClient = stack.client(
            self.name, resume=Position(), backoff=Backoff(attempts=10_000, first_s=0.05, longest_s=0.5)
        )
        self._received = Received(self.name)
        self._log: LogEnd | None = None
        self._http: GatewayHttp = stack.http(self.name)
        self._runs = 0
        self._ended: dict[str, str] = {}
        self._asked: set[str] = set()
        self._poisoned: set[str] = set()
        self._changed = asyncio.Condition()
        self._answering: set[asyncio.Task[None]] = set()
        self._thread = ""
        self.problems: list[str] = []

    @property
    def unended(self) -> list[str]:
        """Runs that were accepted and whose terminal event has not come."""
        return sorted(self._asked - self._ended.keys())

    async def live(self, stop: asyncio.Event) -> None:
        """Ask for one thing after the other until ``stop``, then wait for the ends."""
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (4, self._single),
            (3, self._pipeline),
            (2, self._parent),
            (3, self._question),
            (3, self._cancelled),
            (2, self._second_message),
            (1, self._poison),
        ]
        weights = [weight for weight, _ in actions]
        async with self._http, self._client:
            reading = asyncio.create_task(self._read(), name=f"frames of {self.name}")
            try:
                while not stop.is_set():
                    await self._act(self._random.choices(actions, weights)[0][1])
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), self._random.uniform(0.05, _THINK_S))
                await self._wait_for(self._asked)
                await self._look_back()
                self._log = await self._settled()
            finally:
                reading.cancel()
                ended = await asyncio.gather(reading, *self._answering, return_exceptions=True)
                self.problems += [
                    f"{self.name}: {type(error).__name__} while reading: {error}"
                    for error in ended
                    if isinstance(error, Exception)
                ]
                self._counts["reconnects"] += self._client.reconnects
                self._received.wire_repeats = self._client.reader.duplicates
                self._received.wire_holes = self._client.reader.holes

    async def log(self) -> LogEnd:
        """Once ``live`` has come to its end: what the log has."""
        self._log = self._log or await read_log(self._stack, self.name)
        return self._log

    async def verdict(self) -> Verdict:
        """What the log has against what came."""
        return judge(self._received, await self.log(), self._asked)

    async def _settled(self) -> LogEnd:
        """The log, once it holds the end of every run in it and all of it has come, or time is up.

        A request whose answer was lost may have been admitted all the same: its events count, too.
        """
        deadline = time.monotonic() + _SETTLES_WITHIN_S
        while True:
            log = await read_log(self._stack, self.name)
            ends = sum(entry.event_type == TERMINAL for entry in log.entries)
            came = {event.event_id for event in self._received.events[-_NEWEST:]}
            at_top = not log.entries or log.entries[-1].event_id in came
            if (ends == len({entry.run_id for entry in log.entries}) and at_top) or time.monotonic() > deadline:
                return log
            await asyncio.sleep(0.5)

    async def _act(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except CarrelError as error:
            self._counts[f"refused: {error.code}"] += 1
            if error.status not in _REFUSALS and error.status is not Status.DEADLINE_EXCEEDED:
                self.problems.append(f"{self.name}: {type(error).__name__} {error.code}: {error.message}")

    # What it does.

    async def _single(self) -> None:
        await self._wait_for({(await self._run("talk", artifact=self._random.random() < 0.5)).run_id})

    async def _pipeline(self) -> None:
        await self._wait_for({(await self._run("talk", "tell", steps=2)).run_id})

    async def _parent(self) -> None:
        await self._wait_for({(await self._run("parent")).run_id})

    async def _question(self) -> None:
        # Its answer is given by whoever reads the frames.
        await self._wait_for({(await self._run("ask", approval=self._random.random() < 0.5)).run_id})

    async def _cancelled(self) -> None:
        agent = self._random.choice(["talk", "parent", "ask"])
        run = await self._run(agent, steps=30)
        await asyncio.sleep(self._random.uniform(0, 0.4))
        if self._random.random() < 0.5:
            await self._client.cancel(run.run_id, timeout_s=30)
        else:
            await self._http.post(f"/api/runs/{run.run_id}/cancel")
        self._counts["cancelled"] += 1
        await self._wait_for({run.run_id})

    async def _second_message(self) -> None:
        first = await self._run("talk", steps=10, thread=self._thread)
        self._thread = first.thread_id
        strategy = self._random.choice(STRATEGIES)
        self._counts[f"strategy {strategy}"] += 1
        try:
            await self._run("talk", thread=self._thread, strategy=strategy)
        finally:
            await self._wait_for(self._asked)

    async def _poison(self) -> None:
        run = await self._run("poison", how=self._random.choice(["exit", "segfault"]))
        self._poisoned.add(run.run_id)
        await self._wait_for({run.run_id})

    async def _run(self, *pipeline: str, thread: str = "", strategy: str = "", **params: Any) -> Accepted:
        self._runs += 1
        canary = self._canaries.make(self.name, str(self._runs))
        run = await self._client.execute(
            f"say {canary}",
            params={"canary": canary, **params},
            pipeline=pipeline,
            thread_id=thread,
            strategy=strategy,
            timeout_s=_RUN_WITHIN_S,
        )
        self._counts[f"runs of {pipeline[0]}"] += 1
        self._asked.add(run.run_id)
        return run

    async def _wait_for(self, runs: set[str]) -> None:
        try:
            async with asyncio.timeout(_RUN_WITHIN_S), self._changed:
                await self._changed.wait_for(lambda: runs <= self._ended.keys())
        except TimeoutError:
            self.problems.append(
                f"{self.name}: no end of {sorted(runs - self._ended.keys())} in {_RUN_WITHIN_S:g} s, "
                f"at {self._client.position} after {self._client.reconnects} reconnects"
            )

    # What it sees.

    async def _read(self) -> None:
        async for item in self._client.items():
            body = item.to_json() if isinstance(item, Event) else item.body
            self._canaries.check(orjson.dumps(body), self.name, "frame")
            self._counts["frames"] += 1
            self._received.add(item)
            if isinstance(item, Event):
                await self._event(item)
            elif item.kind in {"reset", "gap"}:
                self._counts[item.kind] += 1

    async def _event(self, event: Event) -> None:
        if event.user_id != self.name:
            self.problems.append(f"{self.name} got an event of {event.user_id}")
        if event.event_type == "input_required":
            task = asyncio.create_task(self._answer(event), name=f"answer of {self.name}")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif event.event_type == "run_attempt":
            self._counts[f"attempts after the first: {event.data.get('reason')}"] += 1
        elif event.event_type == TERMINAL:
            if event.run_id in self._ended:
                self.problems.append(f"{self.name}: two ends of {event.run_id}")
            self._ended[event.run_id] = str(event.data.get("status"))
            code = (event.data.get("error") or {}).get("code", "")
            poison = " (poison)" if event.run_id in self._poisoned else ""
            self._counts[f"ended {event.data.get('status')} {code}{poison}".strip()] += 1
            if code in _NEVER:
                self.problems.append(f"{self.name}: {event.run_id} ended so: {event.data['error']}")
            async with self._changed:
                self._changed.notify_all()

    async def _answer(self, event: Event) -> None:
        """Over the socket or over REST; again while services are away, or the run is not waiting yet."""
        asks_approval = "approved" in str(event.data.get("schema", ""))
        value: Any = {"approved": self._random.random() < 0.7} if asks_approval else {"answer": "go on"}
        over_rest = self._random.random() < 0.5
        for _ in range(_ANSWER_TRIES):
            if event.run_id in self._ended:
                return
            try:
                await self._give(event, value, over_rest)
            except CarrelError as error:
                if error.status not in {Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.FAILED_PRECONDITION}:
                    if error.status is not Status.NOT_FOUND:
                        self.problems.append(f"{self.name}: the answer was refused: {error.code} {error.message}")
                    return
                await asyncio.sleep(0.25)
            else:
                self._counts["answers"] += 1
                return

    async def _give(self, event: Event, value: Any, over_rest: bool) -> None:
        input_id = str(event.data["input_id"])
        if over_rest:
            await self._http.post(f"/api/runs/{event.run_id}/input", {"input_id": input_id, "value": value})
        else:
            await self._client.provide_input(event.run_id, input_id, value)

    async def _look_back(self) -> None:
        """Everything that REST shows of its runs, and every artifact."""
        for run_id in sorted(self._asked)[-10:]:
            try:
                await self._look_at(run_id)
                for artifact in (await self._http.artifacts(run_id))[:5]:
                    self._canaries.check(await self._http.artifact_data(artifact), self.name, "artifact")
                    self._counts["artifacts read"] += 1
            except UnavailableError:
                self._counts["not looked back"] += 1

    async def _look_at(self, run_id: str) -> None:
        """The run is terminal; a moment after its terminal event, since execution has to learn that the log has it."""
        body = await self._http.run(run_id)
        for _ in range(_TERMINAL_TRIES):
            if body["status"] in _TERMINAL:
                break
            await asyncio.sleep(0.25)
            body = await self._http.run(run_id)
        else:
            self.problems.append(f"{self.name}: {run_id} is {body['status']} long after its terminal event")
        self._canaries.check(orjson.dumps(body), self.name, "REST")
