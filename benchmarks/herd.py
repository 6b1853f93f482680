"""Many lean clients in a process of their own: ``python -m benchmarks.herd`` with its orders as one JSON argument.

Prints one JSON line of counts for each line that it is sent, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.herd_client import HerdClient
from carrel.cli.tokens import development_token

__all__ = ["Herd", "HerdOrders", "herd"]

_AT_ONCE: Final = 100
# Ports of one source address run short above this.
_PER_SOURCE: Final = 10_000
_RETRY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class HerdOrders:
    """What a herd does.

    Args:
        host: The gateway's address.
        port: Its port.
        secret: The file with the login secret.
        users: Names; each gets one connection.
        returns: Whether a client that is cut off comes back at once, with its position.
        options: Fields of ``connect``.
        stalled: Whether a client reads nothing more once it is connected.
    """

    host: str
    port: int
    secret: str
    users: Sequence[str]
    returns: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    stalled: bool = False


class Herd:
    """The clients of this process."""

    def __init__(self, orders: HerdOrders) -> None:
        self._orders = orders
        self._clients: list[HerdClient] = []
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.connected = 0
        self.lost = 0
        self.refused = 0

    def begin(self) -> None:
        """Connect them all, a hundred at a time."""
        orders = self._orders
        host, secret = f"{orders.host}:{orders.port}", Path(orders.secret)
        for number, user in enumerate(orders.users):
            token = development_token(secret, user, lifetime_s=7200, environ={})
            client = HerdClient(host, token, self._changed, orders.options)
            self._clients.append(client)
            self._dial(client, number // _PER_SOURCE)

    def counts(self) -> dict[str, float]:
        """How many are connected, and how far they have got."""
        return {
            "connected": self.connected,
            "lost": self.lost,
            "refused": self.refused,
            "least_offset": min((client.offset for client in self._clients), default=0),
            "events": sum(client.offset for client in self._clients),
            "repeated": sum(client.repeated for client in self._clients),
        }

    async def aclose(self) -> None:
        """Cut all."""
        self._closing = True
        for client in self._clients:
            if client.transport is not None:
                client.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, client: HerdClient, word: str) -> None:
        if word == "connected":
            self.connected += 1
            if self._orders.stalled and client.transport is not None:
                client.transport.pause_reading()
            return
        if word == "lost":
            self.connected, self.lost = self.connected - 1, self.lost + 1
        else:
            self.refused += 1
        if not self._closing and (self._orders.returns or word == "refused"):
            self._dial(client, 0, word == "refused")

    def _dial(self, client: HerdClient, source: int, wait: bool = False) -> None:
        task = asyncio.create_task(self._connect(client, source, wait))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: HerdClient, source: int, wait: bool) -> None:
        loop, orders = asyncio.get_running_loop(), self._orders
        local = (f"127.0.0.{source + 1}", 0) if orders.host.startswith("127.") else None
        while not self._closing:
            if wait:
                # Full jitter, as every client of the protocol has it.
                await asyncio.sleep(random.uniform(0, _RETRY_S))
            wait = True
            async with self._turn:
                client.settled = loop.create_future()
                with contextlib.suppress(OSError):
                    await loop.create_connection(lambda: client, orders.host, orders.port, local_addr=local)
                    # Those that come back in a storm all come at once; others wait for their turn.
                    if not orders.returns:
                        await client.settled
                    return


class HerdProcess:
    """A herd as its starter sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def counts(self) -> dict[str, float]:
        """What the herd counts now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        counted: dict[str, float] = json.loads(line)
        return counted

    async def until(self, name: str, least: float, within_s: float) -> float:
        """Wait until a count has got so far; how long that took in seconds.

        Raises:
            RuntimeError: It did not in time.
        """
        began = time.monotonic()
        while (counts := await self.counts())[name] < least:
            if time.monotonic() - began > within_s:
                raise RuntimeError(f"after {within_s:g} s the herd stands at {counts}")
            await asyncio.sleep(0.02)
        return time.monotonic() - began


@asynccontextmanager
async def herd(orders: HerdOrders) -> AsyncIterator[HerdProcess]:
    """A herd in a process of its own, for the length of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "benchmarks.herd", json.dumps(asdict(orders)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield HerdProcess(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _serve(orders: HerdOrders) -> None:
    one = Herd(orders)
    one.begin()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(one.counts()), flush=True)
    await one.aclose()


def main() -> None:
    """Run a herd by the orders of the command line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    orders = HerdOrders(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(orders))


if __name__ == "__main__":
    main()
