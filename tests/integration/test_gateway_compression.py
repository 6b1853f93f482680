"""Compression: batches as gzip in hex, and permessage-deflate; only for those who ask, and only where permitted."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import pytest

from gateway import encoding
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, Socket, gateway, token


async def _opened(g: Gateway, **options: Any) -> tuple[Socket, dict[str, Any]]:
    socket = await g.open()
    await socket.send(type="connect", token=token("alice"), resume={"offset": 0}, **options)
    return socket, await socket.control("connected")


def _unpacked(batch: dict[str, Any]) -> list[dict[str, Any]]:
    packed = bytes.fromhex(batch["events_compressed"])
    whole = gzip.decompress(packed)
    assert (batch["compressed_size"], batch["original_size"]) == (len(packed), len(whole))
    assert len(batch["events_compressed"]) <= 0.8 * len(whole)
    events: list[dict[str, Any]] = orjson.loads(whole)
    assert len(events) == batch["batch_size"]
    return events


async def test_a_batch_of_many_events_is_compressed_for_who_asks(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 100)
        plain, _ = await _opened(g, batch=True)
        expected = await plain.events(100)
        socket, connected = await _opened(g, batch=True, compress=True)
        assert connected["compression"] == "gzip-hex"
        seen: list[dict[str, Any]] = []
        while len(seen) < 100:
            batch = await socket.frame()
            assert batch["compressed"] is True
            assert set(batch) == {
                "event_type", "batch_size", "compressed", "events_compressed", "original_size", "compressed_size",
            }  # fmt: skip
            seen += _unpacked(batch)
    assert seen == expected


async def test_few_events_are_sent_as_they_are(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 3)
        socket, _ = await _opened(g, batch=True, compress=True)
        batch = await socket.frame()
        assert (batch["batch_size"], batch["compressed"], len(batch["events"])) == (3, False, 3)


async def test_what_does_not_get_smaller_is_sent_as_it_is(tmp_path: Path) -> None:
    noise = Random(1)
    async with gateway(tmp_path) as g:
        for _ in range(4):
            await g.publish("alice", "run-1", 1, data={"pad": f"{noise.getrandbits(64_000):x}"})
        socket, _ = await _opened(g, batch=True, compress=True)
        batch = await socket.frame()
        assert (batch["batch_size"], batch["compressed"]) == (4, False)


@pytest.mark.parametrize("asked", [{"batch": True}, {"compress": True}, {"batch": True, "compress": False}])
async def test_who_does_not_ask_for_both_gets_none(tmp_path: Path, asked: dict[str, Any]) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 20)
        socket, connected = await _opened(g, **asked)
        assert "compression" not in connected
        assert len(await socket.events(20)) == 20


async def test_a_deployment_may_refuse_both_kinds(tmp_path: Path) -> None:
    async with gateway(tmp_path, enable_compression=False) as g:
        await g.publish("alice", "run-1", 20)
        socket, connected = await _opened(g, batch=True, compress=True)
        assert "compression" not in connected
        assert (await socket.frame())["compressed"] is False
        other = await g.connect("alice", "/ws?deflate=1", compress=15)
        assert other.ws.compress == 0


async def test_switches_turn_both_kinds_while_it_runs(tmp_path: Path, eventually: Eventually) -> None:
    file = tmp_path / "features.json"
    file.write_text("{}", encoding="utf-8")

    async def granted() -> tuple[bool, int]:
        socket, connected = await _opened(g, batch=True, compress=True)
        other = await g.connect("alice", "/ws?deflate=1", compress=15)
        found = "compression" in connected, other.ws.compress
        await asyncio.gather(socket.ws.close(), other.ws.close())
        return found

    async with gateway(tmp_path, features_file=file) as g:
        assert await granted() == (True, 15)
        file.write_text('{"gateway.compressed_batches": false, "gateway.permessage_deflate": false}', encoding="utf-8")
        await eventually(lambda: _is(granted(), (False, 0)), within=10)
        file.write_text("{}", encoding="utf-8")
        await eventually(lambda: _is(granted(), (True, 15)), within=10)


async def _is(found: Awaitable[object], expected: object) -> bool:
    return await found == expected


@pytest.mark.parametrize(
    ("path", "headers", "offer", "agreed"),
    [
        ("/ws?deflate=1", {}, 15, 15),
        ("/ws", {"deflate": "1"}, 15, 15),
        ("/ws", {}, 15, 0),
        ("/ws?deflate=1", {}, 0, 0),
    ],
)
async def test_permessage_deflate_is_for_who_offers_it_and_asks(
    tmp_path: Path, path: str, headers: dict[str, str], offer: int, agreed: int
) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 30)
        socket = await g.connect("alice", path, headers=headers, compress=offer)
        assert socket.ws.compress == agreed
        await socket.send(type="connect", batch=True, resume={"offset": 0})
        assert len(await socket.events(30)) == 30
        await socket.send(type="agent_execute", message="m" * 1000)
        assert (await socket.control("run_accepted"))["run_id"]
        await socket.send(type="nonsense " * 100)
        error = await socket.frame()
        assert error["code"] == "UNKNOWN_FRAME"
        for _ in range(9):
            await socket.send(type="nonsense")
        frames, code = await socket.closed()
        assert (frames[-1]["type"], code) == ("bye", 4501)


async def test_an_offer_that_cannot_be_met_is_declined(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for offer, agreed in (
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; unheard_of", None),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=10", "10"),
        ):
            headers = {"Authorization": f"Bearer {token()}", "Sec-WebSocket-Extensions": offer}
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            async with g.http.get(g.url + "/ws?deflate=1", headers=headers | upgrade | key) as response:
                assert response.status == 101
                answer = response.headers.get("Sec-WebSocket-Extensions")
                assert (answer or "").endswith(f"server_max_window_bits={agreed}" if agreed else "")
                assert (answer is None) is (agreed is None)


async def test_connections_that_are_due_the_same_batch_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()
    packed = encoding.packed_batch

    def counted(frames: Any) -> bytes | None:
        made.append(len(frames))
        return packed(frames)

    async with gateway(tmp_path) as g:
        readers = [(await _opened(g, batch=True, compress=True))[0] for _ in range(5)]
        monkeypatch.setattr("gateway.hub.packed_batch", counted)
        await g.publish("alice", "run-1", 50)
        for reader in readers:
            seen = 0
            while seen < 50:
                message = await reader.ws.receive(timeout=5)
                assert message.type is aiohttp.WSMsgType.TEXT
                frame = orjson.loads(message.data)
                seen += frame.get("batch_size", 1)
    assert sum(made) <= 50, "once for all five"
