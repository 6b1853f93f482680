"""Nothing lost and nothing twice: resume on and off the ring, resets, a bridge that dies, readers that stall."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from pathlib import Path
from typing import Any

import pytest

from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from servicekit.rpc.channel import open_channel
from tests.conftest import Eventually
from tests.support.identity import run_context
from tests.unit.gateway.harness import Gateway, Socket, gateway, token


def _position(connected: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": connected["epoch"], "offset": event["offset"], "event_id": event["event_id"]}


async def _resumed(g: Gateway, resume: dict[str, Any], user: str = "alice") -> tuple[Socket, dict[str, Any]]:
    socket = await g.open()
    await socket.send(type="connect", token=token(user), resume=resume)
    return socket, await socket.frame()


def _offsets(events: list[dict[str, Any]]) -> list[int]:
    return [event["offset"] for event in events]


@pytest.mark.parametrize("ring", [1000, 16])
@pytest.mark.parametrize("seen", [1, 100, 184, 200])
async def test_resume_goes_on_after_the_event_that_was_seen(tmp_path: Path, ring: int, seen: int) -> None:
    async with gateway(tmp_path, max_events_per_user=ring) as g:
        keeper, connected = await g.ready()
        await g.publish("alice", "run-1", 200)
        events = await keeper.events(200)
        socket, again = await _resumed(g, _position(connected, events[seen - 1]))
        assert again["recovered"] is True
        assert again["offset"] == seen
        await g.publish("alice", "run-1", 50)
        rest = await socket.events(250 - seen)
    assert _offsets(rest) == list(range(seen + 1, 251))


async def test_resume_while_events_keep_coming_has_no_gap_and_no_repeat(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_events_per_user=32) as g:
        first, connected = await g.ready()
        await g.publish("alice", "run-1", 1)
        position = _position(connected, (await first.events(1))[0])

        async def load() -> None:
            for _ in range(40):
                await g.publish("alice", "run-1", 37)

        loading = asyncio.create_task(load())
        readers = []
        for _ in range(8):
            readers.append((await _resumed(g, position))[0])
            await asyncio.sleep(0.02)
        await loading
        results = await asyncio.gather(*(reader.events(40 * 37) for reader in readers))
    for events in results:
        assert _offsets(events) == list(range(2, 40 * 37 + 2))
        assert len({event["event_id"] for event in events}) == 40 * 37


async def test_everything_that_is_kept_comes_after_offset_zero(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 450)
        socket, connected = await _resumed(g, {"offset": 0})
        assert connected["offset"] == 0
        assert _offsets(await socket.events(450)) == list(range(1, 451))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"event_id": "evt-other"}, "event_mismatch"),
        ({"epoch": "0123456789abcdef"}, "epoch_changed"),
        ({"offset": 99}, "beyond_top"),
    ],
)
async def test_an_unusable_position_gets_a_reset_and_then_everything_that_is_kept(
    tmp_path: Path, wrong: dict[str, Any], reason: str
) -> None:
    async with gateway(tmp_path) as g:
        first, connected = await g.ready()
        await g.publish("alice", "run-1", 10)
        events = await first.events(10)
        await first.send(type="agent_execute", message="hello")
        run_id = (await first.control("run_accepted"))["run_id"]
        socket, again = await _resumed(g, _position(connected, events[4]) | wrong)
        reset = await socket.frame()
        assert again["recovered"] is False
        assert reset == {"type": "reset", "reason": reason, "epoch": connected["epoch"], "offset": 0}
        assert await socket.events(10) == events
        state = await socket.control("run_state")
        assert (state["run_id"], state["status"]) == (run_id, "RUNNING")


async def test_connect_after_the_header_moves_the_stream_to_the_position(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        first, connected = await g.ready()
        await g.publish("alice", "run-1", 10)
        events = await first.events(10)
        socket, top = await g.ready()
        assert top["offset"] == 10
        await socket.send(type="connect", resume=_position(connected, events[2]))
        moved = await socket.control("connected")
        assert (moved["offset"], moved["recovered"]) == (3, True)
        assert await socket.events(7) == events[3:]
        await socket.send(type="connect", resume=_position(connected, events[2]))
        assert (await socket.frame())["code"] == "FRAME"


async def test_a_log_gap_resets_live_readers_without_repeating_anything(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, connected = await g.ready()
        await g.publish("alice", "run-1", 3)
        await socket.events(3)
        item = events_pb2.ProducerEvents(
            context=run_context("alice", run="run-1"), producer_id="run-1:0:1", attempt=1, declare_gap=True
        )
        item.events.add(event_id="evt-late", number=9, event_type="agent_thinking", data=b'{"text":"late"}')
        async with open_channel(g.bridge.address) as channel:
            call = bridge_pb2_grpc.BridgeServiceStub(channel).Publish()
            await call.write(bridge_pb2.PublishRequest(items=[item]))
            await call.read()
            call.cancel()
        reset = await socket.frame()
        assert (reset["type"], reset["reason"], reset["offset"]) == ("reset", "epoch_changed", 3)
        assert reset["epoch"] != connected["epoch"]
        gap, late = await socket.events(2)
        assert (gap["event_type"], gap["offset"]) == ("log_gap", 4)
        assert (late["event_id"], late["offset"]) == ("evt-late", 5)


async def test_a_bridge_that_dies_loses_nothing_for_connections_that_stay_open(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_events_per_user=64) as g:
        alice, _ = await g.ready("alice")
        bob, _ = await g.ready("bob")
        for round_ in range(3):
            await asyncio.gather(g.publish("alice", "run-1", 100), g.publish("bob", "run-1", 30))
            await g.bridge.kill()
            await alice.send(type="ping", client_ref=str(round_))
            await g.bridge.start()
        await g.publish("alice", "run-1", 1)
        assert _offsets(await alice.events(301)) == list(range(1, 302))
        assert _offsets(await bob.events(90)) == list(range(1, 91))


async def test_a_connection_that_comes_while_the_bridge_is_away_waits_for_it(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 2)
        await g.bridge.kill()
        opening = asyncio.create_task(g.ready())
        await eventually(lambda: g.server.connections == 1)
        assert not opening.done()
        await g.bridge.start()
        _, connected = await opening
        assert connected["offset"] == 2


async def test_a_bridge_that_stays_away_sends_connections_elsewhere(tmp_path: Path) -> None:
    async with gateway(tmp_path, upstream_patience_seconds=0.3, position_seconds=0.2) as g:
        socket, _ = await g.ready()
        await g.bridge.kill()
        frames, code = await socket.closed()
        assert code == 4003
        assert [frame["type"] for frame in frames] == ["error", "bye"]
        assert frames[-1]["reconnect"] is True
        late = await g.connect()
        frames, code = await late.closed()
        assert (frames[0]["code"], code) == ("UNAVAILABLE", 4003)


async def test_an_attach_stream_that_is_reopened_on_schedule_is_not_noticed(tmp_path: Path) -> None:
    async with gateway(tmp_path, reattach_seconds=0.15) as g:
        socket, _ = await g.ready()
        for _ in range(20):
            await g.publish("alice", "run-1", 5)
            await asyncio.sleep(0.02)
        assert _offsets(await socket.events(100)) == list(range(1, 101))
        # Two while one takes over from the other; more would be streams that nobody ended.
        assert (await g.bridge.state()).gateways <= 2


async def test_a_reader_that_stalls_is_cut_off_while_others_go_on(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, delivery_timeout=1.0) as g:
        with contextlib.closing(await _raw_socket(g, "alice")) as raw:
            good, connected = await g.ready("alice")
            reading = asyncio.create_task(good.events(150))
            for _ in range(150):
                await g.publish("alice", "run-1", 1, data={"pad": "x" * 100_000})
            events = await reading
            assert _offsets(events) == list(range(1, 151))
            await eventually(lambda: g.server.connections == 1, what="the stalled connection is gone")
            assert await _rest_of(raw) < 150 * 100_000
        # It comes back with the last event that it had, and misses nothing.
        again, _ = await _resumed(g, _position(connected, events[9]))
        assert _offsets(await again.events(140)) == list(range(11, 151))


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, delivery_timeout=60) as g:
        with contextlib.closing(await _raw_socket(g, "alice", ttl_s=3)):
            for _ in range(100):
                await g.publish("alice", "run-1", 1, data={"pad": "x" * 100_000})
            await eventually(lambda: g.server.connections == 0, within=20)


async def _raw_socket(g: Gateway, user: str, ttl_s: float = 300) -> sockets.socket:
    """A connection that has been upgraded and never reads."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    host, port = g.server.address.rsplit(":", 1)
    await loop.sock_connect(raw, (host, int(port)))
    request = (
        "GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token(user, ttl_s=ttl_s)}\r\n\r\n"
    )
    await loop.sock_sendall(raw, request.encode())
    assert (await loop.sock_recv(raw, 12)) == b"HTTP/1.1 101"
    return raw


async def _rest_of(raw: sockets.socket) -> int:
    """Bytes up to the end of the connection, which comes as a reset."""
    size = 0
    with contextlib.suppress(ConnectionResetError):
        while data := await asyncio.get_running_loop().sock_recv(raw, 1 << 16):
            size += len(data)
    return size
