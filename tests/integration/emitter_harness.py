"""A bridge that does what it is told (withholds, refuses, dies) and a real emitter in front of it, over real gRPC."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import orjson
from grpc import aio

from carrel.v1 import bridge_pb2, emitter_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceServicer, BridgeServiceStub, add_BridgeServiceServicer_to_server
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.events_pb2 import Event, ProducerAck, ProducerEvents, RefusalReason
from servicekit.delivery import ProducerOptions, ProducerStream, StreamOptions
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from services.emitter.app import serve_emitter
from services.emitter.config import EmitterSettings

Key = tuple[str, str]
QUICK = StreamOptions(first_delay_s=0.01, max_delay_s=0.1)
QUICK_PRODUCER = ProducerOptions(settle_s=0.005, first_delay_s=0.01, max_delay_s=0.1)
TEXT = {"text": "thinking"}


class FakeLog:
    """The durable part of the fake bridge: it outlives the process."""

    def __init__(self) -> None:
        self.events: dict[Key, list[Event]] = defaultdict(list)
        self.base: dict[Key, int] = defaultdict(int)
        self.items: list[ProducerEvents] = []
        self.fences: dict[Key, int] = {}
        self.duplicates = 0
        self.gaps: list[Key] = []

    def last(self, key: Key) -> int:
        return self.base[key] + len(self.events[key])

    def numbers(self, user: str, producer: str) -> list[int]:
        return [event.number for event in self.events[user, producer]]

    def data(self, user: str, producer: str) -> list[Any]:
        return [orjson.loads(event.data) for event in self.events[user, producer]]

    def append(self, item: ProducerEvents) -> ProducerAck:
        key = (item.context.user_id, item.producer_id)
        self.items.append(item)
        ack = ProducerAck(user_id=key[0], producer_id=key[1], epoch="e1")
        run = (key[0], item.context.run_id)
        if item.fence < self.fences.get(run, 0):
            ack.through = ack.refusal.last_number = self.last(key)
            ack.refusal.reason = RefusalReason.REFUSAL_REASON_STALE_FENCE
            ack.fence = item.fence
            return ack
        self.fences[run] = item.fence
        first = item.events[0].number
        if first > self.last(key) + 1:
            if not item.declare_gap:
                ack.through = self.last(key)
                ack.refusal.reason = RefusalReason.REFUSAL_REASON_GAP
                ack.refusal.last_number = self.last(key)
                return ack
            self.gaps.append(key)
            self.base[key] = first - 1 - len(self.events[key])
        for event in item.events:
            if event.number > self.last(key):
                self.events[key].append(event)
            else:
                self.duplicates += 1
        ack.through = ack.offset = self.last(key)
        return ack


class FakeBridge(BridgeServiceServicer):
    """Publish over a FakeLog; the other RPCs are not there."""

    Attach = ReadEvents = GetState = Revoke = None  # type: ignore[assignment]  # never called here

    def __init__(self, log: FakeLog) -> None:
        self.log = log
        self.acknowledging = asyncio.Event()
        self.acknowledging.set()
        self.reading = asyncio.Event()
        self.reading.set()
        self.refuse: Callable[[ProducerEvents], RefusalReason.ValueType | None] = lambda item: None
        # Called when a question for a run's fence has been answered, before the asker has the answer.
        self.resolved: Callable[[], None] = lambda: None
        self.messages = 0
        self.streams = 0

    async def Publish(
        self, request_iterator: AsyncIterator[bridge_pb2.PublishRequest], context: Any
    ) -> AsyncIterator[bridge_pb2.PublishResponse]:
        self.streams += 1
        async for request in request_iterator:
            await self.reading.wait()
            self.messages += 1
            acks = [self._take(item) for item in request.items]
            await self.acknowledging.wait()
            yield bridge_pb2.PublishResponse(acks=acks)

    async def ResolveRun(self, request: bridge_pb2.ResolveRunRequest, context: Any) -> bridge_pb2.ResolveRunResponse:
        fence = self.log.fences.get((request.context.user_id, request.run_id))
        self.resolved()
        if fence is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
        return bridge_pb2.ResolveRunResponse(run_id=request.run_id, fence=fence or 0)

    def _take(self, item: ProducerEvents) -> ProducerAck:
        reason = self.refuse(item)
        if reason is None:
            return self.log.append(item)
        key = (item.context.user_id, item.producer_id)
        ack = ProducerAck(user_id=key[0], producer_id=key[1], through=self.log.last(key))
        ack.refusal.reason = reason
        ack.refusal.last_number = self.log.last(key)
        return ack


class Harness:
    """Starts and kills both; keeps their ports."""

    def __init__(self, tmp_path: Any) -> None:
        key = generate_key()
        self.minter = TicketMinter(key, "execution")
        self.users_minter = TicketMinter(key, "gateway")
        self.forger = TicketMinter(generate_key(), "execution")
        self.verifier = TicketVerifier(KeySet([key]))
        self.log = FakeLog()
        self.bridge = FakeBridge(self.log)
        self.bridge_port = 0
        self.emitter_port = 0
        self.overrides: dict[str, Any] = {}
        self.server: RpcServer | None = None
        self._tmp = tmp_path
        self._bridge_server: aio.Server | None = None
        self._emitter = AsyncExitStack()
        self._clients = AsyncExitStack()

    async def start_bridge(self) -> None:
        self.bridge = FakeBridge(self.log)
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        add_BridgeServiceServicer_to_server(self.bridge, server)
        self.bridge_port = server.add_insecure_port(f"127.0.0.1:{self.bridge_port}")
        await server.start()
        self._bridge_server = server

    async def kill_bridge(self) -> None:
        assert self._bridge_server is not None
        await self._bridge_server.stop(0)

    async def start_emitter(self) -> None:
        settings = EmitterSettings(
            listen=f"127.0.0.1:{self.emitter_port}", state_dir=self._tmp, **{"drain_seconds": 5.0, **self.overrides}
        )
        self._emitter = AsyncExitStack()
        target = f"127.0.0.1:{self.bridge_port}"
        channel = await self._emitter.enter_async_context(open_channel(target))
        bridges = await self._emitter.enter_async_context(Copies(target, "bridge"))
        serving = serve_emitter(settings, channel, bridges, self.verifier)
        self.server = await self._emitter.enter_async_context(serving)
        self.emitter_port = await self.server.start()

    async def kill_emitter(self) -> None:
        await self._emitter.aclose()

    async def channel(self) -> aio.Channel:
        return await self._clients.enter_async_context(open_channel(f"127.0.0.1:{self.emitter_port}"))

    async def stub(self) -> EmitterServiceStub:
        return EmitterServiceStub(await self.channel())

    async def stream(self) -> ProducerStream:
        """A process's stream of producers."""
        emitters = await self._clients.enter_async_context(Copies(f"127.0.0.1:{self.emitter_port}", "emitter"))
        return await self._clients.enter_async_context(ProducerStream.to_emitters(emitters, options=QUICK))

    async def emit_call(self) -> EmitCall:
        """A bare Emit call, for items that no producer of ours would send."""
        call = EmitCall((await self.stub()).Emit())
        self._clients.callback(call.call.cancel)
        return call

    async def statistics(self) -> emitter_pb2.GetEmitterStatisticsResponse:
        request = emitter_pb2.GetEmitterStatisticsRequest()
        request.context.ticket = self.minter.mint_service("operator", ["operator:read"])
        return await (await self.stub()).GetEmitterStatistics(request, timeout=5)

    async def aclose(self) -> None:
        await self._clients.aclose()
        await self.kill_emitter()
        await self.kill_bridge()

    def context(
        self, user: str = "alice", run: str = "r1", *, lifetime_s: float = 600, minter: TicketMinter | None = None
    ) -> UserExecutionContext:
        ticket = (minter or self.minter).mint_run(user, "t1", run, "q1", lifetime_s=lifetime_s)
        return UserExecutionContext(user_id=user, thread_id="t1", run_id=run, request_id="q1", ticket=ticket)


class EmitCall:
    """One Emit call, item by item."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.acks: dict[Key, ProducerAck] = {}
        self.heard: list[ProducerAck] = []

    async def send(self, *items: ProducerEvents) -> None:
        await self.call.write(emitter_pb2.EmitRequest(items=items))

    async def hear(self) -> list[ProducerAck]:
        """The next response's acknowledgements."""
        response = await asyncio.wait_for(self.call.read(), 5)
        assert response is not grpc.aio.EOF
        self.heard.extend(response.acks)
        for ack in response.acks:
            self.acks[ack.user_id, ack.producer_id] = ack
        return list(response.acks)

    async def hear_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.hear()

    def through(self, user: str, producer: str) -> int:
        ack = self.acks.get((user, producer))
        return ack.through if ack is not None else 0

    def reason(self, user: str, producer: str) -> str:
        ack = self.acks.get((user, producer))
        return RefusalReason.Name(ack.refusal.reason) if ack is not None and ack.HasField("refusal") else ""


def item(
    context: UserExecutionContext,
    first: int = 1,
    last: int = 0,
    *,
    producer: str = "r1:0:1",
    kind: str = "agent_thinking",
    data: bytes | dict[str, Any] = TEXT,
    **fields: Any,
) -> ProducerEvents:
    """An item with the events first … last, all alike."""
    payload = data if isinstance(data, bytes) else orjson.dumps(data)
    result = ProducerEvents(context=context, producer_id=producer, fence=1, attempt=1, **fields)
    for number in range(first, max(first, last) + 1):
        result.events.add(event_id=f"e{number}", number=number, event_type=kind, agent_name="data", data=payload)
    return result


__all__ = [
    "QUICK_PRODUCER",
    "TEXT",
    "BridgeServiceStub",
    "EmitCall",
    "FakeBridge",
    "FakeLog",
    "Harness",
    "item",
]
