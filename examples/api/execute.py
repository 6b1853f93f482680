"""Start a run and wait for its result: python execute.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client.http import GatewayHttp


async def main(url: str, token: str) -> None:
    async with GatewayHttp(url, token) as http:
        run = await http.execute("Say three lines", pipeline=["quick"])
        print(run["status"], run["result"])


asyncio.run(main(*sys.argv[1:3]))
