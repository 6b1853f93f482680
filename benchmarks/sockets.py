"""Many users' WebSockets in one process, which count and time the events that come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType

__all__ = ["Sockets"]


class Sockets:
    """One connection for each user, with batches. Use it as an async context manager.

    Args:
        url: The gateway's.
        tokens: User to login token.
    """

    def __init__(self, url: str, tokens: Mapping[str, str]) -> None:
        self._url = url.replace("http", "ws", 1) + "/ws"
        self._tokens = tokens
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._latencies: list[float] = []
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        session = await self._stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0)))
        for token in self._tokens.values():
            ws = await session.ws_connect(self._url, max_msg_size=0)
            self._stack.push_async_callback(ws.close)
            await ws.send_str(orjson.dumps({"type": "connect", "token": token, "batch": True}).decode())
            hello = orjson.loads((await ws.receive(timeout=10)).data)
            if hello.get("type") != "connected":
                raise RuntimeError(f"the gateway answered {hello}")
            self._tasks.append(asyncio.create_task(self._listen(ws)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def measure(self) -> list[float]:
        """Begin anew; the list gets the latency in seconds of each event from now on."""
        self._latencies = []
        return self._latencies

    async def received(self, count: int) -> None:
        """Wait until so many events have come since ``measure``."""
        while len(self._latencies) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def _listen(self, ws: ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                continue
            frame = orjson.loads(message.data)
            now = time.time()
            for event in _events(frame):
                self._latencies.append(now - _seconds(event["timestamp"]))
            self._arrived.set()


def _events(frame: dict[str, Any]) -> list[dict[str, Any]]:
    if frame.get("event_type") == "event_batch":
        batch: list[dict[str, Any]] = frame["events"]
        return batch
    return [frame] if "event_type" in frame else []


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
