"""The bridge's gRPC service over a real server and a SQLite log: publish, attach, read, resolve, refuse, drain."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from carrel.errors import PermissionDeniedError, ScopeError, UnknownRunError
from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.principals import OPERATOR_READ
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.rpc.channel import open_channel, responses
from servicekit.rpc.server import RpcServer
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.store_sqlite import SqliteEventLog

KEY = generate_key()
MINTER = TicketMinter(KEY, "execution")
USERS_MINTER = TicketMinter(KEY, "gateway")
R = events_pb2.RefusalReason


def run_context(user: str = "alice", run: str = "r1", thread: str = "t1") -> UserExecutionContext:
    ticket = MINTER.mint_run(user, thread, run, f"q-{run}")
    return UserExecutionContext(user_id=user, thread_id=thread, run_id=run, request_id=f"q-{run}", ticket=ticket)


def expired_context() -> UserExecutionContext:
    with mock.patch("servicekit.identity.tickets._now", return_value=time.time() - 10_000):
        return run_context()


def session_context(user: str = "alice") -> UserExecutionContext:
    return UserExecutionContext(user_id=user, ticket=MINTER.mint_session(user))


def service_context(*permissions: str) -> UserExecutionContext:
    return UserExecutionContext(ticket=MINTER.mint_service("gateway", permissions))


def item(
    context: UserExecutionContext, first: int, last: int, *, producer: str = "", fence: int = 1, terminal: bool = False
) -> events_pb2.ProducerEvents:
    producer = producer or f"{context.run_id}:0:1"
    events = [
        events_pb2.Event(
            event_id=f"{producer}-{n}",
            number=n,
            event_type="run_completed" if terminal and n == last else "agent_thinking",
            data=b'{"text":"hm"}',
        )
        for n in range(first, last + 1)
    ]
    return events_pb2.ProducerEvents(context=context, producer_id=producer, fence=fence, attempt=1, events=events)


class Publisher:
    def __init__(self, stub: BridgeServiceStub) -> None:
        self._call = stub.Publish()

    async def send(self, *items: events_pb2.ProducerEvents) -> list[events_pb2.ProducerAck]:
        await self._call.write(bridge_pb2.PublishRequest(items=items))
        response = await self._call.read()
        assert isinstance(response, bridge_pb2.PublishResponse)
        return list(response.acks)

    def cancel(self) -> None:
        self._call.cancel()


@dataclass
class Seen:
    """What a gateway got for one user."""

    offsets: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    notices: list[Any] = field(default_factory=list)
    epoch: str = ""


class Gateway:
    def __init__(self, stub: BridgeServiceStub, name: str = "g1") -> None:
        self._call = stub.Attach()
        self._name = name
        self._generations = itertools.count(1)
        self.seen: dict[str, Seen] = {}
        self.byes: list[bridge_pb2.AttachBye] = []
        self.ended = False

    async def hello(self, context: UserExecutionContext | None = None) -> None:
        hello = bridge_pb2.AttachHello(gateway_id=self._name)
        await self._call.write(bridge_pb2.AttachRequest(context=context or service_context(), hello=hello))

    async def subscribe(
        self, context: UserExecutionContext, position: events_pb2.Position | None = None, generation: int = 0
    ) -> int:
        generation = generation or next(self._generations)
        subscribe = bridge_pb2.Subscribe(generation=generation, position=position, connections=2)
        await self._call.write(bridge_pb2.AttachRequest(context=context, subscribe=subscribe))
        return generation

    async def unsubscribe(self, context: UserExecutionContext, generation: int) -> None:
        unsubscribe = bridge_pb2.Unsubscribe(generation=generation)
        await self._call.write(bridge_pb2.AttachRequest(context=context, unsubscribe=unsubscribe))

    async def read(self) -> None:
        response = await self._call.read()
        if response is grpc.aio.EOF:
            self.ended = True
            return
        assert isinstance(response, bridge_pb2.AttachResponse)
        for got in response.items:
            kind = got.WhichOneof("item")
            assert kind is not None
            if kind == "bye":
                self.byes.append(got.bye)
                continue
            message = getattr(got, kind)
            seen = self.seen.setdefault(message.user_id, Seen())
            if kind == "entries":
                seen.offsets += (entry.offset for entry in message.entries)
                seen.ids += (entry.event_id for entry in message.entries)
                seen.epoch = message.epoch
            else:
                seen.notices.append(message)

    async def until(self, user: str, *, top: int = 0, notices: int = 0) -> Seen:
        async with asyncio.timeout(10):
            while True:
                seen = self.seen.setdefault(user, Seen())
                if len(seen.notices) >= notices and (not top or (seen.offsets and seen.offsets[-1] >= top)):
                    return seen
                await self.read()

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def serve(folder: Path, **settings: Any) -> AsyncIterator[tuple[BridgeServiceStub, RpcServer]]:
    log = await SqliteEventLog.open(folder / "events.db")
    values = BridgeSettings(listen="127.0.0.1:0", drain_seconds=2, **settings)
    try:
        async with serve_bridge(values, log, TicketVerifier(KeySet([KEY]))) as server:
            await server.start()
            async with open_channel(server.address) as channel:
                yield BridgeServiceStub(channel), server
    finally:
        await log.close()


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[BridgeServiceStub]:
    async with serve(tmp_path) as (stub, _):
        yield stub


async def read_all(stub: BridgeServiceStub, request: bridge_pb2.ReadEventsRequest) -> list[Any]:
    return [response async for response in responses(stub.ReadEvents(request, timeout=10))]


def entries_of(read: list[bridge_pb2.ReadEventsResponse]) -> list[events_pb2.LogEntry]:
    return [entry for response in read for entry in response.entries.entries]


async def test_published_events_are_acknowledged_and_read_back_with_their_context(stub: BridgeServiceStub) -> None:
    context = run_context()
    child = UserExecutionContext()
    child.CopyFrom(context)
    child.request_id, child.parent_request_id, child.operation_depth = "q-r1_load", "q-r1", 1
    publisher = Publisher(stub)
    (ack,) = await publisher.send(item(context, 1, 2), item(child, 3, 3))
    assert (ack.user_id, ack.producer_id, ack.through, ack.offset) == ("alice", "r1:0:1", 3, 3)
    read = await read_all(stub, bridge_pb2.ReadEventsRequest(context=session_context()))
    first, _, last = entries_of(read)
    assert (first.offset, first.event_id, first.number, first.attempt) == (1, "r1:0:1-1", 1, 1)
    assert (first.thread_id, first.run_id, first.request_id) == ("t1", "r1", "q-r1")
    assert (last.request_id, last.parent_request_id) == ("q-r1_load", "q-r1")
    assert read[-1].through == events_pb2.Position(epoch=ack.epoch, offset=3, event_id="r1:0:1-3")
    publisher.cancel()


async def test_subscribed_gateway_gets_new_entries_and_no_other_users(stub: BridgeServiceStub) -> None:
    publisher, gateway = Publisher(stub), Gateway(stub)
    await publisher.send(item(run_context(), 1, 2))
    await gateway.hello()
    await gateway.subscribe(session_context())
    begun = (await gateway.until("alice", notices=1)).notices[0]
    assert (begun.top.offset, begun.top.event_id, begun.oldest_offset, begun.recovered) == (2, "r1:0:1-2", 1, False)
    await publisher.send(item(run_context("bob"), 1, 3), item(run_context(), 3, 4))
    seen = await gateway.until("alice", top=4)
    assert seen.offsets == [3, 4]
    assert seen.epoch == begun.top.epoch
    assert list(gateway.seen) == ["alice"]
    publisher.cancel()
    gateway.cancel()


async def test_subscription_from_a_position_replays_and_goes_live_without_gap_or_repeat(
    stub: BridgeServiceStub,
) -> None:
    publisher, gateway = Publisher(stub), Gateway(stub)
    (ack,) = await publisher.send(item(run_context(), 1, 100))
    await gateway.hello()
    position = events_pb2.Position(epoch=ack.epoch, offset=1, event_id="r1:0:1-1")
    await gateway.subscribe(session_context(), position)
    for first in range(101, 1001, 20):
        await publisher.send(item(run_context(), first, first + 19))
    seen = await gateway.until("alice", top=1000)
    assert seen.offsets == list(range(2, 1001))
    assert seen.notices[0].recovered
    publisher.cancel()
    gateway.cancel()


async def test_unusable_position_is_reset_and_read_from_the_oldest(stub: BridgeServiceStub) -> None:
    publisher, gateway = Publisher(stub), Gateway(stub)
    (ack,) = await publisher.send(item(run_context(), 1, 3))
    await gateway.hello()
    await gateway.subscribe(session_context(), events_pb2.Position(epoch=ack.epoch, offset=2, event_id="another"))
    seen = await gateway.until("alice", top=3)
    begun, reset = seen.notices
    assert not begun.recovered
    assert reset.reset.reason == events_pb2.RESET_REASON_EVENT_MISMATCH
    assert (reset.reset.position.offset, seen.offsets) == (0, [1, 2, 3])
    publisher.cancel()
    gateway.cancel()


async def test_declared_gap_resets_live_subscribers_and_they_go_on(stub: BridgeServiceStub) -> None:
    publisher, gateway = Publisher(stub), Gateway(stub)
    await publisher.send(item(run_context(), 1, 2))
    await gateway.hello()
    await gateway.subscribe(session_context())
    await gateway.until("alice", notices=1)
    gap = item(run_context(), 6, 6)
    gap.declare_gap = True
    (ack,) = await publisher.send(gap)
    assert (ack.through, ack.offset) == (6, 4)
    seen = await gateway.until("alice", top=4)
    assert seen.notices[1].reset.reason == events_pb2.RESET_REASON_EPOCH_CHANGED
    assert (seen.notices[1].reset.position.offset, seen.notices[1].reset.position.epoch) == (2, ack.epoch)
    assert (seen.offsets, seen.epoch) == ([3, 4], ack.epoch)
    publisher.cancel()
    gateway.cancel()


async def test_unsubscribed_and_stale_generations(stub: BridgeServiceStub) -> None:
    publisher, gateway, me = Publisher(stub), Gateway(stub), session_context()
    await gateway.hello()
    await gateway.subscribe(me, generation=5)
    await gateway.until("alice", notices=1)
    await gateway.subscribe(me, generation=4)
    await gateway.unsubscribe(me, 4)
    await publisher.send(item(run_context(), 1, 1))
    assert (await gateway.until("alice", top=1)).notices[-1].generation == 5
    await gateway.unsubscribe(me, 5)
    await gateway.subscribe(session_context("bob"))
    await gateway.until("bob", notices=1)
    await publisher.send(item(run_context(), 2, 2), item(run_context("bob"), 1, 1))
    await gateway.until("bob", top=1)
    assert gateway.seen["alice"].offsets == [1]
    publisher.cancel()
    gateway.cancel()


def tampered(context: UserExecutionContext, **fields: str) -> UserExecutionContext:
    changed = UserExecutionContext()
    changed.CopyFrom(context)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def holed(whole: events_pb2.ProducerEvents) -> events_pb2.ProducerEvents:
    del whole.events[1]
    return whole


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: item(tampered(run_context(), user_id="bob"), 1, 1), R.REFUSAL_REASON_PERMISSION_DENIED),
        (lambda: item(tampered(run_context(), run_id="r2"), 1, 1), R.REFUSAL_REASON_PERMISSION_DENIED),
        (lambda: item(session_context(), 1, 1, producer="p"), R.REFUSAL_REASON_PERMISSION_DENIED),
        (lambda: item(service_context(), 1, 1, producer="p"), R.REFUSAL_REASON_PERMISSION_DENIED),
        (lambda: item(tampered(run_context(), ticket=""), 1, 1), R.REFUSAL_REASON_UNAUTHENTICATED),
        (lambda: item(tampered(run_context(), ticket="a.b.c"), 1, 1), R.REFUSAL_REASON_UNAUTHENTICATED),
        (lambda: item(expired_context(), 1, 1), R.REFUSAL_REASON_TICKET_EXPIRED),
        (lambda: item(run_context(), 2, 1), R.REFUSAL_REASON_INVALID),
        (lambda: item(run_context(), 1, 101), R.REFUSAL_REASON_INVALID),
        (lambda: item(run_context(), 0, 1), R.REFUSAL_REASON_INVALID),
        (lambda: item(run_context(), 1, 1, producer="a b"), R.REFUSAL_REASON_INVALID),
        (lambda: item(run_context(), 1, 1, fence=1 << 63), R.REFUSAL_REASON_INVALID),
        (lambda: holed(item(run_context(), 1, 3)), R.REFUSAL_REASON_INVALID),
        (lambda: item(run_context(), 4, 4), R.REFUSAL_REASON_GAP),
    ],
)
async def test_refused_item_is_answered_alone_and_the_stream_goes_on(
    stub: BridgeServiceStub, make: Any, reason: Any
) -> None:
    publisher = Publisher(stub)
    acks = {ack.user_id: ack for ack in await publisher.send(make(), item(run_context("carol"), 1, 1))}
    good = acks.pop("carol")
    assert (good.through, good.HasField("refusal")) == (1, False)
    (bad,) = acks.values()
    assert bad.refusal.reason == reason
    assert bad.refusal.error.code
    assert bad.through == 0
    (again,) = await publisher.send(item(run_context("carol"), 2, 2))
    assert again.through == 2
    publisher.cancel()


async def test_fence_and_seal_are_refused_with_their_reason(stub: BridgeServiceStub) -> None:
    publisher, context = Publisher(stub), run_context()
    await publisher.send(item(context, 1, 2, fence=5))
    (stale,) = await publisher.send(item(context, 3, 3, fence=4))
    assert (stale.refusal.reason, stale.refusal.last_number) == (R.REFUSAL_REASON_STALE_FENCE, 2)
    await publisher.send(item(context, 3, 3, fence=5, terminal=True))
    (sealed,) = await publisher.send(item(context, 4, 4, fence=5))
    assert (sealed.refusal.reason, sealed.refusal.last_number) == (R.REFUSAL_REASON_SEALED, 3)
    (again,) = await publisher.send(item(context, 2, 3, fence=5, terminal=True))
    assert (again.through, again.HasField("refusal")) == (3, False)
    publisher.cancel()


async def test_read_of_one_run_follows_to_its_terminal_event(stub: BridgeServiceStub) -> None:
    publisher, one, two = Publisher(stub), run_context(), run_context(run="r2")
    await publisher.send(item(one, 1, 2), item(two, 1, 2))
    request = bridge_pb2.ReadEventsRequest(context=one, run_id="r1", follow=True)
    following = asyncio.create_task(read_all(stub, request))
    await publisher.send(item(one, 3, 3), item(two, 3, 3))
    await publisher.send(item(one, 4, 4, terminal=True), item(two, 4, 4))
    async with asyncio.timeout(10):
        read = await following
    assert [entry.event_id for entry in entries_of(read)] == [f"r1:0:1-{n}" for n in (1, 2, 3, 4)]
    limited = await read_all(stub, bridge_pb2.ReadEventsRequest(context=session_context(), run_id="r2", limit=2))
    assert [entry.offset for entry in entries_of(limited)] == [3, 4]
    publisher.cancel()


async def test_resolve_run_knows_thread_extent_and_connections(stub: BridgeServiceStub) -> None:
    publisher, gateway = Publisher(stub), Gateway(stub)
    await publisher.send(item(run_context(), 1, 3, terminal=True))
    await gateway.hello()
    await gateway.subscribe(session_context())
    await gateway.until("alice", notices=1)
    run = await stub.ResolveRun(bridge_pb2.ResolveRunRequest(context=session_context(), run_id="r1"), timeout=5)
    assert (run.thread_id, run.first_offset, run.last_offset, run.sealed, run.connections) == ("t1", 1, 3, True, 2)
    with pytest.raises(UnknownRunError):
        await stub.ResolveRun(bridge_pb2.ResolveRunRequest(context=session_context("bob"), run_id="r1"), timeout=5)
    with pytest.raises(PermissionDeniedError):
        await stub.ResolveRun(bridge_pb2.ResolveRunRequest(context=run_context(run="r2"), run_id="r1"), timeout=5)
    publisher.cancel()
    gateway.cancel()


async def test_state_counts_and_is_for_operators_only(stub: BridgeServiceStub) -> None:
    publisher = Publisher(stub)
    await publisher.send(item(run_context(), 1, 3))
    await publisher.send(item(run_context(), 2, 3), item(tampered(run_context(), user_id="bob"), 1, 1))
    state = await stub.GetState(bridge_pb2.GetStateRequest(context=service_context(OPERATOR_READ)), timeout=5)
    assert state.state == bridge_pb2.INTEGRATION_STATE_ACTIVE
    assert (state.events_appended, state.events_duplicate, state.identity_mismatch_total) == (3, 2, 1)
    with pytest.raises(PermissionDeniedError):
        await stub.GetState(bridge_pb2.GetStateRequest(context=service_context()), timeout=5)
    with pytest.raises(ScopeError):
        await stub.GetState(bridge_pb2.GetStateRequest(context=session_context()), timeout=5)
    publisher.cancel()
