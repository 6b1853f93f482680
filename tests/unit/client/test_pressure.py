"""What a slow application does to its client and its gateway: a window, acknowledgements, nothing dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carrel.client import Backoff, Event, Phase, Position, SocketClient
from carrel.errors import DeadlineError
from tests.conftest import Eventually
from tests.support.fake_gateway import TOKEN, FakeGateway, event, fake_gateway

FAST = Backoff(attempts=50, first_s=0.001, longest_s=0.01)


def client(gateway: FakeGateway, **options: Any) -> SocketClient:
    return SocketClient(gateway.url, TOKEN, resume=Position(), backoff=FAST, **options)


async def take(socket: SocketClient, count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(20):
        async for item in socket.events():
            found.append(item.offset)
            if len(found) == count:
                return found
    raise AssertionError


async def test_gateway_that_counts_is_held_at_the_window_and_still_answers(eventually: Eventually) -> None:
    log = [event(n) for n in range(1, 501)]
    async with fake_gateway(log=log, window=100, batch=7) as gateway, client(gateway, window=40) as socket:
        await eventually(lambda: socket.held == 40)
        # The application takes nothing, and its commands are answered all the same.
        await socket.ping()
        assert (gateway.acked, gateway.ahead, socket.held) == (0, 40, 40)
        assert await take(socket, 500) == list(range(1, 501))
        assert gateway.ahead == 40
        assert len(gateway.connects) == 1


async def test_what_was_taken_is_acknowledged_once_the_next_one_is_asked_for(eventually: Eventually) -> None:
    async with fake_gateway(log=[event(1), event(2), event(3)], window=100) as gateway, client(gateway) as socket:
        events = socket.events()
        assert (await anext(events)).offset == 1
        assert (await anext(events)).offset == 2
        await eventually(lambda: gateway.acked == 1)
        assert socket.position == Position("e1", 2, "ev-2")
        assert (await anext(events)).offset == 3
        await eventually(lambda: gateway.acked == 2)


async def test_gateway_that_does_not_count_is_not_read_while_the_application_takes_nothing(
    eventually: Eventually,
) -> None:
    text = "x" * 20_000
    log = [event(n, data={"text": text}) for n in range(1, 301)]
    async with fake_gateway(log=log) as gateway, client(gateway, window=10) as socket:
        await eventually(lambda: socket.held == 10)
        with pytest.raises(DeadlineError, match="10 events have come that the application does not take"):
            await socket.ping(timeout_s=0.1)
        assert await take(socket, 300) == list(range(1, 301))


async def test_client_whose_inbox_is_full_comes_back_when_half_of_it_was_taken(eventually: Eventually) -> None:
    log = [event(n) for n in range(1, 101)]
    async with fake_gateway(log=log, window=100, cut_after=[20, 3]) as gateway, client(gateway, window=20) as socket:
        await eventually(lambda: socket.held > 20 and socket.state.phase is Phase.WAITING)
        await asyncio.sleep(0.1)
        assert gateway.attempts == 1
        items = socket.items()
        got = [await anext(items) for _ in range(10)]
        assert len(gateway.connects) == 1
        got.append(await anext(items))
        await eventually(lambda: len(gateway.connects) > 1)
        # What is still held is not asked for again, and counts in the window.
        assert gateway.connects[1]["resume"]["offset"] == 20
        assert gateway.connects[1]["ack"]["window"] <= 11
        while not (isinstance(got[-1], Event) and got[-1].offset == 100):
            got.append(await anext(items))
    assert [item.offset for item in got if isinstance(item, Event)] == list(range(1, 101))


async def test_command_does_not_wait_for_an_application_that_is_behind(eventually: Eventually) -> None:
    log = [event(n) for n in range(1, 101)]
    async with fake_gateway(log=log, window=100, cut_after=[15]) as gateway, client(gateway, window=20) as socket:
        await eventually(lambda: socket.held > 15 and socket.state.phase is Phase.WAITING)
        await socket.ping()
        # There was room for a few more, and that is what was asked for.
        assert gateway.connects[1]["ack"] == {"window": 4}
        assert await take(socket, 100) == list(range(1, 101))


async def test_repeated_events_are_acknowledged_though_nobody_gets_them(eventually: Eventually) -> None:
    log = [event(n) for n in range(1, 51)]
    async with fake_gateway(log=log, window=10, cut_after=[50]) as gateway, client(gateway) as socket:
        assert await take(socket, 50) == list(range(1, 51))
        # A log that grew again under another epoch, with the same events at its beginning.
        gateway.epoch = "e2"
        gateway.log = [*log, event(51)]
        assert await take(socket, 1) == [51]
        assert socket.reader.duplicates == 50


async def test_no_more_is_acknowledged_than_this_connection_has_brought() -> None:
    # `connected` told no event_id, so everything is read again, and much of it lies before the application's place.
    log = [event(n) for n in range(1, 11)]
    async with (
        fake_gateway(log=log, window=3, cut_after=[0]) as gateway,
        SocketClient(gateway.url, TOKEN, backoff=FAST) as socket,
    ):
        await gateway.append(event(11))
        assert await take(socket, 1) == [11]
        assert gateway.wrong_acks == []
        assert gateway.acked >= 8


async def test_compressed_batches_are_their_events(eventually: Eventually) -> None:
    log = [event(n) for n in range(1, 101)]
    async with fake_gateway(log=log, batch=16) as gateway, client(gateway) as socket:
        assert await take(socket, 100) == list(range(1, 101))
    assert gateway.connects[0]["compress"] is True


async def test_first_releases_gateway_is_asked_again_without_what_it_does_not_know() -> None:
    log = [event(1), event(2)]
    async with fake_gateway(log=log, old=True, cut_after=[None, 1]) as gateway, client(gateway) as socket:
        assert await take(socket, 2) == [1, 2]
        assert gateway.connects[-1] == {
            "type": "connect",
            "token": TOKEN,
            "batch": True,
            "resume": {"epoch": "e1", "offset": 1, "event_id": "ev-1"},
        }
    assert len(gateway.connects) == 3


async def test_two_tasks_reading_one_client_are_told_so() -> None:
    async with fake_gateway() as gateway, client(gateway) as socket:

        async def read() -> Event:
            return await anext(socket.events())

        first = asyncio.create_task(read())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(socket.events())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
