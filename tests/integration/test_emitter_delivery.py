"""The emitter between real streams: the log alone acknowledges, whichever process dies, and floods hurt nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from carrel.v1.events_pb2 import RefusalReason
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


async def test_events_reach_the_log_and_the_producer_learns_their_place(harness: Harness) -> None:
    producer = Producer(await harness.stream(), "r1:0:1", harness.context(), fence=1, attempt=1)
    await producer.emit("agent_started", {"agent_name": "data"}, agent_name="data")
    await producer.emit("agent_thinking", TEXT)
    assert await producer.flush(5) == 2
    assert producer.position == ("e1", 2)
    assert harness.log.data("alice", "r1:0:1") == [{"agent_name": "data"}, TEXT]
    assert harness.log.items[0].fence == 1
    assert harness.log.items[0].attempt == 1


async def test_nothing_is_acknowledged_before_the_log_has_it(harness: Harness, eventually: Eventually) -> None:
    harness.bridge.acknowledging.clear()
    producer = Producer(await harness.stream(), "r1:0:1", harness.context())
    await producer.emit("agent_thinking", TEXT)
    await eventually(lambda: harness.log.numbers("alice", "r1:0:1") == [1])
    await asyncio.sleep(0.05)
    assert producer.acknowledged == 0
    harness.bridge.acknowledging.set()
    assert await producer.flush(5) == 1


async def test_a_flood_of_one_user_delays_another_by_a_few_batches_at_most(
    harness: Harness, eventually: Eventually
) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    flood = harness.context("mallory")
    # Ten thousand events of one user, far beyond every bound of his.
    for n in range(100):
        await call.send(item(flood, 1, 100, producer=f"r1:{n}:1"))
    await call.hear_until(lambda: bool(call.heard))
    await call.send(item(harness.context("bob"), producer="r1:0:1"))

    async def bob_is_there() -> bool:
        return (await harness.statistics()).emitters_active == 2

    await eventually(bob_is_there)
    harness.bridge.acknowledging.set()
    await call.hear_until(lambda: call.through("bob", "r1:0:1") == 1)
    users = [logged.context.user_id for logged in harness.log.items]
    ahead = sum(len(logged.events) for logged in harness.log.items[: users.index("bob")])
    assert ahead <= 300 + 100
    refused = [ack for ack in call.heard if ack.user_id == "mallory" and ack.HasField("refusal")]
    assert refused
    assert {ack.refusal.reason for ack in refused} == {RefusalReason.REFUSAL_REASON_OVERLOADED}


async def test_a_flood_through_producers_arrives_whole_and_another_users_event_goes_between(harness: Harness) -> None:
    stream = await harness.stream()
    flooding = [Producer(stream, f"r1:{n}:1", harness.context("mallory"), options=QUICK_PRODUCER) for n in range(20)]

    async def flood(producer: Producer) -> None:
        for _ in range(500):
            await producer.emit("agent_message", {"message_id": "m", "delta": "x"})
        await producer.flush(30)

    async with asyncio.TaskGroup() as group:
        for producer in flooding:
            group.create_task(flood(producer))
        await asyncio.sleep(0.02)
        bob = Producer(await harness.stream(), "r1:0:1", harness.context("bob"), options=QUICK_PRODUCER)
        await bob.emit("agent_thinking", TEXT)
        before = len(harness.log.items)
        await bob.flush(5)
        users = [logged.context.user_id for logged in harness.log.items[before:]]
        ahead = sum(len(i.events) for i in harness.log.items[before : before + users.index("bob")])
        assert ahead <= 1000
    for producer in flooding:
        assert harness.log.numbers("mallory", producer.producer_id) == list(range(1, 501))


async def test_the_bridge_dies_and_returns_and_nothing_is_lost(harness: Harness, eventually: Eventually) -> None:
    stream = await harness.stream()
    producers = [
        Producer(stream, "r1:0:1", harness.context(user), options=QUICK_PRODUCER) for user in ("alice", "bob", "carol")
    ]
    for round_ in range(3):
        harness.bridge.acknowledging.clear()
        for _ in range(40):
            for producer in producers:
                await producer.emit("agent_message", {"message_id": "m", "delta": "x"})
        await eventually(lambda: len(harness.log.items) > 0)
        await harness.kill_bridge()
        for producer in producers:
            await producer.emit("agent_message", {"message_id": "m", "delta": "while away"})
        await harness.start_bridge()
        for producer in producers:
            assert await producer.flush(10) == (round_ + 1) * 41
    for user in ("alice", "bob", "carol"):
        assert harness.log.numbers(user, "r1:0:1") == list(range(1, 124))


async def test_the_emitter_dies_and_the_producer_sends_again_to_its_successor(
    harness: Harness, eventually: Eventually
) -> None:
    stream = await harness.stream()
    producer = Producer(stream, "r1:0:1", harness.context(), options=QUICK_PRODUCER)
    for round_ in range(3):
        harness.bridge.acknowledging.clear()
        for _ in range(30):
            await producer.emit("agent_message", {"message_id": "m", "delta": "x"})
        await asyncio.sleep(0.01 * round_)
        await harness.kill_emitter()
        harness.bridge.acknowledging.set()
        await harness.start_emitter()
        assert await producer.flush(10) == (round_ + 1) * 30
    assert harness.log.numbers("alice", "r1:0:1") == list(range(1, 91))
    assert not harness.log.gaps


async def test_an_emitter_that_never_saw_the_producer_takes_it_in_the_middle(harness: Harness) -> None:
    harness.log.base["alice", "r1:0:1"] = 500
    call = await harness.emit_call()
    await call.send(item(harness.context(), 501, 510))
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 510)


async def test_repeats_in_flight_are_not_sent_twice_and_repeats_of_the_logged_are_answered_from_memory(
    harness: Harness, eventually: Eventually
) -> None:
    harness.bridge.acknowledging.clear()
    first, second = await harness.emit_call(), await harness.emit_call()
    context = harness.context()
    await first.send(item(context, 1, 10))
    await eventually(lambda: len(harness.log.items) == 1)
    await second.send(item(context, 1, 10))
    await second.send(item(context, 6, 15))
    harness.bridge.acknowledging.set()
    await first.hear_until(lambda: first.through("alice", "r1:0:1") == 15)
    await second.hear_until(lambda: second.through("alice", "r1:0:1") == 15)
    assert [[e.number for e in i.events] for i in harness.log.items] == [list(range(1, 11)), list(range(11, 16))]
    await second.send(item(context, 3, 4))
    await second.hear()
    assert second.acks["alice", "r1:0:1"].through == 15
    assert second.acks["alice", "r1:0:1"].offset == 15
    assert len(harness.log.items) == 2


async def test_a_hole_within_what_is_on_its_way_is_refused_at_once(harness: Harness, eventually: Eventually) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    await call.send(item(harness.context(), 1, 5))
    await eventually(lambda: len(harness.log.items) == 1)
    await call.send(item(harness.context(), 8, 9))
    await call.hear_until(lambda: call.reason("alice", "r1:0:1") == "REFUSAL_REASON_GAP")
    assert call.acks["alice", "r1:0:1"].refusal.last_number == 5
    assert len(harness.log.items) == 1
    harness.bridge.acknowledging.set()


async def test_a_log_that_lost_its_tail_gets_the_gap_declared(harness: Harness) -> None:
    producer = Producer(await harness.stream(), "r1:0:1", harness.context(), options=QUICK_PRODUCER)
    for _ in range(10):
        await producer.emit("agent_thinking", TEXT)
    await producer.flush(5)
    del harness.log.events["alice", "r1:0:1"][4:]
    await producer.emit("agent_thinking", TEXT)
    assert await producer.flush(5) == 11
    assert harness.log.gaps == [("alice", "r1:0:1")]


async def test_a_bridge_that_is_overloaded_for_a_while_delays_and_loses_nothing(harness: Harness) -> None:
    left = [RefusalReason.REFUSAL_REASON_OVERLOADED] * 7
    harness.bridge.refuse = lambda _: left.pop() if left else None
    producer = Producer(await harness.stream(), "r1:0:1", harness.context(), options=QUICK_PRODUCER)
    for _ in range(100):
        await producer.emit("agent_message", {"message_id": "m", "delta": "x"})
        await asyncio.sleep(0)
    assert await producer.flush(10) == 100
    assert harness.log.numbers("alice", "r1:0:1") == list(range(1, 101))
    assert not harness.log.gaps


@pytest.mark.parametrize("reason", ["STALE_FENCE", "SEALED"])
async def test_the_logs_final_refusal_reaches_the_producer_and_nobody_else(harness: Harness, reason: str) -> None:
    value = RefusalReason.Value(f"REFUSAL_REASON_{reason}")
    harness.bridge.refuse = lambda i: value if i.producer_id == "r1:0:1" else None
    stream = await harness.stream()
    dying = Producer(stream, "r1:0:1", harness.context(), options=QUICK_PRODUCER)
    living = Producer(stream, "r1:1:1", harness.context(), options=QUICK_PRODUCER)
    await dying.emit("agent_thinking", TEXT)
    await living.emit("agent_thinking", TEXT)
    error = await asyncio.wait_for(dying.dead, 5)
    assert error.code in ("STALE_FENCE", "SEALED_LOG")
    assert await living.flush(5) == 1


async def test_a_reader_of_acknowledgements_that_is_stuck_holds_up_nobody(harness: Harness) -> None:
    stuck, other = await harness.emit_call(), await harness.emit_call()
    # Never reads: its acknowledgements are merged by producer, and wait.
    for number in range(1, 201):
        await stuck.send(item(harness.context("alice"), number))
    await other.send(item(harness.context("bob")))
    await other.hear_until(lambda: other.through("bob", "r1:0:1") == 1)
    await stuck.hear_until(lambda: stuck.through("alice", "r1:0:1") == 200)


async def test_a_client_that_goes_away_leaves_its_events_to_the_log(harness: Harness, eventually: Eventually) -> None:
    harness.bridge.reading.clear()
    call = await harness.emit_call()
    await call.send(item(harness.context(), 1, 5))
    await asyncio.sleep(0.05)
    call.call.cancel()
    harness.bridge.reading.set()
    await eventually(lambda: harness.log.numbers("alice", "r1:0:1") == [1, 2, 3, 4, 5])


async def test_a_half_closed_stream_gets_its_last_acknowledgements_and_then_ends(harness: Harness) -> None:
    call = await harness.emit_call()
    await call.send(item(harness.context(), 1, 5))
    await call.call.done_writing()
    responses = [response async for response in call.call]
    assert responses[-1].acks[0].through == 5
    assert (await call.call.code()).name == "OK"


async def test_draining_takes_nothing_new_and_ends_streams_once_the_log_has_what_was_taken(
    harness: Harness, eventually: Eventually
) -> None:
    harness.bridge.acknowledging.clear()
    call = await harness.emit_call()
    await call.send(item(harness.context(), 1, 5))
    await eventually(lambda: len(harness.log.items) == 1)
    assert harness.server is not None
    drain = asyncio.create_task(harness.server.drain())
    await asyncio.sleep(0.05)
    assert not drain.done()
    harness.bridge.acknowledging.set()
    await call.hear_until(lambda: call.through("alice", "r1:0:1") == 5)
    await asyncio.wait_for(drain, 5)
    assert (await call.call.code()).name == "OK"


async def test_readiness_follows_the_bridge(harness: Harness, eventually: Eventually) -> None:
    assert harness.server is not None
    readiness = harness.server.readiness
    await eventually(lambda: readiness.ready)
    await harness.kill_bridge()
    await eventually(lambda: not readiness.ready)
    assert readiness.failing == ("bridge",)
    await harness.start_bridge()
    await eventually(lambda: readiness.ready)


async def test_a_log_that_takes_too_long_makes_the_emitter_unready_and_nothing_is_dropped(
    tmp_path: Path, eventually: Eventually
) -> None:
    harness = Harness(tmp_path)
    harness.overrides = {"event_timeout": 0.2, "delivery_timeout": 0.1}
    await harness.start_bridge()
    await harness.start_emitter()
    try:
        assert harness.server is not None
        harness.bridge.acknowledging.clear()
        producer = Producer(await harness.stream(), "r1:0:1", harness.context())
        await producer.emit("agent_thinking", TEXT)
        readiness = harness.server.readiness
        await eventually(lambda: readiness.failing == ("delivery",))
        harness.bridge.acknowledging.set()
        assert await producer.flush(5) == 1
        await eventually(lambda: readiness.ready)
    finally:
        await harness.aclose()


async def test_what_waits_for_the_window_leaves_as_acknowledgements_come(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.overrides = {"queue": {"user_window": 1, "total_window": 2}}
    await harness.start_bridge()
    await harness.start_emitter()
    try:
        call = await harness.emit_call()
        await call.send(*(item(harness.context(user), n) for n in range(1, 30) for user in ("alice", "bob", "carol")))
        for user in ("alice", "bob", "carol"):
            await call.hear_until(lambda user=user: call.through(user, "r1:0:1") == 29)  # type: ignore[misc]  # bound
    finally:
        await harness.aclose()


async def test_memory_is_bounded_for_all_users_together(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.overrides = {"queue": {"total_bytes": 1 << 20, "user_bytes": 1 << 20}}
    await harness.start_bridge()
    await harness.start_emitter()
    try:
        harness.bridge.acknowledging.clear()
        call = await harness.emit_call()
        text: Any = {"text": "x" * 15_000}
        for n in range(100):
            await call.send(item(harness.context(f"user{n}"), producer="r1:0:1", data=text))
        await call.hear_until(lambda: bool(call.heard))
        counts = await harness.statistics()
        assert 0 < counts.queued_bytes <= 1 << 20
        assert counts.items_refused["REFUSAL_REASON_OVERLOADED"] > 0
        harness.bridge.acknowledging.set()
    finally:
        await harness.aclose()
