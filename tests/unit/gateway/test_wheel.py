"""One timer for all heartbeats: each beats once in an interval, is checked half an interval later, and can leave."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from gateway.held import Held, Taken
from gateway.wheel import Wheel
from tests.conftest import Eventually


class Heart:
    def __init__(self) -> None:
        self.beats: list[float] = []
        self.checks: list[float] = []

    def beat(self) -> None:
        self.beats.append(asyncio.get_running_loop().time())

    def check(self) -> None:
        self.checks.append(asyncio.get_running_loop().time())


async def test_each_beats_once_in_an_interval_and_is_checked_in_between(eventually: Eventually) -> None:
    wheel, early, late = Wheel(0.4), Heart(), Heart()
    began = asyncio.get_running_loop().time()
    # In turns of the wheel, which a busy machine makes slower, and not in seconds.
    with wheel.add(early):
        await eventually(lambda: wheel._at >= 4)
        with wheel.add(late):
            await eventually(lambda: len(early.beats) == 3)
            assert len(wheel) == 2
    assert len(late.beats) == 2
    moments = [began, *early.beats]
    apart = [after - before for before, after in pairwise(moments)]
    assert min(apart) >= 0.34, "not before an interval, but for a slot's length"
    assert early.checks[-1] > early.beats[0] + 0.15
    assert len(wheel) == 0
    assert wheel._timer is None, "it stands still when it is empty"


def test_what_is_held_is_given_back_in_reverse_and_once() -> None:
    given = list[str]()
    held = Held()
    assert held.enter(Taken("value", given.append, "first")) == "value"
    held.enter(Taken(None, given.append, "second"))
    with held:
        other = held.pop_all()
    assert given == []
    other.close()
    other.close()
    assert given == ["second", "first"]
