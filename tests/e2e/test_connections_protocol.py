"""What a connection may ask for, over five processes and with real runs: a window, compression; and a drain."""

from __future__ import annotations

import asyncio
import gzip
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from carrel.ids import new_id
from tests.conftest import Eventually
from tests.support.stack import RunningStack


class Reader:
    """A client of the protocol with nothing between: frames in the order in which they come."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.controls: list[dict[str, Any]] = []

    async def send(self, **frame: Any) -> None:
        await self.ws.send_str(orjson.dumps(frame).decode())

    async def control(self, kind: str) -> dict[str, Any]:
        """The next control frame of this type."""
        while True:
            frame = orjson.loads((await self.ws.receive(timeout=20)).data)
            if frame.get("type") == kind:
                found: dict[str, Any] = frame
                return found

    async def events(self, until: str, *, acknowledging: bool = False) -> list[dict[str, Any]]:
        """Events up to the first of this kind."""
        found: list[dict[str, Any]] = []
        while not found or found[-1]["event_type"] != until:
            frame = orjson.loads((await self.ws.receive(timeout=20)).data)
            if frame.get("event_type") != "event_batch":
                found += [frame] if "event_type" in frame else []
            elif frame["compressed"]:
                found += orjson.loads(gzip.decompress(bytes.fromhex(frame["events_compressed"])))
            else:
                found += frame["events"]
            if acknowledging and found:
                await self.send(type="ack", offset=found[-1]["offset"])
        return found


@asynccontextmanager
async def _connected(
    stack: RunningStack, user: str, path: str = "/ws", wire: int = 0, **options: Any
) -> AsyncIterator[tuple[Reader, dict[str, Any]]]:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{stack.url}{path}", compress=wire) as ws,
    ):
        reader = Reader(ws)
        await reader.send(type="connect", token=stack.token(user), **options)
        yield reader, await reader.control("connected")


def _offsets(events: list[dict[str, Any]]) -> list[int]:
    return [event["offset"] for event in events]


async def test_every_way_of_reading_gives_the_same_events(shared_stack: RunningStack) -> None:
    user = new_id("user")
    async with _connected(shared_stack, user) as (plain, _):
        expected: list[dict[str, Any]] = []
        for _ in range(2):
            await plain.send(type="agent_execute", message="Write a report")
            expected = await plain.events("run_completed")
        seen: list[list[dict[str, Any]]] = []
        for options in (
            {"ack": {"window": 3}},
            {"batch": True, "ack": True},
            {"batch": True, "compress": True},
            {"batch": True, "compress": True, "ack": {"window": 7}, "path": "/ws?deflate=1", "compress_wire": 15},
        ):
            wire = int(options.pop("compress_wire", 0))  # type: ignore[call-overload]  # one dictionary for all kinds
            async with _connected(
                shared_stack, user, str(options.pop("path", "/ws")), wire, resume={"offset": 0}, **options
            ) as (reader, connected):
                assert ("ack_window" in connected) is ("ack" in options)
                assert reader.ws.compress == wire
                events: list[dict[str, Any]] = []
                while not events or events[-1]["offset"] < expected[-1]["offset"]:
                    events += await reader.events("run_completed", acknowledging="ack" in options)
                seen.append(events)
    assert _offsets(seen[0]) == list(range(1, expected[-1]["offset"] + 1))
    assert all(events == seen[0] for events in seen)
    assert seen[0][-len(expected) :] == expected


async def test_a_gateway_that_is_told_to_stop_says_bye_and_its_successor_goes_on(
    stack: RunningStack, eventually: Eventually
) -> None:
    async with _connected(stack, "alice", batch=True, ack=True) as (reader, connected):
        await reader.send(type="agent_execute", message="Write a report", client_ref="r")
        accepted = await reader.control("run_accepted")
        pid = stack.kill("gateway", signal.SIGTERM)
        bye = await reader.control("bye")
        assert (bye["code"], bye["reason"], bye["reconnect"]) == (4000, "drain", True)
        await asyncio.sleep(bye["retry_ms"] / 1000)
    await eventually(lambda: stack.restarted("gateway", pid), within=20)
    resume = {"epoch": connected["epoch"], "offset": 0, "event_id": ""}
    async with _connected(stack, "alice", resume=resume) as (reader, _):
        events = await reader.events("run_completed")
    assert events[-1]["run_id"] == accepted["run_id"]
    assert _offsets(events) == list(range(1, len(events) + 1))
