"""A gateway that dies between a run's end and its artifacts is waited for, not taken for a failed run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from carrel.cli.saving import fetch_artifacts
from carrel.client.backoff import Backoff
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, StartupError, UnavailableError
from tests.support.awake import Awake

QUICK = Backoff(attempts=4, first_s=0.02, longest_s=0.05)
FILES = {"report.md": b"# it", "data.csv": b"a,b\n"}
Answer = Callable[[int, web.Request], web.StreamResponse | None]


def _away(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


@asynccontextmanager
async def serving(disturb: Answer) -> AsyncIterator[tuple[GatewayHttp, list[str]]]:
    """A gateway with two artifacts, of which ``disturb`` may answer the n-th call otherwise, from 1 on."""
    calls: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        calls.append(request.path)
        if (other := disturb(len(calls), request)) is not None:
            return other
        name = request.path.rpartition("/")[2]
        if name in FILES:
            return web.Response(body=FILES[name])
        listed = [
            {"name": name, "media_type": "text/plain", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in FILES.items()
        ]
        return web.json_response({"artifacts": listed})

    app = web.Application()
    app.router.add_get("/api/runs/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with GatewayHttp(f"http://127.0.0.1:{runner.addresses[0][1]}", "t") as http:
            yield http, calls
    finally:
        await runner.cleanup()


async def test_it_is_tried_again_while_the_gateway_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def disturb(number: int, request: web.Request) -> web.StreamResponse | None:
        if number in {1, 4}:
            _away(request)
        return web.Response(status=502, text="<html>") if number == 2 else None

    async with serving(disturb) as (http, calls):
        saved = await fetch_artifacts(http, "run-1", tmp_path, asyncio.Event(), QUICK)
    assert {path.name: path.read_bytes() for _, path in saved} == FILES
    assert len(calls) >= 6
    told = capsys.readouterr()
    assert told.out == ""
    assert "carrel: the run's artifacts cannot be read: " in told.err
    assert "trying again in 0.0 s" in told.err


async def test_it_gives_up_in_the_end_and_at_once_where_trying_again_cannot_help(tmp_path: Path) -> None:
    async with serving(lambda _, request: web.Response(status=503)) as (http, calls):
        with pytest.raises(UnavailableError, match="503"):
            await fetch_artifacts(http, "run-1", tmp_path, asyncio.Event(), QUICK)
        assert len(calls) == QUICK.attempts
    async with serving(lambda _, request: web.Response(status=404)) as (http, calls):
        with pytest.raises(CarrelError, match="404"):
            await fetch_artifacts(http, "run-1", tmp_path, asyncio.Event(), QUICK)
        assert len(calls) == 1


async def test_whoever_interrupts_it_does_not_wait(tmp_path: Path) -> None:
    stop, slow = asyncio.Event(), Backoff(attempts=9, first_s=30, longest_s=30, steady=1)
    async with serving(lambda _, request: web.Response(status=503)) as (http, _):
        asyncio.get_running_loop().call_later(0.1, stop.set)
        with Awake() as took, pytest.raises(UnavailableError):
            await fetch_artifacts(http, "run-1", tmp_path, stop, slow)
        assert took.seconds < 5


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    async with serving(lambda _number, _request: None) as (http, _):
        with pytest.raises(StartupError, match="can't be written to") as told:
            await fetch_artifacts(http, "run-1", tmp_path / "file" / "run-1", asyncio.Event(), QUICK)
    assert "--save" in told.value.advice
