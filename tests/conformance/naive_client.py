"""A client as one writes it in ten minutes: reads, and comes back. It has no idea of positions, gaps, resets, codes."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp


def tell(body: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


async def read(told: dict[str, Any]) -> None:
    resume = {} if told["resume"] is None else {"resume": {"offset": 0}}
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.ws_connect(told["url"] + "/ws") as ws:
                    await ws.send_json({"type": "connect", "token": told["token"], "batch": True, **resume})
                    async for message in ws:
                        frame = message.json()
                        for event in frame.get("events", [frame]):
                            if "event_type" in event:
                                tell({"event": event})
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def main() -> None:
    tell({"client": "naive", "features": ["batch"]})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = []
    while line := await reader.readline():
        told = json.loads(line)
        if told["do"] == "connect":
            tasks.append(asyncio.create_task(read(told)))
        elif told["do"] == "close":
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
