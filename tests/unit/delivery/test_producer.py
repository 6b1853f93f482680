"""One producer: numbering, merging, bounds, shedding, refusals, tickets, the end."""

import asyncio

import orjson
import pytest

from carrel.errors import (
    CarrelError,
    DeadlineError,
    DrainingError,
    InvalidEventError,
    PermissionDeniedError,
    SealedLogError,
    StaleFenceError,
    TooLargeError,
    UnauthenticatedError,
)
from carrel.v1.events_pb2 import ProducerAck, RefusalReason
from servicekit.delivery import Position, Producer, ProducerOptions, ProducerStream, Row
from tests.conftest import Eventually
from tests.unit.delivery.conftest import QUICK_PRODUCER
from tests.unit.delivery.scripted import Hop, child_context, run_context, script

MESSAGE = ("agent_message", {"message_id": "m", "delta": "x"})
THINKING = ("agent_thinking", {"text": "hm"})
GAP = RefusalReason.REFUSAL_REASON_GAP
OVERLOADED = RefusalReason.REFUSAL_REASON_OVERLOADED
EXPIRED = RefusalReason.REFUSAL_REASON_TICKET_EXPIRED
UNAUTHENTICATED = RefusalReason.REFUSAL_REASON_UNAUTHENTICATED


async def test_an_event_carries_what_it_was_given(hop: Hop, producer: Producer) -> None:
    assert await producer.emit("agent_started", {"agent_name": "data"}, agent_name="data", traceparent="00-a") == 1
    await producer.flush(1)
    item = hop.items[0]
    assert (item.producer_id, item.fence, item.attempt, item.context) == ("p1", 7, 1, run_context())
    event = item.events[0]
    assert (event.number, event.event_type, event.agent_name) == (1, "agent_started", "data")
    assert orjson.loads(event.data) == {"agent_name": "data"}
    assert event.traceparent == "00-a"
    assert event.event_id
    assert event.timestamp.seconds > 0
    assert producer.position == Position("e1", 1)


async def test_consecutive_events_of_one_context_become_one_item_and_a_childs_are_apart(
    hop: Hop, stream: ProducerStream, producer: Producer
) -> None:
    child = child_context("validation")
    await stream.wait_connected()
    for context in (None, None, child, child, None):
        await producer.emit(*MESSAGE, context=context)
    await producer.flush(1)
    assert [(i.context.request_id, len(i.events)) for i in hop.items] == [("q1", 2), ("q1_validation", 2), ("q1", 1)]
    assert hop.numbers() == [1, 2, 3, 4, 5]


async def test_an_item_holds_at_most_100_events_and_its_bound_of_bytes(hop: Hop, stream: ProducerStream) -> None:
    await stream.wait_connected()
    producer = Producer(stream, "p2", run_context(), options=ProducerOptions(max_item_bytes=10_000))
    for _ in range(150):
        await producer.emit(*MESSAGE)
    for _ in range(3):
        await producer.emit("agent_message", {"message_id": "m", "text": "x" * 6_000})
    await producer.flush(1)
    sizes = [len(i.events) for i in hop.items]
    assert sum(sizes) == 153
    assert max(sizes) <= 100
    assert sizes[-2:] == [1, 1]
    await producer.aclose()


async def test_beyond_the_bound_thinking_is_left_out_and_the_next_event_says_how_much(
    hop: Hop, producer: Producer, eventually: Eventually
) -> None:
    hop.gate.clear()
    for _ in range(200):
        assert await producer.emit(*MESSAGE)
    for _ in range(5):
        assert await producer.emit(*THINKING) == 0
    waiting = asyncio.create_task(producer.emit(*MESSAGE))
    assert await producer.emit(*THINKING) == 0
    await asyncio.sleep(0)
    assert not waiting.done()
    hop.gate.set()
    assert await waiting == 201
    await producer.flush(1)
    assert hop.numbers() == list(range(1, 202))
    assert orjson.loads(hop.log["u1", "p1"][-1].data) == {**MESSAGE[1], "shed": 6}
    await producer.emit(*THINKING)
    await producer.flush(1)
    assert orjson.loads(hop.log["u1", "p1"][-1].data) == THINKING[1]


async def test_emits_that_wait_are_numbered_in_the_order_they_came(hop: Hop, producer: Producer) -> None:
    hop.gate.clear()
    for _ in range(200):
        await producer.emit(*MESSAGE)
    waiting = [asyncio.create_task(producer.emit(*MESSAGE, agent_name=f"a{n}")) for n in range(50)]
    await asyncio.sleep(0)
    hop.gate.set()
    assert await asyncio.gather(*waiting) == list(range(201, 251))
    await producer.flush(1)
    assert [e.agent_name for e in hop.log["u1", "p1"][200:]] == [f"a{n}" for n in range(50)]


async def test_a_newcomer_does_not_overtake_who_waits_when_room_appears(hop: Hop, producer: Producer) -> None:
    hop.gate.clear()
    for _ in range(200):
        await producer.emit(*MESSAGE)
    waiting = asyncio.create_task(producer.emit(*MESSAGE))
    await asyncio.sleep(0)
    producer.acknowledge(ProducerAck(user_id="u1", producer_id="p1", through=1))
    hop.gate.set()
    assert await producer.emit(*MESSAGE) == 202
    assert await waiting == 201


async def test_the_bytes_held_are_bounded_too(hop: Hop, stream: ProducerStream) -> None:
    hop.silent = True
    producer = Producer(stream, "p2", run_context(), options=ProducerOptions(max_bytes=100_000))
    large = {"message_id": "m", "text": "x" * 60_000}
    await producer.emit("agent_message", large)
    await producer.emit("agent_message", large)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(producer.emit("agent_message", large), 0.02)
    await producer.aclose()


async def test_a_gap_refusal_rewinds_to_the_number_after_the_last_one_held(hop: Hop, producer: Producer) -> None:
    for _ in range(3):
        await producer.emit(*MESSAGE)
    await producer.flush(1)
    # The next hop takes 4 and 5 and forgets them, as an emitter does that drops its queue.
    hop.refuse = script(OVERLOADED)
    await producer.emit(*MESSAGE)
    await asyncio.sleep(0)
    await producer.emit(*MESSAGE)
    assert await producer.flush(1) == 5
    assert hop.numbers() == [1, 2, 3, 4, 5]
    assert not hop.gaps


async def test_a_log_that_lost_its_tail_is_told_of_the_gap(hop: Hop, producer: Producer) -> None:
    for _ in range(10):
        await producer.emit(*MESSAGE)
    await producer.flush(1)
    del hop.log["u1", "p1"][4:]
    await producer.emit(*MESSAGE)
    assert await producer.flush(1) == 11
    assert hop.gaps == [("p1", 11)]


async def test_overload_delays_events_and_loses_none(hop: Hop, producer: Producer) -> None:
    hop.refuse = script(*[OVERLOADED] * 4, None, OVERLOADED)
    for _ in range(50):
        await producer.emit(*MESSAGE)
        await asyncio.sleep(0)
    assert await producer.flush(5) == 50
    assert hop.numbers() == list(range(1, 51))


async def test_while_it_backs_off_nothing_is_sent(hop: Hop, stream: ProducerStream, eventually: Eventually) -> None:
    slow = ProducerOptions(first_delay_s=30, max_delay_s=60)
    producer = Producer(stream, "p2", run_context(), options=slow)
    hop.refuse = script(OVERLOADED)
    await producer.emit(*MESSAGE)
    await eventually(lambda: len(hop.items) == 1)
    await producer.emit(*MESSAGE)
    await asyncio.sleep(0.02)
    assert len(hop.items) == 1
    await producer.aclose()


async def test_an_expired_ticket_delays_events_until_a_fresh_one_comes(hop: Hop, stream: ProducerStream) -> None:
    asked: list[str] = []
    producer = Producer(
        stream, "p2", run_context(), options=ProducerOptions(max_delay_s=30), on_expired=lambda: asked.append("!")
    )
    hop.refuse = lambda item: None if item.context.ticket == "ticket-2" else EXPIRED
    child = child_context("validation")
    await producer.emit(*MESSAGE)
    await producer.emit(*MESSAGE, context=child)
    with pytest.raises(DeadlineError):
        await producer.flush(0.05)
    assert asked == ["!"]
    producer.refresh(run_context(ticket="ticket-2"))
    assert await producer.flush(1) == 2
    assert {i.context.ticket for i in hop.items[-2:]} == {"ticket-2"}
    assert hop.items[-1].context.request_id == "q1_validation"
    assert child.ticket == "ticket-1"
    await producer.aclose()


async def test_a_context_provider_is_asked_for_the_fresh_ticket(hop: Hop, stream: ProducerStream) -> None:
    tickets = iter(["ticket-1", "ticket-2"])
    producer = Producer(stream, "p2", lambda: run_context(ticket=next(tickets)), options=QUICK_PRODUCER)
    hop.refuse = lambda item: None if item.context.ticket == "ticket-2" else EXPIRED
    await producer.emit(*MESSAGE)
    assert await producer.flush(1) == 1
    await producer.aclose()


async def test_an_unknown_ticket_is_tried_again_a_few_times_and_then_ends_the_producer(
    hop: Hop, producer: Producer
) -> None:
    hop.refuse = lambda item: UNAUTHENTICATED
    await producer.emit(*MESSAGE)
    assert isinstance(await asyncio.wait_for(producer.dead, 5), UnauthenticatedError)
    assert len(hop.items) == QUICK_PRODUCER.max_logins + 1


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (RefusalReason.REFUSAL_REASON_STALE_FENCE, StaleFenceError),
        (RefusalReason.REFUSAL_REASON_SEALED, SealedLogError),
        (RefusalReason.REFUSAL_REASON_INVALID, CarrelError),
        (RefusalReason.REFUSAL_REASON_PERMISSION_DENIED, PermissionDeniedError),
    ],
)
async def test_some_refusals_end_the_producer_for_whoever_waits_for_it(
    hop: Hop, producer: Producer, reason: RefusalReason.ValueType, error: type[CarrelError], eventually: Eventually
) -> None:
    hop.gate.clear()
    hop.refuse = lambda item: reason
    for _ in range(200):
        await producer.emit(*MESSAGE)
    emitting = asyncio.create_task(producer.emit(*MESSAGE))
    flushing = asyncio.create_task(producer.flush(5))
    await asyncio.sleep(0)
    hop.gate.set()
    assert isinstance(await asyncio.wait_for(producer.dead, 10), error)
    for task in (emitting, flushing):
        with pytest.raises(error):
            await task
    with pytest.raises(error):
        await producer.emit(*MESSAGE)


async def test_a_refusal_meant_for_a_former_holder_of_the_run_is_not_taken_for_ones_own(
    hop: Hop, producer: Producer
) -> None:
    await producer.emit(*MESSAGE)
    await producer.flush(1)
    stale = ProducerAck(user_id="u1", producer_id="p1", through=1, fence=6)
    stale.refusal.reason = RefusalReason.REFUSAL_REASON_STALE_FENCE
    producer.acknowledge(stale)
    assert not producer.dead.done()
    stale.fence = producer.fence
    producer.acknowledge(stale)
    assert isinstance(producer.dead.result(), StaleFenceError)


async def test_a_dead_producer_leaves_the_others_of_the_stream_alone(
    hop: Hop, stream: ProducerStream, producer: Producer
) -> None:
    hop.refuse = lambda item: RefusalReason.REFUSAL_REASON_SEALED if item.producer_id == "p1" else None
    other = Producer(stream, "p2", run_context(), options=QUICK_PRODUCER)
    await producer.emit(*MESSAGE)
    await other.emit(*MESSAGE)
    assert await other.flush(1) == 1
    assert producer.dead.done()
    await other.aclose()


async def test_a_closed_producer_refuses_and_frees_its_id(stream: ProducerStream, producer: Producer) -> None:
    with pytest.raises(ValueError, match="at work already"):
        Producer(stream, "p1", run_context())
    await producer.aclose()
    with pytest.raises(DrainingError):
        await producer.emit(*MESSAGE)
    successor = Producer(stream, "p1", run_context())
    await successor.emit(*MESSAGE)
    assert await successor.flush(1) == 1
    await successor.aclose()


async def test_closing_a_dead_producer_does_not_cut_off_its_successor(
    hop: Hop, stream: ProducerStream, producer: Producer
) -> None:
    hop.refuse = script(RefusalReason.REFUSAL_REASON_STALE_FENCE)
    await producer.emit(*MESSAGE)
    await asyncio.wait_for(asyncio.shield(producer.dead), 10)
    successor = Producer(stream, "p1", run_context(), fence=8, options=QUICK_PRODUCER)
    await producer.aclose()
    await successor.emit(*MESSAGE)
    assert await successor.flush(1) == 1
    await successor.aclose()


async def test_rows_keep_their_numbers_ids_and_times_and_may_begin_in_the_middle(hop: Hop, producer: Producer) -> None:
    hop.base["u1", "p1"] = 4
    for number in (5, 6, 5, 7):
        assert await producer.emit(*THINKING, row=Row(number, f"e{number}", number * 10**9)) == number
    assert await producer.flush(1) == 7
    assert [(e.number, e.event_id, e.timestamp.seconds) for e in hop.log["u1", "p1"]] == [
        (5, "e5", 5),
        (6, "e6", 6),
        (7, "e7", 7),
    ]
    with pytest.raises(InvalidEventError):
        await producer.emit(*THINKING, row=Row(9, "e9", 0))


async def test_data_over_the_hard_bound_or_no_json_is_refused_and_takes_no_number(producer: Producer) -> None:
    with pytest.raises(TooLargeError):
        await producer.emit("agent_message", {"message_id": "m", "text": "x" * 300_000})
    with pytest.raises(InvalidEventError):
        await producer.emit("agent_message", {"message_id": object()})
    assert await producer.emit(*MESSAGE) == 1


async def test_flush_is_over_at_its_timeout_and_nothing_is_lost(hop: Hop, producer: Producer) -> None:
    hop.gate.clear()
    await producer.emit(*MESSAGE)
    with pytest.raises(DeadlineError):
        await producer.flush(0.01)
    hop.gate.set()
    assert await producer.flush(1) == 1
