"""A service for the tests of the life cycle, run as a program: what it does wrong, its settings say.

Not a test, and imported by none.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from carrel.v1 import bridge_pb2, bridge_pb2_grpc
from servicekit.identity.keys import KeySet
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Phase, Starter, run_service
from servicekit.rpc.channel import open_channel
from servicekit.rpc.server import RpcServer
from servicekit.rpc.waiting import wait_ready
from servicekit.settings import SharedSettings
from servicekit.tasks import TaskOwner


class BridgeSettings(SharedSettings):
    """What goes wrong, and where to write what happened."""

    listen: str = "127.0.0.1:0"
    downstream: str = ""
    trace: Path | None = None
    fault: Literal["", "app", "task", "hang-start", "hang-close", "raise-close", "deaf-close", "store", "stall"] = ""


class Servicer:
    """Answers one RPC after a minute, unless cancelled."""

    def __init__(self, note: Any) -> None:
        self._note = note

    def __getattr__(self, name: str) -> Any:
        if name in bridge_pb2.DESCRIPTOR.services_by_name["BridgeService"].methods_by_name:
            return self.ResolveRun
        raise AttributeError(name)

    async def ResolveRun(self, request: Any, context: Any) -> Any:
        """Waits."""
        self._note("call began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self._note("call cut off")
            raise
        return bridge_pb2.ResolveRunResponse()


@asynccontextmanager
async def store(settings: BridgeSettings, note: Any) -> AsyncIterator[None]:
    """Something that must be closed after the server and before its elder."""
    if settings.fault == "store":
        raise PermissionError(13, "Permission denied", "/var/lib/log.db")
    note("store opened")
    try:
        yield
    finally:
        while settings.fault in {"hang-close", "deaf-close"}:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if settings.fault == "hang-close":
                    raise
        if settings.fault == "raise-close":
            raise OSError("the disk is full")
        note("store closed")


@asynccontextmanager
async def app(settings: BridgeSettings, start: Starter) -> AsyncIterator[RpcServer]:
    """Builds a store, maybe a channel, tasks and a server."""

    def note(event: str) -> None:
        if settings.trace is not None:
            with settings.trace.open("a", encoding="utf-8") as file:
                file.write(event + "\n")

    async with start.phase(Phase.CONFIGURATION, needs="the public keys of who mints tickets"):
        keys = KeySet.from_jwks_file(settings.ticket_jwks)
    if settings.fault == "app":
        raise ValueError("no such thing")
    if settings.fault == "hang-start":
        note("hanging")
        await asyncio.sleep(60)
    async with start.phase(Phase.INTEGRATION, needs="the log's store", advice="make the folder writable"):
        opened = store(settings, note)
        await opened.__aenter__()
    try:
        if settings.downstream:
            async with (
                open_channel(settings.downstream) as channel,
                start.phase(Phase.INTEGRATION, needs=f"the emitter at {settings.downstream}"),
            ):
                await wait_ready(channel, "the emitter", settings.downstream_wait_seconds)
        async with TaskOwner() as tasks:
            if settings.fault == "task":
                _ = tasks.start(fail(), "clean-up loop")
            if settings.fault == "stall":
                _ = tasks.start(stall(note), "a blocking call")
            add = bridge_pb2_grpc.add_BridgeServiceServicer_to_server
            services = [(add, Servicer(note), "carrel.v1.BridgeService")]
            server = RpcServer(settings.listen, services, TicketVerifier(keys), settings)
            _ = tasks.start(tell_drain(server, note), "drain watch")
            yield server
            note("server gone")
    finally:
        await opened.__aexit__(None, None, None)


async def tell_drain(server: RpcServer, note: Any) -> None:
    """As a stream's handler would."""
    await server.draining.wait()
    note("draining")


async def stall(note: Any) -> None:
    """Blocks the loop again and again."""
    while True:
        await asyncio.sleep(0.3)
        time.sleep(1.4)  # noqa: ASYNC251 -- the fault
        note("stalled")


async def fail() -> None:
    """A task that does not go well."""
    await asyncio.sleep(0.2)
    raise ZeroDivisionError("by zero")


if __name__ == "__main__":
    sys.exit(run_service("bridge", BridgeSettings, app))
