"""Read what a run leaves behind: python artifacts.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client.http import GatewayHttp


async def main(url: str, token: str) -> None:
    async with GatewayHttp(url, token) as http:
        run = await http.execute("Write it down", pipeline=["writing"])
        for artifact in await http.artifacts(run["run_id"]):
            data = await http.artifact_data(artifact)  # compared with its hash
            print(artifact.name, len(data))


asyncio.run(main(*sys.argv[1:3]))
