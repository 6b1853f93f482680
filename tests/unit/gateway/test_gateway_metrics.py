"""The gateway's metrics: ten thousand connections are looked at without holding the loop; what is stuck is noticed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.connections import Connections
from gateway.metrics import _Lanes
from gateway.ring import Place


@dataclass(eq=False)
class FakeLane:
    """A connection that is behind by ``lag``."""

    lag: int = 0
    unacknowledged: int = 1
    stalled: bool = False
    window_full: bool = False
    offset: int = 0

    @property
    def place(self) -> Place:
        return Place("e", self.offset, "x")


async def test_many_connections_are_looked_at_in_turns_of_the_loop() -> None:
    connections = Connections()
    held = [connections.lane(FakeLane(lag=2)) for _ in range(10_000)]
    lanes, turns = _Lanes(connections), 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    ticking = asyncio.create_task(others())
    await lanes.refresh()
    ticking.cancel()
    assert turns >= 15
    assert lanes.found.lag == 20_000
    assert lanes.found.lag_max == 2
    assert lanes.found.window_events == 10_000
    assert len(held) == 10_000


async def test_only_a_connection_that_does_not_move_is_old() -> None:
    connections, moving, stuck = Connections(), FakeLane(lag=5), FakeLane(lag=5, stalled=True)
    held = [connections.lane(moving), connections.lane(stuck)]
    lanes = _Lanes(connections)
    await lanes.refresh()
    await asyncio.sleep(0.3)
    moving.offset = 3
    await lanes.refresh()
    assert lanes.found.stuck_s >= 0.3
    assert lanes.found.stalled == 1
    stuck.lag = 0
    await lanes.refresh()
    assert lanes.found.stuck_s < 0.3
    assert len(held) == 2
