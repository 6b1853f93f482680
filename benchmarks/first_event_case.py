"""From a user's request on the socket to the first event of its run on that socket, over all five processes."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse

from benchmarks.harness import bench_stack, login
from benchmarks.report import percentile
from carrel.cli.stack import Stack

__all__ = ["first_event", "one_user"]

_TIMES: Final = {1: 300, 10: 60, 50: 20}
_WARM_UP: Final = 20


async def first_event() -> dict[str, float]:
    """``c1_p50_ms``, ``c1_p99_ms``, ``c10_p50_ms``, ``c50_p50_ms``, and ``c1_run_p50_ms`` until the run's end."""
    figures: dict[str, float] = {}
    # The users' rate is not what is measured.
    async with bench_stack({"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0"}) as stack:
        for users, times in _TIMES.items():
            both = await asyncio.gather(*(one_user(stack, f"first{users}-{n}", times=times) for n in range(users)))
            firsts = [first for pairs in both for first, _ in pairs]
            figures[f"c{users}_p50_ms"] = percentile(firsts, 0.5) * 1e3
            if users == 1:
                figures["c1_p99_ms"] = percentile(firsts, 0.99) * 1e3
                figures["c1_run_p50_ms"] = percentile([whole for pairs in both for _, whole in pairs], 0.5) * 1e3
    return figures


async def one_user(stack: Stack, user: str, *, times: int) -> list[tuple[float, float]]:
    """One user's requests, one after the other: (seconds to the first event, seconds to the end) of each."""
    url = stack.url.replace("http", "ws", 1) + "/ws"
    header = {"Authorization": f"Bearer {login(stack, user)}"}
    async with ClientSession() as session, session.ws_connect(url, headers=header, max_msg_size=0) as ws:
        await ws.receive(timeout=10)
        await _requests(ws, _WARM_UP)
        return await _requests(ws, times)


async def _requests(ws: ClientWebSocketResponse, times: int) -> list[tuple[float, float]]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await ws.send_str(orjson.dumps({"type": "agent_execute", "message": "hello", "agent_name": "echo"}).decode())
        first = 0.0
        while True:
            frame = orjson.loads((await ws.receive(timeout=30)).data)
            if frame.get("type") == "error":
                raise RuntimeError(f"the gateway answered {frame}")
            if "event_type" in frame:
                first = first or time.perf_counter() - began
                if frame["event_type"] == "run_completed":
                    break
        taken.append((first, time.perf_counter() - began))
    return taken
