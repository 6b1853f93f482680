"""What operators see of the services: one answer for all who look at once, and whose fault becomes whose error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from carrel.errors import UnavailableError
from carrel.v1 import execution_pb2
from gateway.overview import Overview
from gateway.tickets import TicketDesk
from tests.conftest import Eventually


@dataclass
class _Copy:
    """A copy of execution that counts how often it was asked, and answers when it is let."""

    address: str
    ready: bool = True
    asked: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    @property
    def channel(self) -> Any:
        return self

    def unary_unary(self, path: str, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def call(_request: Any, timeout: float) -> Any:
            assert path.endswith("/GetFactoryMetrics")
            self.asked += 1
            await self.open.wait()
            if self.error is not None:
                raise self.error
            return execution_pb2.GetFactoryMetricsResponse(engines_active=self.asked)

        return call

    unary_stream = stream_unary = stream_stream = unary_unary


class _Desk:
    def own(self) -> None:
        return None


class _Listed:
    def __init__(self, *copies: _Copy) -> None:
        self.copies = copies

    def known(self) -> list[Any]:
        return list(self.copies)


class _World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.copies = [_Copy("b:2"), _Copy("a:1")]
        listed = {"execution": _Listed(*self.copies)}
        self.overview = Overview(listed, cast("TicketDesk", _Desk()), clock=lambda: self.now)

    @property
    def asked(self) -> list[int]:
        return [copy.asked for copy in self.copies]

    def let(self) -> None:
        for copy in self.copies:
            copy.open.set()


async def test_who_asks_at_once_or_a_moment_later_gets_the_same_answer(eventually: Eventually) -> None:
    world = _World()
    asking = [asyncio.create_task(world.overview.ask()) for _ in range(20)]
    await eventually(lambda: world.asked == [1, 1])
    world.let()
    told = await asyncio.gather(*asking)
    assert world.asked == [1, 1]
    assert [copy["address"] for copy in told[0].services["execution"]] == ["a:1", "b:2"]
    assert all(one.services == told[0].services for one in told)
    world.now += 0.75
    late = await world.overview.ask()
    assert (late.services, late.age_s, world.asked) == (told[0].services, 0.75, [1, 1])
    world.now += 0.25
    fresh = await world.overview.ask()
    assert (fresh.age_s, world.asked) == (0.0, [2, 2])
    assert fresh.services["execution"][0]["counts"]["engines_active"] == 2


async def test_who_goes_away_takes_the_answer_from_nobody(eventually: Eventually) -> None:
    world = _World()
    first = asyncio.create_task(world.overview.ask())
    await eventually(lambda: world.asked == [1, 1])
    second = asyncio.create_task(world.overview.ask())
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await eventually(lambda: world.asked == [2, 2])
    world.let()
    assert (await second).services["execution"][0]["error"] is None


async def test_a_copy_that_does_not_answer_is_told_with_the_others_and_a_fault_is_not_kept() -> None:
    world = _World()
    world.let()
    world.copies[0].error = UnavailableError("it is away")
    well, away = (await world.overview.ask()).services["execution"]
    assert (well["error"], away["counts"], away["error"]["code"]) == (None, None, "UNAVAILABLE")
    world.now += 5
    world.copies[0].error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await world.overview.ask()
    world.copies[0].error = None
    assert [copy["error"] for copy in (await world.overview.ask()).services["execution"]] == [None, None]
