"""What the emitter makes of single items and events: identity, rejected events, secrets, notifications, counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from carrel.errors import (
    CarrelError,
    InvalidEventError,
    PermissionDeniedError,
    QueueFullError,
    SealedLogError,
    TooLargeError,
)
from carrel.v1 import emitter_pb2, events_pb2
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.delivery import Producer
from tests.conftest import Eventually
from tests.integration.emitter_harness import QUICK_PRODUCER, TEXT, Harness, item


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    await harness.start_bridge()
    await harness.start_emitter()
    yield harness
    await harness.aclose()


def swapped(harness: Harness) -> UserExecutionContext:
    context = harness.context("mallory")
    context.user_id = "bob"
    return context


def other_run(harness: Harness) -> UserExecutionContext:
    context = harness.context("mallory")
    context.run_id = "r2"
    return context


def session(harness: Harness) -> UserExecutionContext:
    return UserExecutionContext(user_id="mallory", ticket=harness.minter.mint_session("mallory"))


BAD_CONTEXTS: dict[str, tuple[Any, str]] = {
    "forged": (lambda h: h.context("mallory", minter=h.forger), "UNAUTHENTICATED"),
    "missing": (lambda h: UserExecutionContext(user_id="mallory", run_id="r1"), "UNAUTHENTICATED"),
    "garbled": (lambda h: UserExecutionContext(user_id="mallory", ticket="x.y.z"), "UNAUTHENTICATED"),
    "swapped user": (swapped, "PERMISSION_DENIED"),
    "swapped run": (other_run, "PERMISSION_DENIED"),
    "wrong scope": (session, "PERMISSION_DENIED"),
}


@pytest.mark.parametrize("name", BAD_CONTEXTS)
async def test_an_item_with_a_bad_ticket_is_refused_and_the_stream_goes_on_for_the_others(
    harness: Harness, name: str
) -> None:
    make, reason = BAD_CONTEXTS[name]
    bad = make(harness)
    call = await harness.emit_call()
    await call.send(item(harness.context("alice")), item(bad, producer="evil"), item(harness.context("carol")))
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 1 and call.through("carol", "r1:0:1") == 1)
    assert call.reason(bad.user_id, "evil") == f"REFUSAL_REASON_{reason}"
    assert {i.context.user_id for i in harness.log.items} == {"alice", "carol"}


async def test_an_expired_ticket_asks_for_a_fresh_one_and_the_events_arrive(harness: Harness) -> None:
    harness.verifier._leeway = 0.0
    producer = Producer(
        await harness.stream(),
        "r1:0:1",
        harness.context(lifetime_s=1),
        options=QUICK_PRODUCER,
        on_expired=lambda: producer.refresh(harness.context()),
    )
    await asyncio.sleep(1.1)
    await producer.emit("agent_thinking", TEXT)
    assert await producer.flush(5) == 1


async def test_identity_mismatches_are_counted(harness: Harness) -> None:
    call = await harness.emit_call()
    await call.send(item(swapped(harness), producer="evil"))
    await call.hear()
    counts = await harness.statistics()
    assert counts.identity_mismatch_total == 1
    assert counts.items_refused == {"REFUSAL_REASON_PERMISSION_DENIED": 1}


async def test_two_users_with_the_same_ids_get_their_own_events_and_acknowledgements(harness: Harness) -> None:
    stream = await harness.stream()
    alice, bob = (
        Producer(stream, "r1:0:1", harness.context(user), options=QUICK_PRODUCER) for user in ("alice", "bob")
    )
    for _ in range(3):
        await alice.emit("agent_thinking", {"text": "alice"})
    await bob.emit("agent_thinking", {"text": "bob"})
    assert await alice.flush(5) == 3
    assert await bob.flush(5) == 1
    assert harness.log.data("alice", "r1:0:1") == [{"text": "alice"}] * 3
    assert harness.log.data("bob", "r1:0:1") == [{"text": "bob"}]


async def test_a_producer_of_another_run_is_not_written_to_while_it_is_at_work(harness: Harness) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    await call.send(item(harness.context("alice", "r1")))
    await call.send(item(harness.context("alice", "r2"), 2))
    await call.hear_until(lambda: call.reason("alice", "r1:0:1") == "REFUSAL_REASON_PERMISSION_DENIED")
    harness.bridge.acknowledging.set()


MALFORMED: dict[str, dict[str, Any]] = {
    "unknown kind": {"kind": "agent_dancing"},
    "kind of no form": {"kind": "Agent Thinking!"},
    "kind of the emitter's": {"kind": "event_rejected", "data": {"event_type": "x", "reason": "y"}},
    "kind of the log's": {"kind": "log_gap", "data": {}},
    "field missing": {"data": {"words": "none"}},
    "field of the wrong type": {"data": {"text": 5}},
    "not an object": {"data": b'["text"]'},
    "no JSON": {"data": b'{"text": NaN}'},
    "not UTF-8": {"data": b'{"text": "\xff"}'},
    "too large": {"data": {"text": "x" * 20_000}},
    "mission-critical": {"kind": "run_completed", "data": {"status": "MAYBE"}},
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_an_event_that_must_be_refused_is_replaced_and_keeps_its_number(harness: Harness, name: str) -> None:
    call = await harness.emit_call()
    bad = item(harness.context(), 2, **MALFORMED[name])
    good = item(harness.context(), 1, 3)
    good.events[1].CopyFrom(bad.events[0])
    await call.send(good)
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 3)
    events = harness.log.events["alice", "r1:0:1"]
    assert [e.number for e in events] == [1, 2, 3]
    assert [e.event_type for e in events] == ["agent_thinking", "event_rejected", "agent_thinking"]
    data = orjson.loads(events[1].data)
    assert data["event_type"] in (bad.events[0].event_type, "unknown")
    assert data["reason"]
    assert data["code"] in ("INVALID_EVENT", "TOO_LARGE")
    assert (await harness.statistics()).events_rejected == 1


async def test_a_bad_event_id_is_replaced_by_the_same_one_at_each_resend(harness: Harness) -> None:
    ids = []
    for run in ("r1", "r2"):
        call = await harness.emit_call()
        bad = item(harness.context(run=run), producer=f"{run}:0:1")
        bad.events[0].event_id = "has a space"
        await call.send(bad)
        await call.hear()
        ids.append(harness.log.events["alice", f"{run}:0:1"][0].event_id)
    assert ids[0] == ids[1]
    assert " " not in ids[0]


def no_events(i: events_pb2.ProducerEvents) -> None:
    del i.events[:]


def too_many(i: events_pb2.ProducerEvents) -> None:
    i.events.extend(i.events[0] for _ in range(100))


def hole(i: events_pb2.ProducerEvents) -> None:
    i.events[1].number = 5


def zero(i: events_pb2.ProducerEvents) -> None:
    i.events[0].number = 0


def long_producer(i: events_pb2.ProducerEvents) -> None:
    i.producer_id = "p" * 201


def odd_producer(i: events_pb2.ProducerEvents) -> None:
    i.producer_id = "a b"


@pytest.mark.parametrize("spoil", [no_events, too_many, hole, zero, long_producer, odd_producer])
async def test_a_malformed_item_ends_its_producer_and_leaves_the_stream(harness: Harness, spoil: Any) -> None:
    bad = item(harness.context(), 1, 2)
    spoil(bad)
    call = await harness.emit_call()
    await call.send(bad, item(harness.context("bob")))
    await call.hear_until(lambda: call.through("bob", "r1:0:1") == 1)
    assert call.reason("alice", bad.producer_id) == "REFUSAL_REASON_INVALID"
    assert not harness.log.numbers("alice", bad.producer_id)


async def test_secrets_do_not_reach_the_log_and_clean_events_arrive_byte_for_byte(harness: Harness) -> None:
    call = await harness.emit_call()
    clean = '{"text":"18,059,974 input_tokens, as they came: \\"naïve\\""}'.encode()
    secret = {"text": "use AKIA" + "Q7ZP4LX2MN8RT6VW", "password": "hunter2", "n": 1}
    items = item(harness.context(), 1, 2, data=clean)
    items.events[1].data = orjson.dumps(secret)
    await call.send(items)
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 2)
    events = harness.log.events["alice", "r1:0:1"]
    assert events[0].data == clean
    assert orjson.loads(events[1].data) == {"text": "use [redacted]", "password": "[redacted]", "n": 1}


async def notify(harness: Harness, key: str = "k1", *, timeout: float = 5, **fields: Any) -> emitter_pb2.NotifyResponse:
    stub = await harness.stub()
    request = emitter_pb2.NotifyRequest(
        context=fields.pop("context", None) or harness.context(),
        idempotency_key=key,
        event_type=fields.pop("event_type", "agent_thinking"),
        data_json=orjson.dumps(fields.pop("data", TEXT)),
        **fields,
    )
    return await stub.Notify(request, timeout=timeout)


async def test_notify_returns_once_the_event_is_durable_with_its_place(harness: Harness) -> None:
    response = await notify(harness, agent_name="data")
    assert response.position.offset == 1
    assert response.position.epoch == "e1"
    assert response.position.event_id == response.event_id
    event = harness.log.events["alice", "notify:r1:k1"][0]
    assert (event.event_id, event.agent_name, event.number) == (response.event_id, "data", 1)


async def test_a_repeated_notification_returns_the_first_answer_even_from_a_new_emitter(harness: Harness) -> None:
    first = await notify(harness)
    assert await notify(harness) == first
    await harness.kill_emitter()
    await harness.start_emitter()
    assert await notify(harness, data={"text": "another text"}) == first
    assert harness.log.data("alice", "notify:r1:k1") == [TEXT]
    other = await notify(harness, "k2")
    assert other.event_id != first.event_id


async def test_a_notification_without_a_fence_takes_the_one_that_the_log_knows(harness: Harness) -> None:
    call = await harness.emit_call()
    await call.send(item(harness.context()))
    await call.hear()
    await notify(harness)
    await notify(harness, "k2", fence=1)
    assert [i.fence for i in harness.log.items] == [1, 1, 1]


@pytest.mark.parametrize("known", [0, 1], ids=["the run's first event", "the next attempt's"])
async def test_an_event_of_a_new_holder_between_the_question_and_the_append_fails_no_notification(
    harness: Harness, known: int
) -> None:
    if known:
        harness.log.append(item(harness.context()))
    overtaking = [item(harness.context(), producer=f"r1:0:{known + 1}")]
    overtaking[0].fence = known + 1

    def overtake() -> None:
        if overtaking:
            harness.log.append(overtaking.pop())

    harness.bridge.resolved = overtake
    response = await notify(harness)
    assert response.position.event_id == response.event_id
    tries = [i.fence for i in harness.log.items if i.producer_id == "notify:r1:k1"]
    assert tries == [known, known + 1]
    assert harness.log.data("alice", "notify:r1:k1") == [TEXT]
    assert await notify(harness) == response


async def test_long_keys_of_two_runs_are_not_mixed_up(harness: Harness) -> None:
    key = "k" * 128
    ids = {(await notify(harness, key, context=harness.context(run=run))).event_id for run in ("r1" * 60, "r2" * 60)}
    assert len(ids) == 2


async def test_notify_waits_for_the_log_within_its_deadline(harness: Harness, eventually: Eventually) -> None:
    harness.bridge.acknowledging.clear()
    with pytest.raises(CarrelError) as raised:
        await notify(harness, timeout=0.3)
    assert raised.value.status.name == "DEADLINE_EXCEEDED"
    harness.bridge.acknowledging.set()
    assert (await notify(harness)).position.offset == 1
    assert harness.log.numbers("alice", "notify:r1:k1") == [1]


@pytest.mark.parametrize(
    "kind", ["run_accepted", "run_attempt", "run_completed", "input_required", "log_gap", "event_rejected"]
)
async def test_notify_refuses_kinds_that_only_the_owner_writes(harness: Harness, kind: str) -> None:
    with pytest.raises(PermissionDeniedError):
        await notify(harness, event_type=kind, data={"status": "SUCCEEDED"})
    assert not harness.log.items


async def test_notify_says_what_is_wrong_with_an_event(harness: Harness) -> None:
    with pytest.raises(InvalidEventError):
        await notify(harness, data={"words": 1})
    with pytest.raises(InvalidEventError):
        await notify(harness, event_type="agent_dancing")
    with pytest.raises(TooLargeError):
        await notify(harness, data={"text": "x" * 20_000})
    assert not harness.log.items


async def test_notify_maps_the_logs_refusals(harness: Harness) -> None:
    harness.bridge.refuse = lambda _: events_pb2.REFUSAL_REASON_SEALED
    with pytest.raises(SealedLogError) as raised:
        await notify(harness)
    assert raised.value.status.name == "FAILED_PRECONDITION"


async def test_notify_is_resource_exhausted_when_the_users_queue_is_full(harness: Harness) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    for n in range(10):
        await call.send(item(harness.context(), 1, 100, producer=f"r1:{n}:1"))
    await call.send(item(harness.context(), producer="r1:last:1"))
    await call.hear_until(lambda: bool(call.reason("alice", "r1:last:1")))
    with pytest.raises(QueueFullError) as raised:
        await notify(harness)
    assert raised.value.status.name == "RESOURCE_EXHAUSTED"
    harness.bridge.acknowledging.set()


async def test_statistics_count_what_happened(harness: Harness) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    await call.send(item(harness.context("alice"), 1, 10), item(harness.context("bob"), 1, 5))
    counts = await harness.statistics()
    assert (counts.emitters_active, counts.emitters_created, counts.queued_events) == (2, 2, 15)
    assert counts.queued_bytes > 1000
    harness.bridge.acknowledging.set()
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 10 and call.through("bob", "r1:0:1") == 5)
    counts = await harness.statistics()
    assert (counts.events_sent, counts.emitters_active, counts.queued_events, counts.queued_bytes) == (15, 0, 0, 0)
    assert counts.batches == harness.bridge.messages
    assert counts.delivery_p95.ToNanoseconds() >= counts.delivery_p50.ToNanoseconds() > 0
    assert counts.delivery_retries == 0
    await harness.kill_bridge()
    await harness.start_bridge()
    await call.send(item(harness.context("alice"), 11))
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 11)
    assert (await harness.statistics()).delivery_retries == 1


async def test_statistics_need_a_service_ticket_with_its_permission(harness: Harness) -> None:
    request = emitter_pb2.GetEmitterStatisticsRequest()
    request.context.ticket = harness.minter.mint_service("operator")
    with pytest.raises(PermissionDeniedError):
        await (await harness.stub()).GetEmitterStatistics(request, timeout=5)


async def test_a_client_without_anything_sent_is_not_in_the_way(harness: Harness) -> None:
    call = await harness.emit_call()
    await call.call.done_writing()
    assert await call.call.read() is grpc.aio.EOF
