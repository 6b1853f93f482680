"""List runs, and threads with their messages: python listing.py URL TOKEN"""

# ruff: noqa: T201

import asyncio
import sys

from carrel.client.http import GatewayHttp


async def main(url: str, token: str) -> None:
    async with GatewayHttp(url, token) as http:
        await http.execute("Say three lines", pipeline=["quick"])
        for run in (await http.get("/api/runs?page_size=10&status=SUCCEEDED,FAILED"))["runs"]:
            print(run["run_id"], run["status"])
        for thread in (await http.get("/api/threads?page_size=10"))["threads"]:
            page = await http.get(f"/api/threads/{thread['thread_id']}/messages")
            print(thread["thread_id"], [message["text"] for message in page["messages"]])


asyncio.run(main(*sys.argv[1:3]))
