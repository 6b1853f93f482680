"""Stop reading, and go on later from where you were: python resume.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client import Event, Position
from carrel.client.http import GatewayHttp


async def main(url: str, token: str) -> None:
    async with GatewayHttp(url, token) as http:
        run = await http.execute("Say three lines", pipeline=["quick"])
        saved = ""
        async for item in http.run_events(run["run_id"]):
            if isinstance(item, Event):
                print("offset", item.offset)
                saved = str(item.position)
                if item.offset == 3:
                    break
        # Another day, another process:
        async for item in http.run_events(run["run_id"], resume=Position.parse(saved)):
            if isinstance(item, Event):
                print("offset", item.offset)


asyncio.run(main(*sys.argv[1:3]))
