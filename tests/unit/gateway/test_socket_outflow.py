"""A socket's writer without a task: it stops while the transport is full, and tells what is stuck for too long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from carrel.errors import FrameError
from gateway.close_codes import CloseCode
from gateway.hub import Feed
from gateway.outflow import Flow
from gateway.ring import Cursor, Place
from gateway.socket_outflow import SocketOutflow
from gateway.sockets import Socket
from gateway.tally import GatewayStatistics, Tally
from gateway.window import Window
from gateway.wire import PING
from tests.conftest import Eventually
from tests.unit.gateway.entries import entries
from tests.unit.gateway.test_outflow import LOGIN, Log, Pipe


class Transport(Pipe):
    """A transport that its test fills and empties."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def abort(self) -> None:
        self.aborted = True


class Writer:
    """A socket's writer with everything around it."""

    def __init__(
        self, flow: Flow | None = None, window: Window | None = None, at: int = 0, log: Log | None = None
    ) -> None:
        self.transport = Transport()
        self.socket = Socket(cast(asyncio.Transport, self.transport), 1000)
        self.feed = Feed(LOGIN, 100, 1 << 20)
        self.feed.begin(Place("e", at, f"evt-{at}" if at else ""))
        self.tally = Tally()
        self.ends: list[CloseCode] = []
        cursor = Cursor(Place("e", 0), self.feed.ring.version)
        self.log = log or Log(at)
        self.out = SocketOutflow(
            self.socket,
            self.feed,
            self.log,
            cursor,
            flow or Flow(stall_s=0.4, ack_s=0.4),
            tally=self.tally,
            window=window,
        )
        self.out.on_end = self.ends.append
        self.feed.listeners.add(cast(Any, self.out))

    def fill(self, stuck: int) -> None:
        self.transport.stuck = stuck
        self.socket.pause_writing()

    def empty(self) -> None:
        self.transport.stuck = 0
        self.socket.resume_writing()


async def test_a_full_transport_is_written_to_again_when_it_has_room(eventually: Eventually) -> None:
    one = Writer(Flow(stall_s=30))
    one.feed.extend("e", entries(1, 2))
    await eventually(lambda: one.transport.offsets() == [1, 2])
    one.fill(5000)
    one.feed.extend("e", entries(3, 4))
    await asyncio.sleep(0.05)
    assert one.transport.offsets() == [1, 2]
    assert (one.out.stalled, one.out.lag) == (True, 2)
    one.empty()
    await eventually(lambda: one.transport.offsets() == [1, 2, 3, 4])
    assert (one.out.stalled, one.out.lag, one.ends) == (False, 0, [])


async def test_one_that_takes_nothing_is_slow_and_one_that_takes_little_is_not(eventually: Eventually) -> None:
    one = Writer(Flow(stall_s=1.2))
    one.fill(1000)
    for left in range(900, 400, -50):
        await asyncio.sleep(0.15)
        one.transport.stuck = left
    assert one.ends == []
    await eventually(lambda: one.ends == [CloseCode.SLOW])
    one.out.close()


async def test_a_full_window_times_out_unless_it_is_acknowledged_now_and_then(eventually: Eventually) -> None:
    one = Writer(Flow(ack_s=1.2), window=Window(4, 1 << 20))
    one.feed.extend("e", entries(1, 50))
    for offset in range(1, 9):
        await asyncio.sleep(0.18)
        one.out.acknowledge(offset)
    await eventually(lambda: one.transport.offsets() == list(range(1, 13)))
    assert (one.ends, one.out.unacknowledged, one.out.window_full) == ([], 4, True)
    await eventually(lambda: one.ends == [CloseCode.ACK_TIMEOUT])
    with pytest.raises(FrameError):
        one.out.acknowledge(13)
    one.out.close()


async def test_a_window_with_room_never_times_out() -> None:
    one = Writer(window=Window(4, 1 << 20))
    one.feed.extend("e", entries(1, 3))
    await asyncio.sleep(0.9)
    assert (one.transport.offsets(), one.ends, one.out.window_full) == ([1, 2, 3], [], False)


async def test_a_stalled_reader_holds_nothing_that_can_be_read_again(eventually: Eventually) -> None:
    one = Writer(Flow(stall_s=2, full_bytes=1000), window=Window(3, 1 << 20), at=60, log=Log(60))
    one.out.wake()
    await eventually(lambda: one.transport.offsets() == [1, 2, 3])
    await eventually(lambda: one.out._rest is None)
    reads = one.log.reads
    one.out.acknowledge(3)
    await eventually(lambda: one.transport.offsets() == [1, 2, 3, 4, 5, 6])
    assert one.log.reads == reads + 1
    one.out.close()


async def test_a_heartbeat_is_one_write_of_both_kinds() -> None:
    one = Writer()
    one.out.beat()
    await asyncio.sleep(0)
    assert one.transport.data.endswith(PING)
    one.transport.data = one.transport.data.removesuffix(PING)
    assert one.transport.frames() == [{"type": "ping", "epoch": "e", "offset": 0, "top": 0}]


async def test_a_heartbeat_tells_how_far_one_has_come_and_how_far_the_log_has(eventually: Eventually) -> None:
    one = Writer(window=Window(3, 1 << 20))
    one.feed.extend("e", entries(1, 5))
    await eventually(lambda: one.transport.offsets() == [1, 2, 3])
    one.transport.data = b""
    one.out.beat()
    await asyncio.sleep(0)
    one.transport.data = one.transport.data.removesuffix(PING)
    assert one.transport.frames() == [{"type": "ping", "epoch": "e", "offset": 3, "top": 5}]
    one.out.close()


async def test_statistics_tell_of_windows_lags_and_stalls(eventually: Eventually) -> None:
    full, stalled = Writer(window=Window(2, 1 << 20)), Writer()
    stalled.fill(5000)
    for one in (full, stalled):
        one.feed.extend("e", entries(1, 10))
    await eventually(lambda: full.transport.offsets() == [1, 2])
    full.tally.ended["slow"] += 3
    seen = GatewayStatistics.of(full.tally, [full.out, stalled.out], connections=2, users=1, ring_bytes=5)
    assert (seen.window_events, seen.window_full, seen.stalled) == (2, 1, 1)
    assert (seen.lag_events, seen.lag_max_events, seen.ring_bytes) == (18, 10, 5)
    assert (seen.totals["events_sent"], seen.totals["ring_reads"], seen.ended) == (2, 1, {"slow": 3})
    assert seen.to_json()["totals"]["bytes_sent"] == len(full.transport.data)
    for one in (full, stalled):
        one.out.close()
