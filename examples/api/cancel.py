"""Cancel a run: python cancel.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client import SocketClient


async def main(url: str, token: str) -> None:
    async with SocketClient(url, token) as client:
        run = await client.execute("Take your time", pipeline=["slow"], params={"seconds": 30})
        await client.cancel(run.run_id, "not needed any more")
        async for event in client.run_events(run.run_id):
            if event.terminal:
                print(event.data["status"])


asyncio.run(main(*sys.argv[1:3]))
