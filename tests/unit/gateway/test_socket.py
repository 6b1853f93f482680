"""An upgraded connection by itself: what waits is bounded, and what it is told when it ends."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.close_codes import CloseCode
from gateway.sockets import Ending, Socket
from tests.conftest import Eventually
from tests.unit.gateway.test_socket_outflow import Transport
from tests.unit.gateway.test_wire import frame


class Peer(Transport):
    """A transport that can be told to read no more."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closing = True


def _socket() -> tuple[Socket, Peer]:
    peer = Peer()
    return Socket(cast(asyncio.Transport, peer), 1000), peer


@pytest.mark.parametrize(("count", "size"), [(40, 1), (3, 60_000)])
async def test_nothing_more_is_read_while_much_waits(count: int, size: int, eventually: Eventually) -> None:
    socket, peer = _socket()
    for _ in range(count):
        socket.data_received(frame(1, b"x" * size))
    assert not peer.reading
    for _ in range(count):
        # What is in hand comes in turns of the loop, when nothing waits any more.
        message = socket.next_message() or await socket.first_message()
        assert message is not None
        assert len(message.text) == size
    assert socket.next_message() is None
    await eventually(lambda: peer.reading)
    assert socket.inbox is None, "nothing is held while nothing waits"


async def test_a_peer_that_does_not_read_gets_no_pongs_for_its_pings(eventually: Eventually) -> None:
    socket, peer = _socket()
    socket.pause_writing()
    socket.data_received(frame(9, b"flood") * 1000)
    await eventually(lambda: peer.reading)
    assert peer.data == b""
    socket.resume_writing()
    socket.data_received(frame(9, b"now"))
    assert peer.data == b"\x8a\x03now"


async def test_after_the_close_of_either_side_nothing_more_is_taken_in() -> None:
    socket, peer = _socket()
    socket.data_received(frame(8) + frame(1, b"late"))
    assert (peer.data, peer.closing, socket.inbox) == (b"\x88\x00", True, None)
    socket.data_received(frame(1, b"later"))
    assert socket.inbox is None
    socket.connection_lost(None)


async def test_one_that_does_not_answer_the_close_is_cut_in_time() -> None:
    socket, peer = _socket()
    closing = asyncio.create_task(socket.close(Ending(CloseCode.DRAIN, retry_ms=7), b"", 0.05))
    await asyncio.sleep(0)
    assert b'"retry_ms":7' in peer.data
    socket.data_received(frame(1, b"late"))
    assert socket.inbox is None
    await asyncio.sleep(0.1)
    assert peer.aborted
    socket.connection_lost(None)
    await closing


async def test_a_stalled_one_is_cut_without_a_word() -> None:
    socket, peer = _socket()
    closing = asyncio.create_task(socket.close(Ending(CloseCode.SLOW)))
    await asyncio.sleep(0)
    assert (peer.aborted, peer.data) == (True, b"")
    socket.connection_lost(None)
    await closing
