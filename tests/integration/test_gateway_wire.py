"""The socket below its frames: taken over from HTTP, WebSocket's own pings and closes, silent peers, drains."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.unit.gateway.harness import Gateway, gateway, token
from tests.unit.gateway.test_wire import frame

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def _upgraded(g: Gateway, behind: bytes = b"", *, by_header: bool = True) -> AsyncIterator[Stream]:
    """A raw connection after its upgrade; ``behind`` is sent in one piece with the request."""
    host, port = g.server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = f"Authorization: Bearer {token('alice')}\r\n" if by_header else ""
    request = (
        "GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
    try:
        writer.write(request.encode() + behind)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        # The example of RFC 6455 §1.3.
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"Server: carrel\r\n" in head
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _next(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Opcode and payload of the server's next frame."""
    first, size = await asyncio.wait_for(reader.readexactly(2), 5)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    assert first & 0x80
    return first & 0x0F, await reader.readexactly(size)


async def _json(reader: asyncio.StreamReader) -> dict[str, Any]:
    opcode, payload = await _next(reader)
    assert opcode == 1, (opcode, payload)
    loaded: dict[str, Any] = orjson.loads(payload)
    return loaded


async def test_frames_that_come_with_the_request_are_not_lost(tmp_path: Path) -> None:
    early = frame(1, b'{"type": "ping", "client_ref": "early"}') + frame(9, b"hello")
    async with gateway(tmp_path) as g, _upgraded(g, early) as (reader, _):
        seen = [await _next(reader) for _ in range(3)]
    assert (10, b"hello") in seen
    kinds = [orjson.loads(payload)["type"] for opcode, payload in seen if opcode == 1]
    assert kinds == ["connected", "pong"]


async def test_a_login_by_frame_that_comes_with_the_request_works_too(tmp_path: Path) -> None:
    early = frame(1, b'{"type": "connect", "token": "%b"}' % token("alice").encode())
    async with gateway(tmp_path) as g, _upgraded(g, early, by_header=False) as (reader, _):
        assert (await _json(reader))["type"] == "connected"


async def test_websocket_pings_are_answered_and_a_close_is_echoed(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g, _upgraded(g) as (reader, writer):
        assert (await _json(reader))["type"] == "connected"
        writer.write(frame(9, b"you there?"))
        assert await _next(reader) == (10, b"you there?")
        writer.write(frame(8, (3000).to_bytes(2, "big") + b"bye"))
        assert await _next(reader) == (8, (3000).to_bytes(2, "big"))
        assert await reader.read() == b""
        await eventually(lambda: g.server.connections == 0)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [(b"\x81\x02hi", 1002), (frame(1, b"\xff"), 1007), (frame(5), 1002), (frame(1, b"", rsv=0x40), 1002)],
)
async def test_a_peer_that_breaks_the_protocol_is_told_and_closed(
    tmp_path: Path, eventually: Eventually, wrong: bytes, code: int
) -> None:
    async with gateway(tmp_path) as g, _upgraded(g) as (reader, writer):
        await _json(reader)
        writer.write(wrong)
        opcode, payload = await _next(reader)
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, code)
        assert await reader.read() == b""
        await eventually(lambda: g.server.connections == 0)


async def test_a_peer_that_answers_no_ping_is_cut_and_one_that_does_stays(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path, heartbeat_interval=0.6) as g:
        polite, _ = await g.ready("bob")
        async with _upgraded(g) as (reader, _):
            assert (await _json(reader))["type"] == "connected"
            began = time.monotonic()
            pings = asyncio.create_task(_pings(polite.ws, 2))
            with Awake() as took, contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 15)
            assert took.seconds < 2.0
            assert time.monotonic() - began > 0.6
        await asyncio.wait_for(pings, 15)
        await eventually(lambda: g.server.connections == 1)


async def _pings(ws: Any, count: int) -> None:
    """Until so many have come; reading answers them."""
    while count:
        count -= orjson.loads((await ws.receive()).data)["type"] == "ping"


async def test_a_drain_says_its_byes_over_time_and_tells_each_when_to_come_back(tmp_path: Path) -> None:
    count = 90
    async with gateway(tmp_path, drain_seconds=4.0, limits={"per_user": 500}) as g:
        sockets = [(await g.ready("alice"))[0] for _ in range(count)]
        began = time.monotonic()
        byes: list[tuple[float, int]] = []

        async def until_bye(number: int) -> None:
            frames, code = await sockets[number].closed(within_s=10)
            assert (frames[-1]["type"], frames[-1]["reason"], code) == ("bye", "drain", 4000)
            byes.append((time.monotonic() - began, frames[-1]["retry_ms"]))

        draining = asyncio.create_task(g.server.drain())
        await asyncio.gather(*(until_bye(number) for number in range(count)))
        await draining
    moments = sorted(moment for moment, _ in byes)
    # 2 ms each, as far as the drain has time.
    assert moments[-1] - moments[0] > 0.09
    waits = [wait for _, wait in byes]
    assert max(waits) <= 250
    assert len(set(waits)) > 30, "full jitter"


async def test_operators_read_what_the_gateway_does_and_nobody_else_does(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready("alice")
        await g.publish("alice", "run-1", 7)
        await socket.events(7)
        url = g.url + "/api/operator/gateway"
        body: dict[str, Any] = {}
        for permissions, status in (([], 403), (["operator:read"], 200)):
            headers = {"Authorization": f"Bearer {token('olga', permissions=permissions)}"}
            async with g.http.get(url, headers=headers) as response:
                assert response.status == status
                body = await response.json()
        assert (body["connections"], body["users"], body["lag_events"]) == (1, 1, 0)
        assert body["totals"]["events_sent"] == 7
        assert body["totals"]["accepted"] == 1
        assert "alice" not in str(body)
