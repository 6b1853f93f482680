"""A client that sends frames as fast as it can: the loop's other work has its turns, and no frame is lost for it."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import cast

import pytest

from gateway import sockets
from gateway.close_codes import CloseCode
from gateway.sockets import Ending, Socket
from gateway.wire import Message, Opcode
from tests.conftest import Eventually
from tests.unit.gateway.test_socket import Peer
from tests.unit.gateway.test_wire import deflate, frame

COUNT = 500
# 2 ms at 0.1 ms for each frame.
MOST_AT_ONCE = 21


class Clock:
    """Moves by 0.1 ms more than it should whenever it is asked, which is once for each frame."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.asked = 0

    @property
    def now(self) -> float:
        return time.monotonic() + self.ahead

    def __call__(self) -> float:
        self.ahead += 0.0001
        self.asked += 1
        return self.now


class Flooded:
    """A socket, its peer, and how much of the flood was acted on in each turn of the loop."""

    def __init__(self, clock: Clock, *, deflate_bits: int = 0) -> None:
        self.peer = Peer()
        self.socket = Socket(cast(asyncio.Transport, self.peer), 1 << 20, deflate_bits)
        self.texts: list[str] = []
        self.turns: list[int] = []
        self.clock = clock
        self.socket.on_inbox = self.drain

    def drain(self) -> None:
        """As a session does."""
        while (message := self.socket.next_message()) is not None:
            self.texts.append(message.text)

    async def until_read(self) -> None:
        """Until more is read from the peer, counting what is done in each turn."""
        async with asyncio.timeout(5):
            while not self.peer.reading:
                asked = self.clock.asked
                await asyncio.sleep(0)
                self.turns.append(self.clock.asked - asked)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sockets, "_clock", made)
    return made


FLOODS = {
    "acks": frame(1, b'{"type":"ack","offset":0}'),
    "pongs": frame(10),
    "pings": frame(9, b"x"),
    "binary messages": frame(2, b"\0"),
}


@pytest.mark.parametrize("flood", [pytest.param(data, id=name) for name, data in FLOODS.items()])
async def test_a_flood_is_acted_on_a_little_in_each_turn_of_the_loop(clock: Clock, flood: bytes) -> None:
    flooded = Flooded(clock)
    flooded.socket.data_received(flood * COUNT + frame(1, b"last"))
    assert clock.asked <= MOST_AT_ONCE + 2
    assert not flooded.peer.reading, "nothing more is read before"
    await flooded.until_read()
    assert max(flooded.turns) <= MOST_AT_ONCE + 2
    assert len([turn for turn in flooded.turns if turn]) >= COUNT // MOST_AT_ONCE
    assert flooded.texts[-1] == "last"
    flooded.socket.connection_lost(None)


async def test_empty_fragments_count_as_frames_too(clock: Clock) -> None:
    flooded = Flooded(clock)
    stream = frame(1, b"a", fin=False) + frame(0, fin=False) * COUNT + frame(0, b"z")
    flooded.socket.data_received(stream)
    assert clock.asked <= MOST_AT_ONCE + 2
    await flooded.until_read()
    assert max(flooded.turns) <= MOST_AT_ONCE + 2
    assert flooded.texts == ["az"]
    flooded.socket.connection_lost(None)


async def test_chunks_that_come_in_one_turn_share_what_one_may_have(clock: Clock) -> None:
    flooded = Flooded(clock)
    chunks = 0
    while flooded.peer.reading:
        flooded.socket.data_received(frame(10) * 5)
        chunks += 1
    assert chunks <= MOST_AT_ONCE // 5
    await flooded.until_read()
    flooded.socket.connection_lost(None)


async def test_a_second_chunk_has_what_the_first_has_left(clock: Clock) -> None:
    flooded = Flooded(clock)
    flooded.socket.data_received(frame(10) * 15)
    assert flooded.peer.reading
    flooded.socket.data_received(frame(10) * COUNT)
    assert clock.asked <= MOST_AT_ONCE + 4
    await flooded.until_read()
    flooded.socket.connection_lost(None)


async def test_nothing_is_lost_or_reordered_and_pings_are_all_answered(clock: Clock) -> None:
    flooded = Flooded(clock, deflate_bits=15)
    sent, stream = list[str](), b""
    for number in range(COUNT):
        text = f"{number} " * (200 if number % 50 == 0 else 1)
        sent.append(text)
        payload, packed = text.encode(), number % 7 == 0
        stream += frame(1, deflate(payload) if packed else payload, rsv=0x40 if packed else 0)
        stream += frame(9, b"%d" % number) + frame(10)
    for at in range(0, len(stream), 3_333):
        # More comes now and then though nothing is read: what was read before the pause.
        flooded.socket.data_received(stream[at : at + 3_333])
        if at % 2:
            await flooded.until_read()
    await flooded.until_read()
    assert flooded.texts == sent
    assert flooded.peer.data == b"".join(b"\x8a" + bytes((len(n),)) + n for n in (b"%d" % n for n in range(COUNT)))
    assert flooded.socket._reader._buffer is None, "nothing is held for a connection that is silent"
    flooded.socket.connection_lost(None)


async def test_a_frame_that_costs_much_is_followed_by_as_long_a_rest(clock: Clock) -> None:
    flooded = Flooded(clock)
    flooded.socket.on_inbox = lambda: setattr(clock, "ahead", clock.ahead + 0.05)
    flooded.socket.data_received(frame(1, b"dear"))
    assert not flooded.peer.reading
    assert flooded.socket._paid_at - clock.now == pytest.approx(0.05, rel=0.1)
    flooded.socket.connection_lost(None)


async def test_a_client_that_sends_little_is_never_kept_waiting(clock: Clock) -> None:
    flooded = Flooded(clock)
    for number in range(100):
        flooded.socket.data_received(frame(1, b"%d" % number))
        assert flooded.peer.reading
        assert flooded.texts[-1] == str(number)
        clock.ahead += 0.02
    assert flooded.socket._later is None


async def test_a_close_behind_a_flood_is_answered_and_ends_it(clock: Clock, eventually: Eventually) -> None:
    flooded = Flooded(clock)
    flooded.socket.data_received(frame(1, b"x") * 100 + frame(8, (1000).to_bytes(2, "big")) + frame(1, b"late"))
    assert not flooded.peer.closing
    await eventually(lambda: flooded.peer.closing)
    assert (flooded.texts, flooded.peer.data) == (["x"] * 100, b"\x88\x02\x03\xe8")
    assert flooded.socket._later is None
    flooded.socket.connection_lost(None)


async def test_a_flooding_client_s_answer_to_our_close_is_found_behind_what_nobody_reads(
    clock: Clock, eventually: Eventually
) -> None:
    flooded = Flooded(clock)
    flooded.socket.on_inbox = lambda: None
    flooded.socket.data_received(frame(1, b"x") * 100 + frame(8, (4000).to_bytes(2, "big")))
    await eventually(lambda: flooded.socket._held_back)
    closing = asyncio.create_task(flooded.socket.close(Ending(CloseCode.DRAIN), b"", 5))
    await eventually(lambda: flooded.peer.closing)
    assert not flooded.peer.aborted
    assert flooded.socket.inbox is None
    flooded.socket.connection_lost(None)
    await closing


@pytest.mark.parametrize("how", ["the peer has gone", "we cut it"])
async def test_an_end_in_the_middle_leaves_no_timer_and_no_cycle(clock: Clock, how: str) -> None:
    flooded = Flooded(clock)
    flooded.socket.data_received(frame(1, b"x") * COUNT)
    later, seen = flooded.socket._later, len(flooded.texts)
    assert later is not None
    if how == "we cut it":
        flooded.socket.abort()
    flooded.socket.connection_lost(None)
    assert later.cancelled()
    assert flooded.socket._later is None
    await asyncio.sleep(0.01)
    assert len(flooded.texts) == seen
    gone = weakref.ref(flooded)
    gc.disable()
    try:
        del flooded
        assert gone() is None, "freed without the collector"
    finally:
        gc.enable()


async def test_an_end_of_the_session_in_the_middle_of_the_flood_is_survived(clock: Clock) -> None:
    flooded = Flooded(clock)

    def lose() -> None:
        flooded.socket.connection_lost(None)
        assert flooded.socket.next_message() == Message(Opcode.TEXT, "x")

    flooded.socket.on_inbox = lose
    flooded.socket.data_received(frame(1, b"x") * COUNT)
    assert flooded.socket._later is None
    await asyncio.sleep(0.01)
