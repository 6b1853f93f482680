"""The watch for signs of life: silence ends the block, a pause of this very process does not."""

import asyncio
import socket
import threading
import time

import pytest

from services.execution.domain.silence import SilenceWatch


async def test_silence_ends_the_block_soon_after_its_time() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with SilenceWatch(0.2) as watch:
            await asyncio.Event().wait()
    assert watch.expired
    assert 0.25 < time.monotonic() - began < 15


async def test_signs_of_life_keep_the_block_open() -> None:
    async with SilenceWatch(0.2) as watch:
        for _ in range(20):
            await asyncio.sleep(0.05)
            watch.heard()
    assert not watch.expired


async def test_a_sign_at_the_last_look_counts_and_the_next_silence_is_noticed() -> None:
    heard: list[float] = []

    async def heard_once() -> None:
        async with SilenceWatch(0.4, last_look_s=0.2) as watch:
            await asyncio.sleep(0.5)
            watch.heard()
            heard.append(time.monotonic())
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await heard_once()
    assert time.monotonic() - heard[0] > 0.5


async def test_what_arrived_while_this_process_stood_still_is_read_before_silence_is_declared() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with ours, theirs:
        ours.setblocking(False)
        sender = threading.Timer(0.1, theirs.send, [b"beat"])
        async with SilenceWatch(0.3) as watch:

            async def read() -> None:
                # As a real message: it takes some turns of the loop until it is heard.
                await loop.sock_recv(ours, 16)
                for _ in range(5):
                    await asyncio.sleep(0)
                watch.heard()

            reader = asyncio.create_task(read())
            await asyncio.sleep(0)
            sender.start()
            time.sleep(0.8)  # noqa: ASYNC251 -- the pause
            await asyncio.wait_for(reader, 2)
            await asyncio.sleep(0.2)
        assert not watch.expired


async def test_a_fixed_end_holds_whatever_is_heard() -> None:
    began = time.monotonic()

    async def always_heard() -> None:
        async with SilenceWatch(30) as watch:
            watch.end_at(asyncio.get_running_loop().time() + 0.2)
            while True:
                await asyncio.sleep(0.02)
                watch.heard()

    with pytest.raises(TimeoutError):
        await always_heard()
    assert time.monotonic() - began < 15  # silence alone would be half a minute
