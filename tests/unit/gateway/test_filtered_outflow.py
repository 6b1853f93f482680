"""A writer whose cursor lets a part of the log pass only: nothing of that part is lost where log and ring meet."""

from __future__ import annotations

import pytest

from gateway.encoding import encode_entry
from gateway.log_reader import Piece
from gateway.outflow import Flow, Outflow
from gateway.ring import Cursor, Place
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.unit.gateway.entries import entry
from tests.unit.gateway.test_outflow import Log, Pipe, _feed, writing


class _Threads(Log):
    """Offsets up to ``others`` are of another thread."""

    def __init__(self, top: int, others: int) -> None:
        super().__init__(top)
        self.others = others

    def thread(self, offset: int) -> str:
        return "other" if offset <= self.others else "mine"

    def _piece(self, place: Place, reset: str = "") -> Piece:
        last = min(self.top, place.offset + 5)
        offsets = range(place.offset + 1, last + 1)
        return Piece(place, reset, [encode_entry("alice", entry(n, thread=self.thread(n))) for n in offsets])


@pytest.mark.parametrize("others", [12, 13, 17, 20, 24])
async def test_a_piece_without_a_wanted_entry_takes_nothing_from_the_ring(eventually: Eventually, others: int) -> None:
    pipe, feed, log = Pipe(), _feed(20), _Threads(20, others)
    feed.extend("e", [entry(n, thread=log.thread(n)) for n in range(21, 31)])
    cursor = Cursor(Place("e", 10, "evt-10"), feed.ring.version, "mine")
    async with writing(Outflow(pipe, feed, log, cursor, Flow())):
        await eventually(lambda: pipe.offsets()[-1:] == [30])
    assert pipe.offsets() == list(range(others + 1, 31))


async def test_what_is_passed_over_is_read_without_pauses(eventually: Eventually) -> None:
    pipe, feed, log = Pipe(), _feed(500), _Threads(500, 500)
    cursor = Cursor(Place("e", 0), feed.ring.version, "mine")
    with Awake() as took:
        async with writing(out := Outflow(pipe, feed, log, cursor, Flow())):
            await eventually(lambda: out.place.offset == 500)
    assert log.reads == 100
    assert took.seconds < 2.0
