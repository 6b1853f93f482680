"""Items that are made to harm others on their way through the emitter: by their size, their times, their tickets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from carrel.errors import PermissionDeniedError
from carrel.v1 import emitter_pb2, events_pb2
from servicekit.delivery import refusal_error
from services.emitter.domain.intake import MAX_ITEM_BYTES
from tests.integration.emitter_harness import TEXT, EmitCall, Harness, item

PRODUCER = "r1:0:1"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    await harness.start_bridge()
    await harness.start_emitter()
    yield harness
    await harness.aclose()


def padded(whole: events_pb2.ProducerEvents, size: int) -> events_pb2.ProducerEvents:
    """The item with a field 1000 that nobody knows, of so many bytes."""
    length, varint = size, b""
    while length > 127:
        varint += bytes([length & 127 | 128])
        length >>= 7
    raw = whole.SerializeToString() + b"\xc2\x3e" + varint + bytes([length]) + b"x" * size
    return events_pb2.ProducerEvents.FromString(raw)


async def others_are_served(harness: Harness, call: EmitCall) -> None:
    """On the same stream, and with no other connection to the bridge."""
    before = call.through("bob", PRODUCER)
    await call.send(item(harness.context("bob"), before + 1))
    await call.hear_until(lambda: call.through("bob", PRODUCER) == before + 1)
    assert harness.bridge.streams == 1


async def test_unknown_fields_go_no_further_and_a_padded_item_that_grows_stops_nobody(harness: Harness) -> None:
    call = await harness.emit_call()
    growing = item(harness.context(), 1, 100, kind="agent_dancing", data=b"{}")
    await call.send(padded(growing, (4 << 20) - growing.ByteSize() - 100))
    await call.hear_until(lambda: call.through("alice", PRODUCER) == 100)
    (sent,) = harness.log.items
    assert {event.event_type for event in sent.events} == {"event_rejected"}
    assert sent.ByteSize() < 64 << 10
    await others_are_served(harness, call)


@pytest.mark.parametrize(
    ("events", "result"),
    [
        (60, {"text": "x" * 60_000}),
        # Within its bound as it comes, but cleaning writes each number anew, four times as long.
        (9, b'{"agent_name":"a","pwd":"x","result":{"n":[' + b"1e15," * 9_000 + b"1]}}"),
    ],
    ids=["too large as it comes", "too large when cleaned"],
)
async def test_an_item_that_cannot_be_sent_is_refused_to_its_producer_alone(
    harness: Harness, events: int, result: dict[str, str] | bytes
) -> None:
    call = await harness.emit_call()
    data = result if isinstance(result, bytes) else {"agent_name": "a", "result": result}
    large = item(harness.context(), 1, events, kind="agent_completed", data=data)
    assert (large.ByteSize() > MAX_ITEM_BYTES) is isinstance(result, dict)
    await call.send(item(harness.context("carol")), large)
    await call.hear_until(lambda: bool(call.reason("alice", PRODUCER)))
    assert call.reason("alice", PRODUCER) == "REFUSAL_REASON_INVALID"
    assert "fewer events" in call.acks["alice", PRODUCER].refusal.error.advice
    await call.hear_until(lambda: call.through("carol", PRODUCER) == 1)
    await others_are_served(harness, call)
    assert not harness.log.numbers("alice", PRODUCER)


async def test_a_message_bound_of_the_operators_bounds_items_too(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.overrides = {"max_message_bytes": 256 << 10}
    await harness.start_bridge()
    await harness.start_emitter()
    call = await harness.emit_call()
    await call.send(item(harness.context(), 1, 5, data={"text": "x" * 15_000}))
    await call.hear_until(lambda: bool(call.reason("alice", PRODUCER)))
    assert call.reason("alice", PRODUCER) == "REFUSAL_REASON_INVALID"
    await others_are_served(harness, call)
    await harness.aclose()


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(2**62, 0), (-(2**63), 0), (253_402_300_800, 0), (-62_135_596_801, 0), (1, -1), (1, 1_000_000_000)],
)
async def test_an_event_of_no_possible_time_is_replaced_by_one_with_a_time(
    harness: Harness, seconds: int, nanos: int
) -> None:
    call = await harness.emit_call()
    bad = item(harness.context(), 1, 2)
    bad.events[0].timestamp.seconds, bad.events[0].timestamp.nanos = seconds, nanos
    await call.send(bad)
    await call.hear_until(lambda: call.through("alice", PRODUCER) == 2)
    rejected, good = harness.log.events["alice", PRODUCER]
    assert (rejected.event_type, good.event_type) == ("event_rejected", "agent_thinking")
    assert "timestamp" in orjson.loads(rejected.data)["reason"]
    assert rejected.timestamp.ToDatetime().year >= 2024


@pytest.mark.parametrize("producer", [PRODUCER, "r1:outbox", "notify:r1:k"])
@pytest.mark.parametrize("kind", ["agent_thinking", "run_completed"])
async def test_a_ticket_that_any_user_can_get_sends_no_stream_of_events(
    harness: Harness, producer: str, kind: str
) -> None:
    call = await harness.emit_call()
    users = harness.context(minter=harness.users_minter)
    data = TEXT if kind == "agent_thinking" else {"status": "SUCCEEDED"}
    await call.send(item(users, producer=producer, kind=kind, data=data))
    await call.hear()
    assert call.reason("alice", producer) == "REFUSAL_REASON_PERMISSION_DENIED"
    error = refusal_error(call.acks["alice", producer].refusal)
    assert isinstance(error, PermissionDeniedError)
    assert "Notify" in error.advice
    await others_are_served(harness, call)
    assert not harness.log.numbers("alice", producer)


def notification(harness: Harness, fence: int = 0) -> emitter_pb2.NotifyRequest:
    return emitter_pb2.NotifyRequest(
        context=harness.context(minter=harness.users_minter),
        idempotency_key="k1",
        event_type="agent_thinking",
        data_json=orjson.dumps(TEXT),
        fence=fence,
    )


async def test_such_a_ticket_notifies_under_the_fence_that_the_log_knows(harness: Harness) -> None:
    call = await harness.emit_call()
    await call.send(item(harness.context()))
    await call.hear()
    stub = await harness.stub()
    assert (await stub.Notify(notification(harness), timeout=5)).position.offset
    assert [i.fence for i in harness.log.items] == [1, 1]


@pytest.mark.parametrize("known", [True, False])
async def test_a_notification_never_raises_the_fence(harness: Harness, known: bool) -> None:
    if known:
        call = await harness.emit_call()
        await call.send(item(harness.context()))
        await call.hear()
    stub = await harness.stub()
    for fence in (2, 2**63 - 1):
        with pytest.raises(PermissionDeniedError) as raised:
            await stub.Notify(notification(harness, fence=fence), timeout=5)
        assert raised.value.advice
    assert not harness.log.numbers("alice", "notify:r1:k1")
