"""``carrel watch``: a user's events as they come, or one run's from its first to its last."""

from __future__ import annotations

import asyncio

from carrel.cli.output import EXIT_OK
from carrel.cli.reconnect import reconnect_backoff
from carrel.cli.run import Show
from carrel.cli.signals import on_signals
from carrel.cli.target import Target
from carrel.client import Event, Position, SocketClient
from carrel.client.http import GatewayHttp

__all__ = ["watch_events"]


async def watch_events(target: Target, *, run_id: str, thread_id: str, everything: bool, as_json: bool) -> int:
    """Show events until a signal, or until the run's end; the exit code.

    Raises:
        CarrelError: There is no such run, or the gateway refused or cannot be reached.
    """
    backoff = reconnect_backoff()
    if run_id:
        async with GatewayHttp(target.url, target.token) as http:
            thread_id = str((await http.run(run_id))["thread_id"])
    show = Show(as_json=as_json, labels=not run_id)
    resume = Position() if everything or run_id else None
    with on_signals() as stop:
        async with SocketClient(
            target.url, target.token, thread_id=thread_id, resume=resume, backoff=backoff
        ) as socket:
            watching = asyncio.create_task(_watch(socket, run_id, show), name="watch")
            asked = asyncio.create_task(stop.requested.wait(), name="wait for a signal")
            try:
                await asyncio.wait([watching, asked], return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
            finally:
                watching.cancel()
                asked.cancel()
                await asyncio.gather(watching, asked, return_exceptions=True)
    return EXIT_OK


async def _watch(socket: SocketClient, run_id: str, show: Show) -> None:
    async for item in socket.items():
        if not isinstance(item, Event):
            show.item(item)
        elif not run_id or item.run_id == run_id:
            show.item(item)
            if run_id and item.terminal:
                return
