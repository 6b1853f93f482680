"""An ``RpcServer`` on a free port in the test's own loop, and a channel to it.

    async with serving([(add_…Servicer_to_server, servicer, "carrel.v1.BridgeService")]) as rpc:
        stub = bridge_pb2_grpc.BridgeServiceStub(rpc.channel)

The whole stack is the real one: tickets, deadlines, rules, errors. Only TLS and other processes are missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from grpc import aio

from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.server import RpcServer, Service
from servicekit.settings import SharedSettings
from tests.support.identity import identity


@dataclass(frozen=True)
class Rpc:
    """A running server, its address, and a channel to it."""

    server: RpcServer
    address: str
    channel: aio.Channel


def shared_settings(**changes: Any) -> SharedSettings:
    """Settings for tests: a short drain, everything else as by default."""
    return SharedSettings.model_validate({"drain_seconds": 0.5} | changes)


@asynccontextmanager
async def serving(
    services: Sequence[Service],
    *,
    verifier: TicketVerifier | None = None,
    settings: SharedSettings | None = None,
    listen: str = "127.0.0.1:0",
    **options: Any,
) -> AsyncIterator[Rpc]:
    """Serve for the length of the block; ``options`` go to ``RpcServer``."""
    server = RpcServer(listen, services, verifier or identity().verifier(), settings or shared_settings(), **options)
    async with server, open_channel(server.address) as channel:
        yield Rpc(server, server.address, channel)
