"""How fast one user's streams go through the log again: a burst, a rate, and nobody else's business."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carrel.errors import RateLimitError
from gateway.encoding import Frame
from gateway.log_reader import Extent, Piece
from gateway.login import Login
from gateway.replay_pace import PacedLog, ReplayPace
from gateway.ring import Place


class Clock:
    """A time that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_the_rate_for_each_user() -> None:
    clock = Clock()
    pace = ReplayPace(100, clock)
    pace.took("alice", 1000)
    assert pace.wait_s("alice") == 0
    pace.took("alice", 300)
    assert pace.wait_s("alice") == pytest.approx(3)
    assert pace.wait_s("bob") == 0
    pace.check("alice")
    pace.took("alice", 300)
    with pytest.raises(RateLimitError) as refused:
        pace.check("alice")
    assert refused.value.retry_after_s == pytest.approx(6)
    pace.check("bob")
    clock.now += 6
    assert pace.wait_s("alice") == pytest.approx(0)
    # What is not used does not gather.
    clock.now += 3600
    pace.took("alice", 1001)
    assert pace.wait_s("alice") == pytest.approx(0.01)


def test_users_that_do_not_come_back_are_forgotten() -> None:
    clock = Clock()
    pace = ReplayPace(100, clock)
    for number in range(100_000):
        clock.now += 0.01
        pace.took(f"user-{number}", 10)
    assert len(pace) < 3000


class Log:
    """Pieces of so many entries each."""

    def __init__(self, size: int) -> None:
        self.reads = 0
        self._frames = [Frame(n, f"evt-{n}", "t", 0, b"x" * 10, "k", "r", None, 0.0) for n in range(size)]

    async def read(self, login: Login, place: Place | None) -> Piece:
        self.reads += 1
        return Piece(Place("", 0), frames=list(self._frames))

    async def first(self, login: Login, run_id: str) -> Piece | None:
        return None if run_id == "none" else await self.read(login, None)

    async def extent(self, login: Login, run_id: str) -> Extent | None:
        return Extent("e", 7, True)


async def test_readers_of_one_user_wait_for_each_other_and_another_users_do_not() -> None:
    log = Log(200)
    # What a piece costs is 100 for its entries, and a little for its bytes: ten are the burst.
    paced = PacedLog(log, log, ReplayPace(100))
    alice, bob = (Login(name, 1e12) for name in ("alice", "bob"))

    async def many(login: Any, count: int) -> None:
        for _ in range(count):
            _ = await paced.read(login, None)

    async with asyncio.timeout(5):
        await many(alice, 10)
        waiting = [asyncio.ensure_future(many(alice, 1)) for _ in range(3)]
        await many(bob, 5)
        _ = await asyncio.wait(waiting, timeout=0.1)
        assert log.reads <= 18
        assert await paced.first(bob, "none") is None
        assert await paced.extent(bob, "r") == Extent("e", 7, True)
        for task in waiting:
            _ = task.cancel()
        _ = await asyncio.gather(*waiting, return_exceptions=True)
