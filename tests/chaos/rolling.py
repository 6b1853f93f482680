"""Users who work while processes are restarted or killed one after the other, and what they saw held against the log.

Used by ``test_rolling``. The oracle: what a user's socket received is the user's log, in order, each entry once, with
no notice of a hole or a reset; every run that was admitted has ended well; each process that came back got work.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from grpc import aio

from carrel.client import Event, Notice, Position
from carrel.errors import CarrelError
from carrel.v1 import agent_instance_pb2, bridge_pb2, emitter_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.support.stack import RunningStack

__all__ = ["Worker", "got_work", "restart", "work_while"]

_BACK_S: Final = 30.0
_WORK_WITHIN_S: Final = 30.0
_ENDS_S: Final = 60.0
# Notices that say that something is missing; others tell of the connection.
_LOSSES: Final = frozenset({"gap", "reset"})


@dataclass
class Worker:
    """One user: asks for a run, reads it to its end, and again."""

    stack: RunningStack
    name: str
    url: str
    agent: str = "slow"
    params: dict[str, Any] = field(default_factory=lambda: {"steps": 15, "pause_s": 0.02})
    events: list[Event] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    reconnects: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self, stop: asyncio.Event) -> None:
        """Until told to stop, and then until the last run has ended."""
        async with self.stack.client(self.name, url=self.url, resume=Position(), patient=True) as client:
            reading = asyncio.create_task(self._read(client.items()), name=f"{self.name} reads")
            try:
                while not stop.is_set():
                    try:
                        run = await client.execute("go on", pipeline=[self.agent], params=self.params)
                    except CarrelError as error:
                        # Told, retryable, and nothing was begun: not what is looked for here, but to be seen.
                        self.refused.append(error.code)
                        await asyncio.sleep(0.1)
                        continue
                    self.runs.append(run.run_id)
                    await self._until_ended(run.run_id, reading)
            finally:
                self.reconnects = client.reconnects
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, items: Any) -> None:
        async for item in items:
            if isinstance(item, Event):
                self.events.append(item)
                if item.terminal:
                    self.ended[item.run_id] = str(item.data.get("status", ""))
                    self._changed.set()
            else:
                self.notices.append(item)

    async def _until_ended(self, run_id: str, reading: asyncio.Task[None]) -> None:
        async with asyncio.timeout(_ENDS_S):
            while run_id not in self.ended:
                if reading.done():
                    reading.result()
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)

    def problems(self, log: Sequence[tuple[int, str]]) -> list[str]:
        """What is wrong with what was received, given the user's log as (offset, event_id)."""
        found = [f"{run}: ended {status}" for run, status in self.ended.items() if status != "SUCCEEDED"]
        found += [f"{run}: admitted, and has not ended" for run in self.runs if run not in self.ended]
        found += [f"notice of a loss: {notice}" for notice in self.notices if notice.kind in _LOSSES]
        received = [(event.offset, event.event_id) for event in self.events]
        if [offset for offset, _ in received] != list(range(1, len(received) + 1)):
            found.append(f"offsets are not 1, 2, 3 …: {[offset for offset, _ in received][:50]}")
        if received != list(log):
            missing = [entry for entry in log if entry not in set(received)]
            found.append(f"received {len(received)} of {len(log)} entries; missing {missing[:5]}")
        foreign = [event for event in self.events if event.user_id != self.name]
        found += [f"an event of {event.user_id}" for event in foreign]
        return [f"{self.name}: {problem}" for problem in found]


async def work_while(stack: RunningStack, users: int, doing: Any) -> list[Worker]:
    """Let so many users work while ``doing`` (a coroutine) goes on; the users, once their last runs have ended.

    Raises:
        AssertionError: Something was lost, repeated, or did not end.
    """
    stop, urls = asyncio.Event(), stack.urls
    workers = [Worker(stack, f"user{number}", urls[number % len(urls)]) for number in range(users)]
    tasks = [asyncio.create_task(worker.live(stop), name=worker.name) for worker in workers]
    try:
        await _first_runs(workers, tasks)
        await doing
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), _ENDS_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    logs = [await _log_of(stack, worker.name) for worker in workers]
    problems = [problem for worker, log in zip(workers, logs, strict=True) for problem in worker.problems(log)]
    assert not problems, "\n".join(problems[:20]) + f"\n{stack.log()[-6000:]}"
    return workers


async def _first_runs(workers: Iterable[Worker], tasks: Sequence[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(_ENDS_S):
        while not all(worker.ended for worker in workers):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)


async def _log_of(stack: RunningStack, user: str) -> list[tuple[int, str]]:
    address = stack.address(stack.copies("bridge")[0])
    async with aio.insecure_channel(address) as channel:
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user))
        call = BridgeServiceStub(channel).ReadEvents(request, timeout=20)
        return [(entry.offset, entry.event_id) async for answer in call for entry in answer.entries.entries]


async def restart(stack: RunningStack, name: str, number: int = signal.SIGTERM) -> float:
    """End a process in order, or kill it; seconds until its successor was ready."""
    began = time.monotonic()
    pid = stack.kill(name, number)
    while not stack.restarted(name, pid):
        assert time.monotonic() - began < _BACK_S, f"{name} is not back\n{stack.log()[-6000:]}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def got_work(stack: RunningStack, services: Sequence[str]) -> dict[str, float]:
    """Wait until every copy of the services has done something since its start; seconds that each took from now.

    Raises:
        AssertionError: One has nothing to do for half a minute.
    """
    began, waiting = time.monotonic(), {name for service in services for name in stack.copies(service)}
    took: dict[str, float] = {}
    while waiting:
        for name in sorted(waiting):
            if await _done_by(stack, name):
                waiting.discard(name)
                took[name] = time.monotonic() - began
        assert time.monotonic() - began < _WORK_WITHIN_S or not waiting, f"no work for {waiting}"
        await asyncio.sleep(0.2)
    return took


async def _done_by(stack: RunningStack, name: str) -> int:
    """How much a process has done since its start, in units of its own."""
    context = stack.service_context()
    async with aio.insecure_channel(stack.address(name)) as channel:
        with suppress(aio.AioRpcError):
            match name.partition("-")[0]:
                case "agent_instance":
                    pool = await AgentInstanceServiceStub(channel).GetPoolStatistics(
                        agent_instance_pb2.GetPoolStatisticsRequest(context=context), timeout=5
                    )
                    return int(pool.active + pool.reused + max(0, pool.created - pool.idle))
                case "emitter":
                    sent = await EmitterServiceStub(channel).GetEmitterStatistics(
                        emitter_pb2.GetEmitterStatisticsRequest(context=context), timeout=5
                    )
                    return int(sent.events_sent)
                case "bridge":
                    state = await BridgeServiceStub(channel).GetState(
                        bridge_pb2.GetStateRequest(context=context), timeout=5
                    )
                    return int(state.events_appended)
                case "execution":
                    metrics = await ExecutionServiceStub(channel).GetFactoryMetrics(
                        execution_pb2.GetFactoryMetricsRequest(context=context), timeout=5
                    )
                    return int(metrics.runs_total)
    return 0
