"""What doctor says of a gateway that answers and does not let a test user's socket in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from carrel.cli.doctor.http import User
from carrel.errors import UnavailableError


@pytest.fixture
async def gateway_url() -> AsyncIterator[str]:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]))

    app = web.Application()
    app.router.add_get("/ws/{status}", refuse)
    server = TestServer(app)
    await server.start_server()
    yield str(server.make_url("/")).rstrip("/")
    await server.close()


@pytest.mark.parametrize(
    ("status", "to_do"), [(429, "CARREL_GATEWAY_LIMITS__PER_USER"), (502, "a proxy in front"), (403, "log says why")]
)
async def test_a_refused_socket_is_not_called_an_unreachable_gateway(gateway_url: str, status: int, to_do: str) -> None:
    async with User("u", {}, [gateway_url], "t-") as user:
        with pytest.raises(UnavailableError) as refused:
            async with user.socket(f"/ws/{status}"):
                pass
    assert refused.value.message == f"the gateway at {gateway_url} refuses a socket with {status}"
    assert to_do in refused.value.advice
