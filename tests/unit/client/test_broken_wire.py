"""A gateway, or what stands before it, that breaks the protocol: mended by the log, or told; never passed over."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from carrel.client import Backoff, Event, Gap, Notice, Position, Reset, SocketClient
from carrel.errors import ProtocolError
from tests.support.fake_gateway import TOKEN, FakeGateway, batch, event, fake_gateway

FAST = Backoff(attempts=50, first_s=0.001, longest_s=0.01)
Frame = dict[str, Any]


def client(gateway: FakeGateway, **options: Any) -> SocketClient:
    return SocketClient(gateway.url, TOKEN, resume=options.pop("resume", Position()), backoff=FAST, **options)


async def until(socket: SocketClient, offset: int) -> list[Event | Notice]:
    found: list[Event | Notice] = []
    async with asyncio.timeout(5):
        async for item in socket.items():
            found.append(item)
            if isinstance(item, Event) and item.offset == offset:
                return found
    raise AssertionError


def broken(number: int, frame: Frame, *, how: str) -> list[Frame | str]:
    """The third event of the first connection, spoiled."""
    if number > 0 or frame.get("offset") != 3 or "event_type" not in frame:
        return [frame]
    squeezed = batch([frame, event(4)], compress=True)
    table: dict[str, list[Frame | str]] = {
        "left out": [],
        "no JSON": ["{"],
        "no object": ["[]"],
        "no offset": [{name: value for name, value in frame.items() if name != "offset"}],
        "another event first": [event(2, event_id="other"), frame],
        "batch of nothing": [{"event_type": "event_batch", "batch_size": 1}],
        "batch that lies": [{"event_type": "event_batch", "batch_size": 3, "compressed": False, "events": [frame]}],
        "compressed and cut off": [squeezed | {"events_compressed": squeezed["events_compressed"][:-20]}],
        "compressed and no hex": [squeezed | {"events_compressed": "zz"}],
        "compressed and longer than said": [squeezed | {"original_size": 2}],
        "another user's": [frame | {"user_id": "bob"}],
        "reset to nowhere": [{"type": "reset", "reason": "trimmed"}],
        "heartbeat ahead": [{"type": "ping", "epoch": "e1", "offset": 3}],
        "heartbeat behind": [{"type": "ping", "epoch": "e1", "offset": 1}],
        "heartbeat of another epoch": [{"type": "ping", "epoch": "e0", "offset": 2}],
    }
    return table[how]


HOWS = [
    "left out",
    "no JSON",
    "no object",
    "no offset",
    "another event first",
    "batch of nothing",
    "batch that lies",
    "compressed and cut off",
    "compressed and no hex",
    "compressed and longer than said",
    "another user's",
    "reset to nowhere",
    "heartbeat ahead",
    "heartbeat behind",
    "heartbeat of another epoch",
]


@pytest.mark.parametrize("how", HOWS)
async def test_what_is_broken_once_is_mended_by_coming_back(how: str) -> None:
    log = [event(n) for n in range(1, 7)]
    async with (
        fake_gateway(log=log, spoil=lambda number, frame: broken(number, frame, how=how)) as gateway,
        client(gateway) as socket,
    ):
        found = await until(socket, 6)
    assert [item.offset for item in found if isinstance(item, Event)] == [1, 2, 3, 4, 5, 6]
    assert [item.event_id for item in found if isinstance(item, Event)] == [f"ev-{n}" for n in range(1, 7)]
    assert not [item for item in found if isinstance(item, Gap | Reset)]
    assert gateway.connects[1]["resume"] == {"epoch": "e1", "offset": 2, "event_id": "ev-2"}


async def test_what_is_missing_every_time_is_told_as_a_gap() -> None:
    log = [event(n) for n in range(1, 7)]
    async with (
        fake_gateway(log=log, spoil=lambda _, frame: [] if frame.get("offset") in {3, 4} else [frame]) as gateway,
        client(gateway) as socket,
    ):
        found = await until(socket, 6)
    gaps = [(item.first, item.last, item.announced) for item in found if isinstance(item, Gap)]
    assert gaps == [(3, 4, False)]
    assert [item.offset for item in found if isinstance(item, Event)] == [1, 2, 5, 6]
    assert len(gateway.connects) == 2


@pytest.mark.parametrize(
    "text", ["{", json.dumps({"event_type": "x"}), json.dumps({"type": "ping", "epoch": "z", "offset": 1})]
)
async def test_what_is_broken_every_time_is_raised(text: str) -> None:
    def spoil(_: int, frame: Frame) -> list[Frame | str]:
        return [text] if frame.get("offset") == 2 else [frame]

    async with fake_gateway(log=[event(1), event(2)], spoil=spoil) as gateway, client(gateway) as socket:
        with pytest.raises(ProtocolError):
            await until(socket, 2)
    assert 2 <= len(gateway.connects) <= 4


async def test_gateway_that_does_not_begin_with_connected_is_raised() -> None:
    def spoil(_: int, frame: Frame) -> list[Frame | str]:
        return [event(1)] if frame.get("type") == "connected" else [frame]

    async with fake_gateway(spoil=spoil) as gateway:
        with pytest.raises(ProtocolError, match="did not begin with `connected`"):
            async with client(gateway, patient=True):
                pass
    assert len(gateway.connects) == 3


async def test_reset_calls_back_between_the_events_before_and_after_it() -> None:
    seen: list[str] = []

    async def on_reset(reset: Reset) -> None:
        await asyncio.sleep(0)
        seen.append(f"reset {reset.reason} to {reset.position}")

    async with (
        fake_gateway(log=[event(1), event(2)], cut_after=[2]) as gateway,
        client(gateway, on_reset=on_reset) as socket,
    ):
        async for item in socket.events():
            seen.append(item.event_id)
            if item.event_id == "ev-2":
                gateway.epoch, gateway.log = "e2", [event(1, event_id="new")]
            if item.event_id == "new":
                break
    assert seen == ["ev-1", "ev-2", "reset epoch_changed to e2:0:", "new"]
