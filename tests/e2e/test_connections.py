"""A thousand readers that take nothing, and many that come and go, on a gateway of its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket as sockets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import pytest

from carrel.ids import new_id
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from servicekit.identity.principals import OPERATOR_READ
from servicekit.rpc.channel import open_channel
from tests.conftest import Eventually
from tests.support.stack import RunningStack, running_stack

_READERS = 1_000
_PER_USER = 20
_EVENTS = 40
_EVENT_BYTES = 10_000
# The whole 20,000 of the target take some minutes: CHURN=20000.
_WARM = 5
_CHURN = int(os.environ.get("CHURN", "1500"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    """All clients come from one address here."""
    environment = {
        "CARREL_GATEWAY_LIMITS__PER_ADDRESS": "5000",
        "WEBSOCKET_DELIVERY_TIMEOUT": "4",
        "WEBSOCKET_HEARTBEAT_INTERVAL": "120",
    }
    with running_stack(tmp_path, environment=environment) as running:
        yield running


def _memory_kb(process: psutil.Process) -> int:
    """What is the process's own: shared libraries count for more whenever another process that has them ends."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _gateway(stack: RunningStack) -> psutil.Process:
    pid = stack.pid("gateway")
    assert pid is not None
    return psutil.Process(pid)


async def _statistics(stack: RunningStack, http: aiohttp.ClientSession) -> dict[str, Any]:
    token = stack.token("operator", permissions=[OPERATOR_READ])
    async with http.get(f"{stack.url}/api/operator/gateway", headers={"Authorization": f"Bearer {token}"}) as response:
        assert response.status == 200
        body: dict[str, Any] = await response.json()
        return body


async def _raw(stack: RunningStack, token: str) -> sockets.socket:
    """A connection that has been upgraded and never reads."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    host, port = stack.address("gateway").rsplit(":", 1)
    await loop.sock_connect(raw, (host, int(port)))
    request = (
        "GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    await loop.sock_sendall(raw, request.encode())
    assert (await loop.sock_recv(raw, 12)) == b"HTTP/1.1 101"
    return raw


class Publisher:
    """Appends events to users' logs, as the emitter does."""

    def __init__(self, stack: RunningStack, call: Any) -> None:
        self._stack = stack
        self._call = call
        self._contexts: dict[str, Any] = {}
        self._numbers: dict[str, int] = {}

    async def publish(self, user: str, size: int) -> None:
        """One event more, acknowledged by the log."""
        context = self._contexts.get(user)
        if context is None:
            context = self._contexts[user] = self._stack.run_context(
                user, thread=new_id("thread"), run=new_id("run"), request=new_id("req"), admitted=True
            )
        number = self._numbers[user] = self._numbers.get(user, 0) + 1
        item = events_pb2.ProducerEvents(context=context, producer_id=f"{context.run_id}:0:1", attempt=1, fence=1)
        event = item.events.add(event_id=new_id("evt"), number=number, event_type="agent_thinking", agent_name="data")
        event.timestamp.GetCurrentTime()
        event.data = orjson.dumps({"text": "x" * size})
        await self._call.write(bridge_pb2.PublishRequest(items=[item]))
        response = await self._call.read()
        assert not response.acks[0].HasField("refusal"), response


@asynccontextmanager
async def _publishing(stack: RunningStack) -> AsyncIterator[Publisher]:
    async with open_channel(stack.address("bridge")) as channel:
        call = bridge_pb2_grpc.BridgeServiceStub(channel).Publish()
        yield Publisher(stack, call)
        call.cancel()


async def _events(ws: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        frame = orjson.loads((await ws.receive(timeout=20)).data)
        if "event_type" in frame:
            found.append(frame)
    return found


async def test_a_thousand_stalled_readers_change_nobody_elses_events_and_memory_stays_bounded(
    stack: RunningStack, eventually: Eventually
) -> None:
    users = [f"stalled{number}" for number in range(_READERS // _PER_USER)]
    gateway = _gateway(stack)
    async with AsyncExitStack() as held, aiohttp.ClientSession() as http, _publishing(stack) as publisher:
        headers = {"Authorization": f"Bearer {stack.token('healthy')}"}
        healthy = await held.enter_async_context(http.ws_connect(f"{stack.url}/ws", headers=headers))
        before = _memory_kb(gateway)
        for user in users:
            token = stack.token(user)
            for _ in range(_PER_USER):
                held.enter_context(contextlib.closing(await _raw(stack, token)))
        peak = 0
        for number in range(_EVENTS):
            for user in users:
                await publisher.publish(user, _EVENT_BYTES)
            await publisher.publish("healthy", 100)
            (event,) = await _events(healthy, 1)
            assert (event["offset"], event["user_id"]) == (number + 1, "healthy")
            peak = max(peak, _memory_kb(gateway))
        assert (await _statistics(stack, http))["totals"]["events_sent"] > _READERS
        await eventually(lambda: _only_one(stack, http), within=40, what="the stalled ones are cut off")
        assert (await _statistics(stack, http))["ended"] == {"slow": _READERS}
        # What each may hold is what its transport does and one write more; the rings are their users'.
        bound_kb = _READERS * 192 + len(users) * _EVENTS * _EVENT_BYTES // 1024
        assert peak - before < bound_kb, f"{peak - before} KiB"
        # One of them comes back, and has lost nothing.
        headers = {"Authorization": f"Bearer {stack.token(users[0])}"}
        again = await held.enter_async_context(http.ws_connect(f"{stack.url}/ws", headers=headers))
        await again.send_json({"type": "connect", "resume": {"offset": 0}})
        offsets = [event["offset"] for event in await _events(again, _EVENTS)]
        assert offsets == list(range(1, _EVENTS + 1))


async def _only_one(stack: RunningStack, http: aiohttp.ClientSession) -> bool:
    return int((await _statistics(stack, http))["connections"]) == 1


async def test_connections_that_come_and_go_leave_nothing_behind(stack: RunningStack, eventually: Eventually) -> None:
    gateway = _gateway(stack)
    async with aiohttp.ClientSession() as http:

        async def settled() -> bool:
            return int((await _statistics(stack, http))["connections"]) == 0

        # What is remembered of a user, tickets say, is bounded, and remembered already after the first round.
        users = [f"user{number}" for number in range(300)]
        await _churn(stack, users * _WARM)
        await eventually(settled, within=20)
        files, memory = gateway.num_fds(), _memory_kb(gateway)
        await _churn(stack, [users[number % len(users)] for number in range(_CHURN)])
        await eventually(settled, within=20)
        statistics = await _statistics(stack, http)
        assert (statistics["users"], statistics["totals"]["accepted"]) == (0, len(users) * _WARM + _CHURN)
        await eventually(lambda: gateway.num_fds() <= files + 3, what="descriptors are given back")
        grown = _memory_kb(gateway) - memory
        assert grown < 3_000, f"{grown} KiB for {_CHURN} connections that are gone"


async def _churn(stack: RunningStack, users: Sequence[str]) -> None:
    """Connect, say a few words, leave: politely, without a word, or with a reset."""
    turn = asyncio.Semaphore(50)

    async def visit(number: int, user: str) -> None:
        async with turn:
            raw = await _raw(stack, stack.token(user))
            if number % 3 == 0:
                with contextlib.suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(raw, b"\x88\x80\x00\x00\x00\x00")
                    while await asyncio.get_running_loop().sock_recv(raw, 4096):
                        pass
            elif number % 3 == 1:
                raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            raw.close()

    async with asyncio.TaskGroup() as group:
        for number, user in enumerate(users):
            group.create_task(visit(number, user))
