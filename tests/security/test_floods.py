"""Floods, slow peers and bombs, on loopback: bounded, closed in time, and an honest user is served meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import logging
import resource
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.rest import http
from servicekit.rpc import server as rpc_server
from servicekit.rpc.channel import open_channel
from servicekit.rpc.server import RpcServer
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.certificates import certificate_for, tls_of
from tests.support.identity import identity
from tests.support.rpc import shared_settings
from tests.unit.gateway.harness import Gateway, gateway, token
from tests.unit.gateway.test_wire import deflate, frame

_FLOOD: Final = "127.0.0.2"  # from where the flood comes; honest users come from 127.0.0.1
_BOUND: Final = 40
_UPGRADE: Final = (
    "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


async def _dial(g: Gateway, said: bytes = b"", address: str = _FLOOD) -> tuple[asyncio.StreamReader, Any]:
    host, _, port = g.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(address, 0))
    writer.write(said)
    return reader, writer


@asynccontextmanager
async def _flooding(g: Gateway, said: bytes, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    opened = await asyncio.gather(*(_dial(g, said) for _ in range(count)))
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def _served(g: Gateway) -> None:
    """An honest user logs in and is answered, all soon."""
    with Awake() as took:
        socket, _ = await g.ready("alice")
        await socket.send(type="ping", client_ref="honest")
        assert (await socket.control("pong"))["client_ref"] == "honest"
        async with g.http.get(g.url + "/api/agents", headers={"Authorization": f"Bearer {token()}"}) as response:
            assert response.status == 200
    assert took.seconds < 3
    await socket.ws.close()


async def _end(reader: asyncio.StreamReader, within_s: float = 20.0) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), within_s)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="connections"),
        pytest.param(b"GET /ws HTTP/1.1\r\nHost: x\r\nX-a: ", id="half heads"),
        pytest.param(_UPGRADE.encode(), id="half upgrades"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS to a plain port"),
    ],
)
async def test_a_flood_of_connections_is_bounded_per_address(tmp_path: Path, said: bytes) -> None:
    async with gateway(tmp_path, limits={"per_address": _BOUND}, connect_seconds=1.0) as g:
        async with _flooding(g, said, 4 * _BOUND) as readers:
            await _served(g)
            ends = await asyncio.gather(*map(_end, readers))
            refused = [end for end in ends if end.startswith(b"HTTP/1.1 429")]
            assert len(refused) == 3 * _BOUND
        await _served(g)


async def test_a_flood_of_handshakes_without_a_login_is_bounded_and_timed(tmp_path: Path) -> None:
    async with gateway(tmp_path, limits={"per_address": _BOUND}, connect_seconds=0.5) as g:
        async with _flooding(g, f"{_UPGRADE}\r\n".encode(), 2 * _BOUND) as readers:
            await _served(g)
            ends = await asyncio.gather(*map(_end, readers))
        upgraded = [end for end in ends if end.startswith(b"HTTP/1.1 101")]
        assert len(upgraded) == _BOUND
        assert all(b"HANDSHAKE_TIMEOUT" in end for end in upgraded)
        assert all(end.startswith(b"HTTP/1.1 429") for end in ends if end not in upgraded)
        await _served(g)


async def test_a_flood_of_wrong_tokens_and_frames_harms_nobody(tmp_path: Path) -> None:
    async with gateway(tmp_path, limits={"per_address": 200}) as g:
        wrong = f"{_UPGRADE}Authorization: Bearer {token(secret='s' * 40)}\r\n\r\n".encode()
        login = frame(1, b'{"type":"connect","token":"garbage"}')
        async with (
            _flooding(g, wrong, 80) as first,
            _flooding(g, f"{_UPGRADE}\r\n".encode() + login + frame(1, b"x") * 500, 80) as second,
        ):
            await _served(g)
            assert all(end.startswith(b"HTTP/1.1 401") for end in await asyncio.gather(*map(_heads, first)))
            assert all(b"TOKEN" in end for end in await asyncio.gather(*map(_end, second)))


async def _heads(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)


# Slow peers.


async def _trickle(writer: Any, what: bytes, every_s: float) -> None:
    try:
        for at in range(len(what)):
            writer.write(what[at : at + 1])
            await writer.drain()
            await asyncio.sleep(every_s)
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        pytest.param("", "GET /api/runs HTTP/1.1\r\nHost: x\r\n" + "X-a: b\r\n" * 200, id="headers"),
        pytest.param("", _UPGRADE + "X-a: b\r\n" * 200, id="upgrade"),
        pytest.param(_UPGRADE + "\r\n", frame(1, b'{"type":"connect"' + b" " * 500).decode("latin-1"), id="frame"),
    ],
)
async def test_a_peer_that_sends_a_byte_at_a_time_is_cut_off(tmp_path: Path, begin: str, rest: str) -> None:
    async with gateway(tmp_path, connect_seconds=0.6) as g:
        peers = [await _dial(g, begin.encode()) for _ in range(10)]
        with Awake() as took:
            trickles = [asyncio.create_task(_trickle(writer, rest.encode("latin-1"), 0.02)) for _, writer in peers]
            await _served(g)
            await asyncio.gather(*(_end(reader) for reader, _ in peers))
        # In time, though something came all the while.
        assert took.seconds < 3
        for task in trickles:
            task.cancel()
        await asyncio.gather(*trickles, return_exceptions=True)


async def test_a_body_that_comes_a_byte_at_a_time_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.5)
    head = f"POST /api/agents/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    async with gateway(tmp_path) as g:
        reader, writer = await _dial(g, head.encode())
        trickle = asyncio.create_task(_trickle(writer, b" " * 1000, 0.02))
        await _served(g)
        assert (await _heads(reader)).startswith(b"HTTP/1.1 408")
        trickle.cancel()
        await asyncio.gather(trickle, return_exceptions=True)


async def test_a_tls_handshake_that_never_ends_is_cut_off_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(rpc_server, "HANDSHAKE_MS", 1_000)
    settings = shared_settings(tls=certificate_for(tmp_path / "server", "bridge"))
    async with RpcServer("127.0.0.1:0", [], identity().verifier(), settings) as server:
        host, _, port = server.address.rpartition(":")
        peers = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
        for number, (_, writer) in enumerate(peers):
            # A record of 512 bytes of which the first few come; or nothing at all.
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01" if number % 2 else b"")
        tls = tls_of(certificate_for(tmp_path / "client", "emitter"), "emitter")
        async with open_channel(server.address, tls=tls.to("bridge")) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=15)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with Awake() as took:
            await asyncio.gather(*(_end(reader) for reader, _ in peers))
        assert took.seconds < 6
        for _, writer in peers:
            writer.close()


# Bombs.


@pytest.fixture
def memory() -> Iterator[None]:
    """The process has grown by less than any bomb would need."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "KiB"


def _zeros(packer: Any, mebibytes: int) -> bytes:
    """So many packed, without having them."""
    chunk = bytes(1 << 20)
    packed: bytes = b"".join(packer.compress(chunk) for _ in range(mebibytes)) + packer.flush()
    return packed


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_unpacks_to_many_mebibytes_is_refused(tmp_path: Path, coding: str) -> None:
    bomb = _zeros(zlib.compressobj(9, wbits=31 if coding == "gzip" else 15), 200)
    assert len(bomb) < http.MAX_BODY_BYTES
    headers = {
        "Authorization": f"Bearer {token()}",
        "Content-Type": "application/json",
        "Content-Encoding": coding,
    }
    async with gateway(tmp_path) as g:
        for route in ("/api/agents/execute", "/api/tickets", "/api/logout"):
            async with g.http.post(g.url + route, data=bomb, headers=headers) as response:
                assert response.status == 413, route
                assert (await response.json())["error"]["code"] == "TOO_LARGE"
        await _served(g)


async def test_a_packed_body_of_an_honest_size_is_taken(tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with gateway(tmp_path) as g:
        body = gzip.compress(b'{"scope":"session"}')
        async with g.http.post(g.url + "/api/tickets", data=body, headers=headers) as response:
            assert response.status == 200


@pytest.mark.usefixtures("memory")
async def test_a_frame_that_unpacks_to_mebibytes_closes_its_connection_alone(tmp_path: Path) -> None:
    packing = zlib.compressobj(9, wbits=-15)
    chunk = bytes(1 << 20)
    bomb = b"".join(packing.compress(chunk) for _ in range(200)) + packing.flush(zlib.Z_SYNC_FLUSH)
    assert deflate(b"{}") != bomb
    ask = f"{_UPGRADE.replace('/ws', '/ws?deflate=1', 1)}Authorization: Bearer {token('bob')}\r\n"
    ask += "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    async with gateway(tmp_path) as g:
        for pieces in (1, 7):
            size = -(-len(bomb) // pieces)
            parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
            sent = b"".join(
                frame(0 if number else 1, part, fin=number == len(parts) - 1, rsv=0 if number else 0x40)
                for number, part in enumerate(parts)
            )
            reader, writer = await _dial(g, ask.encode() + sent)
            said = await _end(reader)
            assert b"permessage-deflate" in said
            # 1009 is RFC 6455's "too big"; ours is behind a bye that says so.
            assert b"\x03\xf1" in said or b"TOO_LARGE" in said
            writer.close()
        await _served(g)


async def test_what_is_no_http_is_told_once_and_never_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    secret = "tell" + "tale-0123456789"
    wrong = (
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\x01\r\n\r\n",
        f"GET /{secret}\x02 HTTP/1.1\r\n\r\n",
        f"{secret} nonsense\r\n\r\n",
        f"POST /api/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nX: {secret}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1{secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX-{secret}: {'a' * 30_000}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\n {secret}\r\n\r\n",
    )
    async with gateway(tmp_path) as g:
        for said in wrong * 3:
            reader, writer = await _dial(g, said.encode())
            answer = await _end(reader)
            assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), said
            writer.close()
        await _served(g)
    told = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert 1 <= len(told) <= 3
    assert {record.getMessage() for record in told} == {"malformed requests"}
    assert secret not in caplog.text
