"""``python -m servicekit.health_check`` against real servers: well, not well, not there, and asked wrongly."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from servicekit.health_check import Question, main, question
from tests.conftest import Eventually
from tests.support.rpc import Rpc, serving, shared_settings


@pytest.fixture
async def rpc() -> AsyncIterator[Rpc]:
    async with serving([], settings=shared_settings()) as rpc:
        yield rpc


async def asked(service: str, name: str = "readiness", **environ: str) -> int:
    return await asyncio.to_thread(main, [service, name], environ)


async def test_a_service_is_well_while_its_checks_hold(
    rpc: Rpc, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = {"CARREL_BRIDGE_LISTEN": rpc.server.address}
    usable = True
    rpc.server.readiness.add("store", lambda: usable)
    assert await asked("bridge", **listen) == 0
    usable = False
    rpc.server.readiness.poke()

    async def is_unwell() -> bool:
        return await asked("bridge", **listen) == 1

    await eventually(is_unwell)
    assert "readiness is NOT_SERVING" in capsys.readouterr().err
    assert await asked("bridge", "liveness", **listen) == 0


async def test_nobody_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert await asked("execution", CARREL_EXECUTION_LISTEN=address) == 1
        assert "UNAVAILABLE" in capsys.readouterr().err
        assert await asked("gateway", CARREL_GATEWAY_LISTEN=address) == 1
        assert f"no answer at {address}" in capsys.readouterr().err


async def test_the_gateway_is_asked_over_http(capsys: pytest.CaptureFixture[str]) -> None:
    async def ready(_request: web.Request) -> web.Response:
        return web.Response(status=503)

    async def alive(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    application = web.Application()
    application.add_routes([web.get("/readyz", ready), web.get("/healthz", alive)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    listen = {"CARREL_GATEWAY_LISTEN": f"{host}:{port}"}
    assert await asked("gateway", "liveness", **listen) == 0
    assert await asked("gateway", **listen) == 1
    assert "status 503" in capsys.readouterr().err
    await runner.cleanup()


async def test_the_command_itself_ends_with_the_answer(rpc: Rpc) -> None:
    environment = {"CARREL_EMITTER_LISTEN": rpc.server.address, "PYTHONPATH": ":".join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "servicekit.health_check", "emitter", env=environment
    )
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0:50054", "127.0.0.1:50054"),
        ("[::]:50054", "[::1]:50054"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("unix:/tmp/s", "unix:/tmp/s"),
        ("", "127.0.0.1:50054"),
    ],
)
def test_it_asks_where_the_service_listens(listen: str, address: str) -> None:
    assert question("bridge", "readiness", {"CARREL_BRIDGE_LISTEN": listen}).address == address


def test_with_tls_it_shows_the_services_own_certificate_or_uses_the_address_for_probes() -> None:
    files = {f"CARREL_TLS__{name}": f"/run/{name}" for name in ("CERT", "KEY", "CA")}
    asked = question("agent-instance", "readiness", files)
    assert asked.tls == ("/run/CERT", "/run/KEY", "/run/CA")
    assert asked.host == "agent-instance.carrel.internal"
    assert question("gateway", "readiness", files).tls is None
    plain = question("bridge", "readiness", {**files, "CARREL_TLS__HEALTH_LISTEN": "0.0.0.0:50094"})
    assert plain == Question("bridge", "127.0.0.1:50094", "readiness")


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["bridges"], {}, "no service is called bridges"),
        (["bridge", "startup"], {}, "no health is kept under startup"),
        (["bridge"], {"CARREL_BRIDGE_LISTEN": "127.0.0.1:0"}, "names no port"),
        (["bridge"], {"CARREL_TLS__CERT": "/x"}, "set all three"),
        ([], {}, "SERVICE"),
    ],
)
def test_a_wrong_question_is_no_answer(
    arguments: list[str], environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, environ) == 2
    assert said in capsys.readouterr().err
