"""The stream alone: coalescing, losing and finding its peer again, replacing what got old."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from servicekit.delivery import Producer, ProducerStream, StreamOptions
from tests.conftest import Eventually
from tests.unit.delivery.conftest import QUICK, QUICK_PRODUCER
from tests.unit.delivery.scripted import Call, Hop, run_context

EVENT = ("agent_message", {"message_id": "m", "delta": "x"})


async def test_one_event_on_an_idle_stream_goes_at_once_in_a_message_of_its_own(hop: Hop, producer: Producer) -> None:
    await producer.emit(*EVENT)
    await producer.flush(1)
    await producer.emit(*EVENT)
    await producer.flush(1)
    assert [len(m.items) for m in hop.messages] == [1, 1]


async def test_what_arrives_while_a_write_is_in_flight_goes_into_the_next_message(
    hop: Hop, producer: Producer, eventually: Eventually
) -> None:
    hop.gate.clear()
    await producer.emit(*EVENT)
    await eventually(lambda: hop.calls and producer.emitted == 1)
    await asyncio.sleep(0.01)
    for _ in range(150):
        await producer.emit(*EVENT)
    hop.gate.set()
    await producer.flush(1)
    assert [[len(i.events) for i in m.items] for m in hop.messages] == [[1], [100, 50]]


async def test_a_message_stays_within_its_bounds_of_items_and_bytes(hop: Hop) -> None:
    options = StreamOptions(max_items=4, max_bytes=40_000)
    async with ProducerStream(hop.open, options=options) as stream:
        producers = [Producer(stream, f"p{n}", run_context()) for n in range(10)]
        for producer in producers:
            await producer.emit("agent_message", {"message_id": "m", "text": "x" * 15_000})
        for producer in producers:
            await producer.flush(1)
            await producer.aclose()
    assert [len(m.items) for m in hop.messages] == [3, 3, 3, 1]


async def test_producers_take_turns_so_a_busy_one_does_not_hold_up_another(hop: Hop, stream: ProducerStream) -> None:
    await stream.wait_connected()
    busy, quiet = (Producer(stream, name, run_context(), options=QUICK_PRODUCER) for name in ("busy", "quiet"))
    for _ in range(200):
        await busy.emit(*EVENT)
    await quiet.emit(*EVENT)
    await quiet.flush(1)
    assert [i.producer_id for i in hop.items][:2] == ["busy", "quiet"]
    await busy.flush(1)
    await busy.aclose()
    await quiet.aclose()


async def test_connected_follows_the_peer(hop: Hop, eventually: Eventually) -> None:
    states: list[bool] = []
    hop.absent = True
    async with ProducerStream(hop.open, options=QUICK, on_state=states.append) as stream:
        await eventually(lambda: len(hop.calls) >= 3)
        assert not stream.connected
        hop.absent = False
        await eventually(lambda: stream.connected)
        hop.absent = True
        hop.calls[-1].lose()
        await eventually(lambda: not stream.connected)
    assert states == [True, False]


async def test_the_first_retry_is_at_once_and_later_ones_are_spaced(hop: Hop, eventually: Eventually) -> None:
    hop.absent = True
    options = StreamOptions(first_delay_s=30, max_delay_s=60)
    async with ProducerStream(hop.open, options=options):
        await eventually(lambda: len(hop.calls) == 2)
        await asyncio.sleep(0.05)
        assert len(hop.calls) == 2


async def test_a_connection_that_was_used_is_opened_again_at_once_when_it_breaks(
    hop: Hop, eventually: Eventually
) -> None:
    options = StreamOptions(first_delay_s=30, max_delay_s=60)
    async with ProducerStream(hop.open, options=options) as stream:
        producer = Producer(stream, "p1", run_context(), options=QUICK_PRODUCER)
        for number in range(1, 4):
            await producer.emit(*EVENT)
            assert await producer.flush(1) == number
            hop.calls[-1].lose()
            await eventually(lambda number=number: len(hop.calls) == number + 1)  # type: ignore[misc]  # bound
        await producer.aclose()


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == event]


async def test_a_peer_that_starts_later_is_neither_lost_nor_away(
    hop: Hop, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    hop.absent = True
    options = replace(QUICK, alert_after_s=600)
    async with ProducerStream(hop.open, options=options) as stream:
        await eventually(lambda: len(hop.calls) > 10)
        hop.absent = False
        await stream.wait_connected()
        assert not caplog.records
        hop.absent = True
        hop.calls[-1].lose()
        calls = len(hop.calls)
        await eventually(lambda: len(hop.calls) > calls + 10)
    assert [record.getMessage() for record in caplog.records] == ["stream lost"]


@pytest.mark.parametrize(("failures", "seconds"), [(3, 0.2), (20, 0.0)])
async def test_a_peer_that_stays_away_is_told_once_after_so_many_failures_and_so_long(
    hop: Hop, eventually: Eventually, caplog: pytest.LogCaptureFixture, failures: int, seconds: float
) -> None:
    hop.absent = True
    options = replace(QUICK, alert_after=failures, alert_after_s=seconds)
    async with ProducerStream(hop.open, options=options):
        await eventually(lambda: told(caplog, "the next hop stays away"))
        calls = len(hop.calls)
        await eventually(lambda: len(hop.calls) > calls + 10)
    (fields,) = told(caplog, "the next hop stays away")
    assert fields["failures"] >= failures
    assert fields["seconds"] >= seconds


async def test_a_peer_that_does_not_even_refuse_is_told_too(
    hop: Hop, eventually: Eventually, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(call: Call) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Call, "wait_for_connection", wait)
    options = replace(QUICK, connect_timeout_s=0.02, alert_after_s=0.0)
    async with ProducerStream(hop.open, options=options):
        await eventually(lambda: told(caplog, "the next hop stays away"))


@pytest.mark.parametrize("where", ["before", "after", "both"])
@pytest.mark.parametrize("seed", range(8))
async def test_the_connection_breaks_at_random_moments_and_every_event_arrives_once_in_order(
    hop: Hop, stream: ProducerStream, where: str, seed: int
) -> None:
    dice = random.Random(seed)
    if where in ("before", "both"):
        hop.break_before = lambda index: dice.random() < 0.3
    if where in ("after", "both"):
        hop.break_after = lambda index: dice.random() < 0.3
    producers = [Producer(stream, f"p{n}", run_context(), options=QUICK_PRODUCER) for n in range(3)]
    for _ in range(300):
        for producer in producers:
            await producer.emit(*EVENT)
        if dice.random() < 0.1:
            await asyncio.sleep(0)
    for producer in producers:
        assert await producer.flush(10) == 300
        assert hop.numbers(producer.producer_id) == list(range(1, 301))
        await producer.aclose()


@pytest.mark.parametrize("moment", range(6))
async def test_the_connection_breaks_at_each_message_in_turn(hop: Hop, producer: Producer, moment: int) -> None:
    hop.break_after = lambda index: index == moment
    for _ in range(6):
        await producer.emit(*EVENT)
        await asyncio.sleep(0.002)
    assert await producer.flush(5) == 6
    assert hop.numbers() == [1, 2, 3, 4, 5, 6]


async def test_lost_acknowledgements_lead_to_duplicates_that_the_log_ignores(
    hop: Hop, producer: Producer, eventually: Eventually
) -> None:
    hop.silent = True
    for _ in range(10):
        await producer.emit(*EVENT)
    await eventually(lambda: len(hop.numbers()) == 10)
    hop.silent = False
    hop.calls[-1].lose()
    assert await producer.flush(1) == 10
    assert hop.numbers() == list(range(1, 11))
    assert sum(len(item.events) for item in hop.items) > 10


async def test_a_call_that_the_peer_cancels_is_opened_again(hop: Hop, producer: Producer) -> None:
    await producer.emit(*EVENT)
    await producer.flush(1)
    hop.calls[-1].lose(asyncio.CancelledError())
    await producer.emit(*EVENT)
    assert await producer.flush(1) == 2


async def test_an_old_connection_is_replaced_without_loss(hop: Hop, eventually: Eventually) -> None:
    options = StreamOptions(max_age_s=0.02, close_grace_s=0.05, first_delay_s=0.001)
    states: list[bool] = []
    async with ProducerStream(hop.open, options=options, on_state=states.append) as stream:
        producer = Producer(stream, "p1", run_context(), options=QUICK_PRODUCER)
        while len(hop.calls) < 4:
            await producer.emit(*EVENT)
            await asyncio.sleep(0.001)
        assert await producer.flush(1) == producer.emitted
        assert hop.numbers() == list(range(1, producer.emitted + 1))
        assert all(call.half_closed for call in hop.calls[:3])
        assert stream.statistics.losses == 0
        # Whoever asks for readiness meanwhile must not take the process for one that has lost its peer.
        assert all(states)
        hop.absent = True
        await eventually(lambda: not stream.connected)
        await producer.aclose()


async def test_a_fault_in_handling_acknowledgements_is_reported_to_the_owner(
    hop: Hop, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[BaseException] = []
    async with ProducerStream(hop.open, options=QUICK, on_failure=lambda name, e: failures.append(e)) as stream:
        producer = Producer(stream, "p1", run_context())
        monkeypatch.setattr(producer, "acknowledge", lambda ack: 1 // 0)
        await producer.emit(*EVENT)
        await eventually(lambda: failures)
        await producer.aclose()
    assert isinstance(failures[0], ZeroDivisionError)


async def test_closing_is_legal_before_the_start_and_twice(hop: Hop) -> None:
    stream = ProducerStream(hop.open)
    await stream.__aexit__(None, None, None)
    await stream.__aexit__(None, None, None)
    assert not hop.calls
