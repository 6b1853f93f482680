"""One connection's writer: replay that meets the live stream at every point, resets, a peer that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from carrel.errors import StoreUnavailableError
from gateway.encoding import encode_entry
from gateway.hub import Feed
from gateway.log_reader import Piece
from gateway.login import Login
from gateway.outflow import Flow, Outflow, Stalled
from gateway.ring import Cursor, Place
from tests.conftest import Eventually
from tests.unit.gateway.entries import entries, entry

LOGIN = Login("alice", 4_000_000_000.0)


class Pipe:
    """Takes everything, or nothing."""

    def __init__(self) -> None:
        self.data = b""
        self.stuck = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        self.data += data

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def is_closing(self) -> bool:
        return self.closing

    def frames(self) -> list[dict[str, Any]]:
        found, at = list[dict[str, Any]](), 0
        while at < len(self.data):
            size, head = self.data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(self.data[at + 2 : at + 4]), 4
            elif size == 127:
                size, head = int.from_bytes(self.data[at + 2 : at + 10]), 10
            found.append(orjson.loads(self.data[at + head : at + head + size]))
            at += head + size
        return found

    def offsets(self) -> list[int]:
        return [frame["offset"] for frame in self.frames() if "event_id" in frame and "type" not in frame]


class Log:
    """A log in a list; ``error`` makes it fail, ``hold`` makes it wait."""

    def __init__(self, top: int, epoch: str = "e") -> None:
        self.top = top
        self.epoch = epoch
        self.error: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.reads = 0

    async def read(self, login: Login, place: Place | None) -> Piece:
        assert place is not None
        self.reads += 1
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        if place.epoch != self.epoch:
            return self._piece(Place(self.epoch, 0), "epoch_changed")
        return self._piece(place)

    def _piece(self, place: Place, reset: str = "") -> Piece:
        last = min(self.top, place.offset + 5)
        frames = [encode_entry("alice", entry(offset)) for offset in range(place.offset + 1, last + 1)]
        return Piece(place, reset, frames)


@asynccontextmanager
async def writing(out: Outflow) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(out.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _feed(top: int, most: int = 10) -> Feed:
    feed = Feed(LOGIN, most, 1 << 20)
    feed.begin(Place("e", top, f"evt-{top}" if top else ""))
    return feed


def _out(pipe: Pipe, feed: Feed, log: Log, at: int, flow: Flow | None = None) -> Outflow:
    cursor = Cursor(Place("e", at, f"evt-{at}" if at else ""), feed.ring.version)
    out = Outflow(pipe, feed, log, cursor, flow or Flow())

    class Listener:
        wake = staticmethod(out.wake)
        end = None

    feed.listeners.add(Listener())  # type: ignore[arg-type]  # a writer without its session
    return out


@pytest.mark.parametrize("at", range(0, 31, 3))
@pytest.mark.parametrize("ahead", [0, 4, 17])
async def test_replay_joins_the_live_stream_at_every_point(eventually: Eventually, at: int, ahead: int) -> None:
    pipe, feed, log = Pipe(), _feed(20), Log(20 + ahead)
    feed.extend("e", entries(21, 30))
    log.top = max(30, log.top)
    async with writing(_out(pipe, feed, log, at)):
        await eventually(lambda: len(pipe.offsets()) >= 30 - at)
        for offset in range(31, 61):
            log.top = max(log.top, offset)
            feed.extend("e", entries(offset, offset))
            await asyncio.sleep(0)
        await eventually(lambda: pipe.offsets()[-1:] == [60])
    assert pipe.offsets() == list(range(at + 1, 61))


async def test_live_events_that_overrun_the_ring_during_a_replay_are_read_from_the_log(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(50, most=4), Log(50)
    log.hold.clear()
    async with writing(_out(pipe, feed, log, 10)):
        await eventually(lambda: log.reads == 1)
        for offset in range(51, 90):
            log.top = offset
            feed.extend("e", entries(offset, offset))
        log.hold.set()
        await eventually(lambda: pipe.offsets()[-1:] == [89])
    assert pipe.offsets() == list(range(11, 90))


async def test_a_log_that_cannot_be_read_delays_and_loses_nothing(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(20), Log(20)
    log.error = StoreUnavailableError("away")
    async with writing(out := _out(pipe, feed, log, 3)):
        began = asyncio.get_running_loop().time()
        await eventually(lambda: log.reads >= 3)
        assert asyncio.get_running_loop().time() - began > 0.4, "it asks again, but not in a circle"
        out.say("pong")
        await eventually(lambda: pipe.frames() == [{"type": "pong"}])
        log.error = None
        await eventually(lambda: pipe.offsets() == list(range(4, 21)))


async def test_a_log_of_another_epoch_resets_the_reader_to_where_it_goes_on(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(20), Log(8, "f")
    async with writing(_out(pipe, feed, log, 20)):
        feed.reset(Place("f", 0))
        feed.extend("f", entries(1, 8))
        await eventually(lambda: pipe.offsets() == list(range(1, 9)))
    assert pipe.frames()[0] == {"type": "reset", "reason": "epoch_changed", "epoch": "f", "offset": 0}


async def test_a_reader_that_moves_gets_nothing_of_what_was_read_for_its_old_place(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(20), Log(20)
    log.hold.clear()
    async with writing(out := _out(pipe, feed, log, 3)):
        await eventually(lambda: log.reads == 1)
        out.move(Cursor(Place("e", 18, "evt-18"), feed.ring.version), Flow(), None)
        log.hold.set()
        await eventually(lambda: len(pipe.offsets()) >= 2)
    assert pipe.offsets() == [19, 20]


async def test_a_hole_in_the_live_stream_is_filled_from_the_log(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(0), Log(12)
    async with writing(_out(pipe, feed, log, 0)):
        feed.extend("e", entries(1, 3))
        feed.extend("e", entries(9, 12))
        feed.extend("e", entries(2, 5))
        await eventually(lambda: len(pipe.offsets()) >= 12)
    assert pipe.offsets() == list(range(1, 13))


async def test_control_frames_go_before_events_and_in_their_order(eventually: Eventually) -> None:
    pipe, feed = Pipe(), _feed(0)
    out = _out(pipe, feed, Log(0), 0)
    feed.extend("e", entries(1, 2))
    for number in range(3):
        out.say("pong", client_ref=str(number), nothing=None)
    async with writing(out):
        await eventually(lambda: len(pipe.frames()) == 5)
    assert [frame.get("client_ref") for frame in pipe.frames()] == ["0", "1", "2", None, None]
    assert "nothing" not in pipe.frames()[0]


async def test_batches_hold_everything_that_is_due_together(eventually: Eventually) -> None:
    pipe, feed = Pipe(), _feed(0, most=100)
    feed.extend("e", entries(1, 50))
    async with writing(_out(pipe, feed, Log(50), 0, Flow(batch=True))):
        await eventually(lambda: pipe.frames())
        feed.extend("e", entries(51, 51))
        await eventually(lambda: len(pipe.frames()) == 2)
    batch, single = pipe.frames()
    assert (batch["event_type"], batch["batch_size"]) == ("event_batch", 50)
    assert [event["offset"] for event in batch["events"]] == list(range(1, 51))
    assert single["offset"] == 51


async def test_a_peer_that_takes_nothing_stalls_the_writer_and_one_that_takes_little_does_not(
    eventually: Eventually,
) -> None:
    pipe, feed = Pipe(), _feed(0, most=100)
    pipe.stuck = 1000
    out = _out(pipe, feed, Log(0), 0, Flow(stall_s=1.0, full_bytes=100))
    feed.extend("e", entries(1, 1))
    async with writing(out) as task:
        for left in range(900, 400, -50):
            await asyncio.sleep(0.12)
            pipe.stuck = left
        assert not task.done()
        await eventually(task.done)
        assert isinstance(task.exception(), Stalled)


async def test_who_answers_a_stuck_peer_waits_for_room(eventually: Eventually) -> None:
    pipe, feed = Pipe(), _feed(0)
    out = _out(pipe, feed, Log(0), 0)
    for _ in range(64):
        out.say("pong")
    waiting = asyncio.create_task(out.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    async with writing(out):
        await waiting


async def test_what_comes_live_while_the_log_has_nothing_new_is_not_lost(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(20), Log(20)
    log.hold.clear()
    out = _out(pipe, feed, log, 20)
    feed.ring.restart(Place("e", 20, "evt-20"))
    async with writing(out):
        await eventually(lambda: log.reads == 1)
        # The log was read before this entry was appended, and answers after it has come.
        feed.extend("e", entries(21, 22))
        log.hold.set()
        await eventually(lambda: len(pipe.offsets()) >= 2)
    assert pipe.offsets() == [21, 22]
