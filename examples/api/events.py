"""Start a run and follow its events as they happen: python events.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client import SocketClient


async def main(url: str, token: str) -> None:
    async with SocketClient(url, token) as client:
        run = await client.execute("Say three lines", pipeline=["quick"])
        async for event in client.run_events(run.run_id):
            print(event.event_type, event.data)


asyncio.run(main(*sys.argv[1:3]))
