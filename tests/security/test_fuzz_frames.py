"""Sockets of a running gateway that are sent anything: each ends or answers alone; a neighbour is served."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import aiohttp
import psutil

from carrel.ids import new_id
from tests.security.gateway_calls import bearer, connected
from tests.security.mutations import mutated
from tests.support.stack import RunningStack
from tests.support.whole import WHOLE
from tests.unit.gateway.test_wire import deflate, frame

_ROUNDS: Final = 2_000 if WHOLE else 150
_GROWTH: Final = 100 << 20
_FRAMES: Final = (
    b'{"type":"connect","thread_id":"t-1","resume":{"epoch":"e","offset":1,"event_id":"x"},"batch":true,"ack":true}',
    b'{"type":"agent_execute","message":"m","agent_name":"nobody","params":{"a":[1,{}]},"client_ref":"r"}',
    b'{"type":"agent_cancel","run_id":"run-1"}',
    b'{"type":"input_provide","run_id":"run-1","input_id":"i","value":{"a":[]}}',
    b'{"type":"ack","offset":3}',
    b'{"type":"refresh","token":"a.b.c"}',
    b'{"type":"ping","client_ref":"r"}',
)


def _sent(chance: random.Random) -> bytes:
    """Some frames, broken as text, as frames, or both; packed ones among them."""
    stream = b""
    for _ in range(chance.randint(1, 6)):
        text = chance.choice(_FRAMES)
        text = mutated(text, chance) if chance.random() < 0.5 else text
        packed = chance.random() < 0.3
        stream += frame(
            chance.choice((0, 1, 1, 1, 1, 2, 8, 9, 10)),
            deflate(text) if packed else text,
            fin=chance.random() < 0.8,
            rsv=0x40 if packed else 0,
        )
    return mutated(stream, chance) if chance.random() < 0.5 else stream


async def test_nonsense_on_many_sockets(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    chance, user, pid = random.Random(5), new_id("user"), stack.pid("gateway")
    before, grown = len(stack.log()), psutil.Process(pid).memory_info().rss
    host, _, port = stack.url.removeprefix("http://").partition(":")
    head = (
        "GET /ws?deflate=1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    )

    ended: list[int] = []

    async def attack(number: int, sent: bytes) -> bytes:
        login = f"Authorization: Bearer {stack.token(f'{user}-{number % 40}')}\r\n" if number % 4 else ""
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}{login}\r\n".encode() + sent)
        writer.write(frame(8, b"\x03\xe8"))
        said = b""
        try:
            # What is broken may have taken the close in: then it waits for more.
            async with asyncio.timeout(0.5):
                while piece := await reader.read(65_536):
                    said += piece
        except (TimeoutError, ConnectionResetError):
            pass
        else:
            ended.append(number)
        finally:
            writer.close()
        return said

    async with connected(http, "/ws", bearer(stack.token(user))) as neighbour:
        for at in range(0, _ROUNDS, 15):
            attacks = [attack(number, _sent(chance)) for number in range(at, at + 15)]
            answers = asyncio.gather(*attacks)
            await neighbour.send_json({"type": "ping", "client_ref": str(at)})
            frame_ = await neighbour.receive_json(timeout=5)
            assert (frame_["type"], frame_["client_ref"]) == ("pong", str(at))
            assert not any(b"INTERNAL" in answer for answer in await answers)
    assert len(ended) > _ROUNDS // 2
    said = stack.log()[before:]
    assert "unexpected error" not in said
    assert "Traceback" not in said, said[said.index("Traceback") - 300 :][:3000]
    assert stack.pid("gateway") == pid
    assert psutil.Process(pid).memory_info().rss - grown < _GROWTH
