"""Answer a run that asks: python answer.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client.http import GatewayHttp


async def main(url: str, token: str) -> None:
    async with GatewayHttp(url, token) as http:
        # It is answered when the run asks, too.
        run = await http.execute("Look into it", pipeline=["asking"])
        question = run["waiting_for"]
        print(question["prompt"])
        await http.provide_input(run["run_id"], question["input_id"], "quick")
        async for _ in http.run_events(run["run_id"]):
            pass
        print((await http.run(run["run_id"]))["result"])


asyncio.run(main(*sys.argv[1:3]))
