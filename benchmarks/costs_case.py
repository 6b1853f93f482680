"""What an event and a run cost each process: its CPU time, for whoever sizes a deployment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import grpc
import psutil

from benchmarks.asking import asker
from benchmarks.harness import bench_stack, login, run_ticket_context
from benchmarks.injector import Injector, Lane
from benchmarks.sockets import Sockets
from carrel.cli.stack import Stack

__all__ = ["costs"]

_USERS: Final = 100
_RATE: Final = 2000.0
_SECONDS: Final = 5.0
_RUNNERS: Final = 10
_RUNS: Final = 20
_SETTINGS: Final = {"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0"}


async def costs() -> dict[str, float]:
    """``<process>_event_us``: CPU for each event at 2,000/s to 100 users, ``<process>_flat_event_us`` flat out;
    ``<process>_run_ms``: for each run of the echo agent in a worker of its own, ten at once.

    ``workers`` are the process that forks them and all of them.
    """
    async with bench_stack(_SETTINGS) as stack:
        return {**await _of_events(stack), **await _of_runs(stack)}


async def _of_events(stack: Stack) -> dict[str, float]:
    contexts = [run_ticket_context(stack, f"bench{n}") for n in range(_USERS)]
    lanes = [Lane(context, f"{context.run_id}:0:1") for context in contexts]
    figures: dict[str, float] = {}
    async with Sockets(stack.url, {c.user_id: login(stack, c.user_id) for c in contexts}) as sockets:
        # The first round is not counted: tickets become known in it.
        for name, rate, seconds in (("", _RATE, 1.0), ("event_us", _RATE, _SECONDS), ("flat_event_us", 0.0, _SECONDS)):
            sockets.measure()
            before = _cpu_seconds(stack)
            async with grpc.aio.insecure_channel(stack.addresses["emitter"]) as channel, asyncio.timeout(60):
                sent = await Injector(channel, lanes).run(rate, seconds)
                await sockets.received(sent)
            if name:
                figures |= _each(before, _cpu_seconds(stack), sent, name, 1e6)
    return figures


async def _of_runs(stack: Stack) -> dict[str, float]:
    await _runs(stack, "first", 1)
    before = _cpu_seconds(stack)
    async with asyncio.timeout(120):
        await _runs(stack, "counted", _RUNS)
    return _each(before, _cpu_seconds(stack), _RUNNERS * _RUNS, "run_ms", 1e3)


async def _runs(stack: Stack, name: str, times: int) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(_RUNNERS):
            group.create_task(_one_after_the_other(stack, f"{name}{n}", times))


async def _one_after_the_other(stack: Stack, user: str, times: int) -> None:
    async with asker(stack, user, batch=True) as one:
        for number in range(times):
            await one.execute("echo", client_ref=f"r{number}")
            ended = False
            while not ended:
                frames = await one.receive()
                ended = any(frame.get("event_type") == "run_completed" for frame in frames)


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU time of each process so far; of workers, once they have ended."""
    used: dict[str, float] = {"workers": 0.0}
    for name, pid in stack.pids().items():
        process = psutil.Process(pid)
        times = process.cpu_times()
        used[name] = times.user + times.system
        if name.startswith("agent_instance"):
            used["workers"] += sum(map(_with_ended_children, process.children()))
    return used


def _with_ended_children(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _each(before: dict[str, float], after: dict[str, float], count: int, unit: str, factor: float) -> dict[str, float]:
    return {f"{name}_{unit}": (after[name] - used) / count * factor for name, used in before.items()}
