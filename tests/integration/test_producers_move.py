"""Producers among two emitters and two bridges on one log: streams move with items in flight, and order holds.

The emitters are the real ones; a bridge here appends late and in its own time, also what came on a stream that is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from grpc import aio

from carrel.v1 import bridge_pb2
from carrel.v1.bridge_pb2_grpc import add_BridgeServiceServicer_to_server
from servicekit.delivery import Producer, ProducerStream, StreamOptions
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from services.emitter.app import serve_emitter
from services.emitter.config import EmitterSettings
from tests.conftest import Eventually
from tests.integration.emitter_harness import QUICK_PRODUCER, TEXT, FakeBridge, FakeLog, Harness

EVENTS = 400


class LateBridge(FakeBridge):
    """Appends each request some time after it came, in the stream's order, whatever becomes of the stream."""

    def __init__(self, log: FakeLog, dice: random.Random) -> None:
        super().__init__(log)
        self._dice = dice
        self.tasks: set[asyncio.Task[list[Any]]] = set()

    async def Publish(
        self, request_iterator: AsyncIterator[bridge_pb2.PublishRequest], context: Any
    ) -> AsyncIterator[bridge_pb2.PublishResponse]:
        self.streams += 1
        async for request in request_iterator:
            task = asyncio.create_task(self._append(request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            yield bridge_pb2.PublishResponse(acks=await asyncio.shield(task))

    async def _append(self, request: bridge_pb2.PublishRequest) -> list[Any]:
        await asyncio.sleep(self._dice.choice((0, 0, 0.001, 0.02)))
        return [self._take(item) for item in request.items]


class Cell:
    """Two bridges, two emitters, and who restarts them."""

    def __init__(self, folder: Path, verifier: TicketVerifier, dice: random.Random) -> None:
        self.log = FakeLog()
        self.bridges = [LateBridge(self.log, dice) for _ in range(2)]
        self.servers: list[RpcServer] = []
        self._folder = folder
        self._verifier = verifier
        self._bridge_servers: list[aio.Server] = []
        self._bridge_ports = [0, 0]
        self._emitters = [AsyncExitStack(), AsyncExitStack()]
        self._emitter_ports = [0, 0]

    async def __aenter__(self) -> Self:
        for index in range(2):
            self._bridge_servers.append(await self._bridge(index))
        for index in range(2):
            await self.start_emitter(index)
        return self

    async def _bridge(self, index: int) -> aio.Server:
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        add_BridgeServiceServicer_to_server(self.bridges[index], server)
        self._bridge_ports[index] = server.add_insecure_port(f"127.0.0.1:{self._bridge_ports[index]}")
        await server.start()
        return server

    async def restart_bridge(self, index: int, grace_s: float | None) -> None:
        await self._bridge_servers[index].stop(grace_s)
        self._bridge_servers[index] = await self._bridge(index)

    async def start_emitter(self, index: int) -> None:
        stack = self._emitters[index] = AsyncExitStack()
        settings = EmitterSettings(
            listen=f"127.0.0.1:{self._emitter_ports[index]}", state_dir=self._folder, drain_seconds=2.0
        )
        target = ",".join(f"127.0.0.1:{port}" for port in self._bridge_ports)
        channel = await stack.enter_async_context(open_channel(target))
        bridges = await stack.enter_async_context(Copies(target, "bridge"))
        server = await stack.enter_async_context(serve_emitter(settings, channel, bridges, self._verifier))
        self._emitter_ports[index] = await server.start()
        self.servers[index : index + 1] = [server]

    async def restart_emitter(self, index: int, grace_s: float) -> None:
        await self.servers[index].drain(grace_s)
        await self._emitters[index].aclose()
        await self.start_emitter(index)

    @property
    def target(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._emitter_ports)

    async def __aexit__(self, *_: object) -> None:
        for emitter in self._emitters:
            await emitter.aclose()
        for server in self._bridge_servers:
            await server.stop(0)
        await asyncio.gather(*(task for bridge in self.bridges for task in list(bridge.tasks)))


async def _emit_all(producer: Producer, dice: random.Random) -> None:
    for number in range(EVENTS):
        await producer.emit("agent_message", {"message_id": "m", "delta": str(number)})
        if dice.random() < 0.2:
            await asyncio.sleep(0.002)
    await producer.flush(20)


@pytest.mark.parametrize("seed", range(3))
async def test_streams_move_between_copies_and_each_event_is_logged_once_in_order(
    tmp_path: Path, seed: int, eventually: Eventually
) -> None:
    dice, harness = random.Random(seed), Harness(tmp_path)
    age = StreamOptions(first_delay_s=0.01, max_delay_s=0.1, max_age_s=0.15, close_grace_s=dice.choice((0.001, 0.5)))
    async with (
        Cell(tmp_path, harness.verifier, dice) as cell,
        Copies(cell.target, "emitter") as emitters,
        ProducerStream.to_emitters(emitters, options=age) as one,
        ProducerStream.to_emitters(emitters, options=age) as two,
    ):
        producers = [
            Producer(stream, f"r{number}:0:1", harness.context(f"user{number}", f"r{number}"), options=QUICK_PRODUCER)
            for number, stream in enumerate((one, two, one, two))
        ]
        emitting = [asyncio.create_task(_emit_all(producer, dice)) for producer in producers]
        for _ in range(3):
            await asyncio.sleep(dice.uniform(0.05, 0.2))
            index = dice.randrange(2)
            if dice.random() < 0.5:
                await cell.restart_emitter(index, dice.choice((0.0, 1.0)))
            else:
                await cell.restart_bridge(index, dice.choice((None, 0.5)))
        await asyncio.wait_for(asyncio.gather(*emitting), 30)
        for number, producer in enumerate(producers):
            assert cell.log.numbers(f"user{number}", f"r{number}:0:1") == list(range(1, EVENTS + 1))
            texts = [data["delta"] for data in cell.log.data(f"user{number}", f"r{number}:0:1")]
            assert texts == [str(n) for n in range(EVENTS)]
            await producer.aclose()
        # Nobody took a copy that is behind for a log that has lost something.
        assert cell.log.gaps == []
        assert one.statistics.connections + two.statistics.connections > 2


async def test_a_drained_emitter_hands_its_streams_to_the_other_within_a_second(
    tmp_path: Path, eventually: Eventually
) -> None:
    harness = Harness(tmp_path)
    async with (
        Cell(tmp_path, harness.verifier, random.Random(1)) as cell,
        Copies(cell.target, "emitter") as emitters,
        ProducerStream.to_emitters(emitters) as stream,
    ):
        producer = Producer(stream, "r1:0:1", harness.context(), options=QUICK_PRODUCER)
        await producer.emit("agent_thinking", TEXT)
        await producer.flush(5)
        for index in range(2):
            await cell.servers[index].drain(grace_s=2.0)
            await producer.emit("agent_thinking", TEXT)
            if index == 0:
                await producer.flush(1)
        await eventually(lambda: not stream.connected)
        await cell.restart_emitter(0, 0)
        assert await producer.flush(3) == 3
        await producer.aclose()
