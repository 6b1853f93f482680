"""Items at Publish that no emitter of ours sends: past the guard, past the owner, or larger than a gateway can take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from services.bridge import convert
from tests.integration.test_bridge_service import (
    USERS_MINTER,
    Publisher,
    R,
    entries_of,
    item,
    read_all,
    run_context,
    serve,
    service_context,
    session_context,
)


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[BridgeServiceStub]:
    async with serve(tmp_path) as (stub, _):
        yield stub


def users_context(run: str = "r1") -> UserExecutionContext:
    """Under the ticket that a user gets from the gateway."""
    ticket = USERS_MINTER.mint_run("alice", "t1", run, f"q-{run}")
    return UserExecutionContext(user_id="alice", thread_id="t1", run_id=run, request_id=f"q-{run}", ticket=ticket)


def with_event(whole: events_pb2.ProducerEvents, **fields: Any) -> events_pb2.ProducerEvents:
    for name, value in fields.items():
        setattr(whole.events[-1], name, value)
    return whole


def at(seconds: int, nanos: int = 0) -> events_pb2.ProducerEvents:
    made = item(run_context(), 1, 1)
    made.events[0].timestamp.seconds, made.events[0].timestamp.nanos = seconds, nanos
    return made


def named(length: int) -> events_pb2.ProducerEvents:
    made = item(run_context(), 1, 1)
    made.context.parent_request_id = made.context.request_id
    made.context.request_id += "_" + "x" * length
    made.context.operation_depth = 1
    return made


def notification(*, last: int = 1, fence: int = 0, producer: str = "notify:r1:k", **fields: Any) -> Any:
    return with_event(item(users_context(), 1, last, producer=producer, fence=fence), **fields)


def gap(whole: events_pb2.ProducerEvents) -> events_pb2.ProducerEvents:
    whole.declare_gap = True
    return whole


INVALID: dict[str, Any] = {
    "time after the year 9999": lambda: at(2**62),
    "time before the year 1": lambda: at(-62_135_596_801),
    "time with odd nanos": lambda: at(1, -5),
    "data that is not UTF-8": lambda: with_event(item(run_context(), 1, 1), data=b'{"text":"\xff"}'),
    "the log's own kind": lambda: with_event(item(run_context(), 1, 1), event_type="log_gap"),
    "a kind of no form": lambda: with_event(item(run_context(), 1, 1), event_type="x" * 65),
    "a long agent_name": lambda: with_event(item(run_context(), 1, 1), agent_name="x" * 129),
    "a long traceparent": lambda: with_event(item(run_context(), 1, 1), traceparent="x" * 65),
    "a long request_id": lambda: named(600),
    "a notification that is no JSON": lambda: notification(data=b"{"),
    "a notification of another form": lambda: notification(data=b'{"words":1}'),
}
DENIED: dict[str, Any] = {
    "a stream's producer": lambda: notification(producer="r1:0:1"),
    "the outbox": lambda: notification(producer="r1:outbox"),
    "two events": lambda: notification(last=2),
    "a declared gap": lambda: gap(notification()),
    "the run's end": lambda: notification(event_type="run_completed", data=b'{"status":"SUCCEEDED"}'),
    "the emitter's kind": lambda: notification(event_type="event_rejected"),
    "the log's kind": lambda: notification(event_type="log_gap"),
    "an unknown kind": lambda: notification(event_type="agent_dancing"),
    "a fence of a run that the log does not know": lambda: notification(fence=1),
}


@pytest.mark.parametrize("name", [*INVALID, *DENIED])
async def test_it_is_refused_and_the_stream_goes_on(bridge: BridgeServiceStub, name: str) -> None:
    make, reason = (
        (INVALID[name], R.REFUSAL_REASON_INVALID)
        if name in INVALID
        else (DENIED[name], R.REFUSAL_REASON_PERMISSION_DENIED)
    )
    publisher = Publisher(bridge)
    acks = {ack.user_id: ack for ack in await publisher.send(make(), item(run_context("carol"), 1, 1))}
    assert acks["carol"].through == 1
    assert (acks["alice"].refusal.reason, acks["alice"].through) == (reason, 0)
    assert entries_of(await read_all(bridge, bridge_pb2.ReadEventsRequest(context=session_context()))) == []
    publisher.cancel()


async def test_a_users_ticket_neither_raises_the_fence_nor_ends_the_run(bridge: BridgeServiceStub) -> None:
    publisher = Publisher(bridge)
    await publisher.send(item(run_context(), 1, 1, fence=3))
    (ack,) = await publisher.send(notification(fence=3))
    assert ack.through == 1
    # A repeat changes nothing either, though nothing of it is stored.
    for producer in ("notify:r1:k", "notify:r1:k2"):
        (ack,) = await publisher.send(notification(fence=2**63 - 1, producer=producer))
        assert ack.refusal.reason == R.REFUSAL_REASON_PERMISSION_DENIED
    (ack,) = await publisher.send(item(run_context(), 2, 3, fence=3, terminal=True))
    assert (ack.through, ack.HasField("refusal")) == (3, False)
    publisher.cancel()


async def test_an_item_that_trips_the_bridge_up_is_refused_and_the_stream_goes_on(
    bridge: BridgeServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_of = convert.append_of
    monkeypatch.setattr(convert, "append_of", lambda i, p: 1 // 0 if i.context.user_id == "alice" else append_of(i, p))
    publisher = Publisher(bridge)
    acks = {a.user_id: a for a in await publisher.send(item(run_context(), 1, 1), item(run_context("carol"), 1, 1))}
    assert acks["alice"].refusal.reason == R.REFUSAL_REASON_INVALID
    assert acks["carol"].through == 1
    publisher.cancel()


async def test_what_the_log_makes_of_a_large_item_reaches_the_gateway_in_parts(bridge: BridgeServiceStub) -> None:
    gateway: Any = bridge.Attach()
    hello = bridge_pb2.AttachHello(gateway_id="g")
    await gateway.write(bridge_pb2.AttachRequest(context=service_context(), hello=hello))
    subscribe = bridge_pb2.Subscribe(generation=1)
    await gateway.write(bridge_pb2.AttachRequest(context=session_context(), subscribe=subscribe))
    assert (await gateway.read()).items[0].WhichOneof("item") == "subscribed"
    # Just under a message's bound as it comes; each entry then bears the item's ids, too.
    large = named(450)
    del large.events[:]
    data = b'{"agent_name":"a","result":{"a":"' + b"x" * 41_450 + b'"}}'
    for n in range(1, 101):
        large.events.add(event_id=f"e{n}", number=n, event_type="agent_completed", data=data)
    assert 4_100_000 < large.ByteSize() < (4 << 20) - 10_000
    publisher = Publisher(bridge)
    (ack,) = await publisher.send(large)
    assert ack.through == 100
    offsets: list[int] = []
    async with asyncio.timeout(20):
        while len(offsets) < 100:
            response = await gateway.read()
            assert response is not grpc.aio.EOF
            assert response.ByteSize() <= 1 << 20
            offsets += (entry.offset for got in response.items for entry in got.entries.entries)
    assert offsets == list(range(1, 101))
    gateway.cancel()
    publisher.cancel()
