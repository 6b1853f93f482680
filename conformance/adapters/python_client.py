"""``carrel.client.SocketClient`` behind the line protocol: ``python -m conformance.adapters.python_client``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from carrel.client import Backoff, Event, Gap, Notice, Position, Reset, SocketClient
from carrel.errors import CarrelError

FEATURES = ["batch", "compress", "ack", "execute", "thread"]


def tell(kind: str, body: object) -> None:
    """One line for the suite."""
    sys.stdout.write(json.dumps({kind: body}) + "\n")
    sys.stdout.flush()


class Adapter:
    """Does what it is told, and tells what the application of the client would see."""

    def __init__(self) -> None:
        self._client: SocketClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._connected = asyncio.Event()

    async def run(self) -> None:
        """Until told to close."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            told = json.loads(line)
            match told["do"]:
                case "connect":
                    self._start(self._read(told))
                case "pause":
                    self._go_on.clear()
                case "go_on":
                    self._go_on.set()
                case "execute":
                    self._start(self._execute(told["message"], told["client_ref"]))
                case "close":
                    break
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Any) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def _read(self, told: dict[str, Any]) -> None:
        resume = told["resume"]
        client = SocketClient(
            told["url"],
            told["token"],
            thread_id=told["thread_id"],
            resume=Position(**resume) if isinstance(resume, dict) else Position() if resume == "oldest" else None,
            backoff=Backoff(
                attempts=30, first_s=told["first_wait_ms"] / 1000, longest_s=told["longest_wait_ms"] / 1000
            ),
            patient=True,
            window=50,
        )
        try:
            async with client:
                self._client = client
                self._connected.set()
                items = client.items()
                while True:
                    await self._go_on.wait()
                    self._show(await anext(items))
        except CarrelError as error:
            tell("error", {"code": error.code, "message": error.message})

    def _show(self, item: Event | Notice) -> None:
        if isinstance(item, Event):
            tell("event", item.to_json())
        elif isinstance(item, Reset):
            tell("reset", {"reason": item.reason, "epoch": item.position.epoch, "offset": item.position.offset})
        elif isinstance(item, Gap):
            tell("gap", {"from": item.first, "to": item.last})

    async def _execute(self, message: str, client_ref: str) -> None:
        await self._connected.wait()
        assert self._client is not None
        try:
            run = await self._client.execute(message, client_ref=client_ref)
        except CarrelError as error:
            tell("refused", {"client_ref": client_ref, "code": error.code})
        else:
            tell("accepted", {"client_ref": client_ref, "run_id": run.run_id})


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"client": "carrel.client.SocketClient", "features": FEATURES}) + "\n")
    sys.stdout.flush()
    asyncio.run(Adapter().run())
