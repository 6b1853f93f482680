"""A connection to Redis is everybody's: what one who waits does with an answer is no matter of the others."""

from __future__ import annotations

import asyncio
from typing import Any

from services.bridge.store_redis_connection import RedisConnection, pack


class Transport(asyncio.Transport):
    """Takes everything."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


async def test_a_taker_that_raises_costs_its_own_answer_only() -> None:
    connection = RedisConnection(("h", 1), 1.0)
    connection.connection_made(Transport())
    told: list[Any] = []

    def rejects(answer: Any) -> None:
        raise ValueError(answer)

    connection.send([pack("GET", "a")] * 4, [told.append, rejects, told.append, rejects])
    connection.data_received(b"+1\r\n+2\r\n+3\r\n")
    assert told == [b"1", b"3"]
    assert connection.usable
    connection.connection_lost(None)
    assert not connection.usable
