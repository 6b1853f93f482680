"""Acknowledgements end to end: the window stops events and nothing else, opens again, and ends silent clients."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, Socket, gateway, token


async def _opened(g: Gateway, **options: Any) -> tuple[Socket, dict[str, Any]]:
    socket = await g.open()
    await socket.send(type="connect", token=token("alice"), **options)
    return socket, await socket.control("connected")


async def _silent(socket: Socket, client_ref: str = "p") -> None:
    """Nothing comes but the answer to a ping, which passes the window."""
    await socket.send(type="ping", client_ref=client_ref)
    assert await socket.frame() == {"type": "pong", "client_ref": client_ref}


async def test_no_more_than_the_window_is_sent_and_control_frames_pass_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, delivery_timeout=30) as g:
        socket, connected = await _opened(g, ack={"window": 5})
        assert connected["ack_window"] == 5
        await g.publish("alice", "run-1", 12)
        first = await socket.events(5)
        await _silent(socket)
        await socket.send(type="ack", offset=first[2]["offset"])
        second = await socket.events(3)
        await _silent(socket)
        await socket.send(type="ack", offset=8)
        third = await socket.events(4)
    assert [event["offset"] for event in first + second + third] == list(range(1, 13))


async def test_it_bounds_what_is_read_from_the_log_and_batches_too(tmp_path: Path) -> None:
    async with gateway(tmp_path, delivery_timeout=30, max_events_per_user=16) as g:
        await g.publish("alice", "run-1", 300)
        socket, connected = await _opened(g, ack={"window": 70}, batch=True, resume={"offset": 0})
        assert connected["offset"] == 0
        seen: list[dict[str, Any]] = []
        while len(seen) < 300:
            seen += await socket.events(min(70, 300 - len(seen)))
            await _silent(socket)
            await socket.send(type="ack", offset=seen[-1]["offset"])
    assert [event["offset"] for event in seen] == list(range(1, 301))


async def test_the_window_has_a_bound_in_bytes(tmp_path: Path) -> None:
    async with gateway(tmp_path, delivery_timeout=30, ack_window_bytes=64 << 10) as g:
        socket, connected = await _opened(g, ack=True)
        assert connected["ack_window"] == 1000
        await g.publish("alice", "run-1", 5, data={"pad": "x" * 30_000})
        await socket.events(3)
        await _silent(socket)
        await socket.send(type="ack", offset=3)
        await socket.events(2)


async def test_acknowledgements_that_cannot_be_are_errors_and_late_ones_are_not(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await _opened(g, ack=True)
        await g.publish("alice", "run-1", 3)
        await socket.events(3)
        await socket.send(type="ack", offset=4, client_ref="x")
        assert (await socket.frame())["code"] == "FRAME"
        await socket.send(type="ack", offset=4)
        error = await socket.frame()
        assert (error["code"], error["details"]["fields"]) == ("FRAME", {"offset": "is beyond what was sent"})
        for offset in (3, 2, 3, 0):
            await socket.send(type="ack", offset=offset)
        await _silent(socket)


async def test_a_client_that_did_not_ask_may_acknowledge_without_effect(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, connected = await _opened(g)
        assert "ack_window" not in connected
        await socket.send(type="ack", offset=99)
        await _silent(socket)


async def test_a_full_window_without_acknowledgement_ends_the_connection_and_others_go_on(tmp_path: Path) -> None:
    async with gateway(tmp_path, delivery_timeout=30, ack_seconds=0.8) as g:
        silent, connected = await _opened(g, ack={"window": 10})
        slow, _ = await _opened(g, ack={"window": 10})
        free, _ = await _opened(g)
        await g.publish("alice", "run-1", 40)
        assert len(await free.events(40)) == 40
        events = await silent.events(10)

        async def take_slowly() -> list[int]:
            offsets = list[int]()
            while len(offsets) < 40:
                offsets += [event["offset"] for event in await slow.events(1)]
                if len(offsets) % 10 == 0 and len(offsets) < 40:
                    await asyncio.sleep(0.4)
                    await slow.send(type="ack", offset=offsets[-1])
            return offsets

        taking = asyncio.create_task(take_slowly())
        frames, code = await silent.closed()
        assert code == 4005
        wait_ms = frames[-1].pop("retry_ms")
        assert frames == [{"type": "bye", "code": 4005, "reason": "ack_timeout", "reconnect": True}]
        assert 0 <= wait_ms <= 1000
        assert await taking == list(range(1, 41)), "one that acknowledges in time stays"
        position = {"epoch": connected["epoch"], "offset": 4, "event_id": events[3]["event_id"]}
        again, _ = await _opened(g, ack=True, resume=position)
        assert [event["offset"] for event in await again.events(36)] == list(range(5, 41))


async def test_a_filter_acknowledges_what_it_was_told(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, delivery_timeout=30) as g:
        socket, _ = await _opened(g, ack={"window": 2}, thread_id="thread-b")
        for thread in ("thread-a", "thread-b", "thread-a", "thread-b", "thread-a", "thread-b"):
            await g.publish("alice", f"run-{thread}", 1, thread=thread)
        seen = await socket.events(2)
        await _silent(socket)
        await socket.send(type="ack", offset=seen[-1]["offset"])
        seen += await socket.events(1)
    assert [event["offset"] for event in seen] == [2, 4, 6]
