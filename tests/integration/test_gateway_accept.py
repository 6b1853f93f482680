"""TCP connections that never become a request: closed in time, counted from their accept on, nobody else's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest

from gateway.rest import http
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, gateway, token

HALF = b"GET /ws HTTP/1.1\r\nHost: x\r\nX-a: "
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def _dialled(g: Gateway, said: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = urlparse(g.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(said)
        yield reader, writer
    finally:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("said", [b"", HALF])
async def test_a_connection_without_a_whole_head_is_closed_in_time(tmp_path: Path, said: bytes) -> None:
    async with gateway(tmp_path, connect_seconds=0.2) as g, _dialled(g, said) as (reader, _):
        assert await _rest(reader) == b""


async def test_a_head_in_time_keeps_the_connection(tmp_path: Path) -> None:
    async with gateway(tmp_path, connect_seconds=0.2) as g, _dialled(g, HEALTH) as (reader, writer):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readexactly(len(b'{"status":"ok"}'))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)
        writer.write(HEALTH)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_does_not_come_is_answered_with_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.2)
    head = (
        f"POST /api/agents/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    async with gateway(tmp_path) as g, _dialled(g, head.encode()) as (reader, _):
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 408")


async def test_half_open_connections_are_counted_and_given_back(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, limits={"per_address": 2}) as g:
        async with _dialled(g, HALF), _dialled(g, HALF), _dialled(g) as (reader, _):
            answer = await _rest(reader)
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests")
            assert b"max_connections_per_address" in answer

        async def served() -> bool:
            async with _dialled(g, HEALTH) as (reader, _):
                return (await reader.readline()).startswith(b"HTTP/1.1 200")

        await eventually(served)


async def test_sockets_count_as_sockets_only_and_leave_room_for_requests(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path, limits={"per_address": 2, "per_user": 9}) as g:
        for _ in range(3):
            sockets = [await g.connect("alice") for _ in range(2)]
            async with _dialled(g, HEALTH) as (reader, _), _dialled(g, HALF):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            for socket in sockets:
                await socket.ws.close()
            await eventually(lambda: g.server.connections == 0)


async def test_a_trusted_proxys_connections_are_not_counted_for_its_address(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, limits={"per_address": 1}, trusted_proxies=("127.0.0.0/8",)) as g,
        _dialled(g, HALF),
        _dialled(g, HALF),
        _dialled(g, HEALTH) as (reader, _),
    ):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
