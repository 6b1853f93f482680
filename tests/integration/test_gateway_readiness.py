"""What ``/readyz`` says: follows the bridge and execution, asks them seldom, and never touches what is open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2

from gateway.downstream import Downstream
from servicekit.health import HealthServicer, add_health
from servicekit.rpc.channel import open_channel
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, gateway


async def _readyz(g: Gateway) -> tuple[int, dict[str, Any]]:
    async with g.http.get(g.url + "/readyz") as response:
        return response.status, await response.json()


async def test_readiness_follows_the_bridge(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:

        async def is_ready() -> bool:
            return await _readyz(g) == (200, {"status": "ready"})

        async def is_failing() -> bool:
            return await _readyz(g) == (503, {"status": "not_ready", "failing": ["bridge"]})

        await eventually(is_ready)
        await g.bridge.kill()
        await eventually(is_failing)
        await g.bridge.start()
        await eventually(is_ready)


@pytest.mark.parametrize("name", ["bridge", "execution"])
async def test_readiness_follows_what_a_service_says_of_itself_and_closes_nothing(
    name: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        server = g.bridge.server if name == "bridge" else g.execution_server
        assert server is not None
        well = False
        server.readiness.add("store", lambda: well)
        server.readiness.poke()

        async def is_failing() -> bool:
            return await _readyz(g) == (503, {"status": "not_ready", "failing": [name]})

        async def is_ready() -> bool:
            return (await _readyz(g))[0] == 200

        await eventually(is_failing)
        async with g.http.get(g.url + "/healthz") as response:
            assert response.status == 200
        await socket.send(type="agent_execute", message="m", client_ref="r1")
        assert (await socket.control("run_accepted"))["client_ref"] == "r1"
        well = True
        server.readiness.poke()
        await eventually(is_ready)
        await socket.send(type="ping", client_ref="still")
        assert (await socket.control("pong"))["client_ref"] == "still"


async def test_a_services_health_is_asked_once_a_second_at_most() -> None:
    asked, now = 0, 0.0

    class Health(HealthServicer):
        async def Check(self, request: Any, context: Any) -> Any:
            nonlocal asked
            asked += 1
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    server = aio.server()
    add_health(Health(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            downstream = Downstream(channel, clock=lambda: now)
            assert all(await asyncio.gather(*(downstream.ready() for _ in range(20))))
            assert asked == 1
            now = 1.0
            assert await downstream.ready()
            assert asked == 2
            await server.stop(None)
            assert await downstream.ready(), "kept for a second"
            now = 2.0
            assert not await downstream.ready()
    finally:
        await server.stop(None)
