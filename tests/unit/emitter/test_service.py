"""The servicer's own state: what a slow reader has yet to hear, and that nothing of a stream outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from carrel.errors import StaleFenceError, UnavailableError
from carrel.v1 import emitter_pb2
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.events_pb2 import ProducerAck, ProducerEvents, RefusalReason
from servicekit.identity.principals import RunPrincipal
from services.emitter.client_bridge import Publisher
from services.emitter.convert import reason_name
from services.emitter.domain.guard import Guard
from services.emitter.domain.intake import Intake
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.sanitize import Sanitizer
from services.emitter.domain.statistics import Statistics
from services.emitter.models import Limits
from services.emitter.service import AckStream, EmitterServicer
from tests.conftest import Eventually

CONTEXT = UserExecutionContext(user_id="u", thread_id="t", run_id="r", request_id="q")
PRINCIPAL = RunPrincipal("u", "t", "r", "q", frozenset(), {}, 0.0, "execution")


class Parts:
    """The emitter's objects without any network; the test plays the bridge's stream."""

    def __init__(self) -> None:
        statistics = Statistics()
        self.ledger = Ledger(Limits())
        self.publisher = Publisher(self.ledger, statistics)
        guard = Guard(Sanitizer())
        intake = Intake(lambda _: PRINCIPAL, guard, self.ledger, statistics, reason_name)
        self.woken = 0
        self.fences = [0]  # what the log answers, one after the other; the last one again and again
        self.servicer = EmitterServicer(
            intake, guard, self.ledger, statistics, wake=self._wake, counts=dict, fence_of=self._fence_of
        )
        self.requests: asyncio.Queue[emitter_pb2.EmitRequest | Exception | None] = asyncio.Queue()

    def _wake(self) -> None:
        self.woken += 1

    async def _fence_of(self, _context: UserExecutionContext) -> int:
        return self.fences.pop(0) if len(self.fences) > 1 else self.fences[0]

    async def _read(self) -> AsyncIterator[emitter_pb2.EmitRequest]:
        while (request := await self.requests.get()) is not None:
            if isinstance(request, Exception):
                raise request
            yield request

    def emit(self) -> Any:
        return self.servicer.Emit(self._read(), None)  # type: ignore[arg-type]  # the handler asks it nothing

    def send(self, first: int, last: int, producer: str = "p") -> None:
        request = emitter_pb2.EmitRequest()
        item = request.items.add(context=CONTEXT, producer_id=producer)
        for number in range(first, last + 1):
            item.events.add(event_id="e", number=number, event_type="agent_thinking", data=b'{"text":"x"}')
        self.requests.put_nowait(request)

    def notify(self, key: str = "k", fence: int = 0) -> asyncio.Future[emitter_pb2.NotifyResponse]:
        request = emitter_pb2.NotifyRequest(
            context=CONTEXT, idempotency_key=key, event_type="agent_thinking", data_json=b'{"text":"x"}', fence=fence
        )
        return asyncio.ensure_future(self.servicer.Notify(request, None))  # type: ignore[arg-type]  # as above

    async def sent(self, eventually: Eventually) -> ProducerEvents:
        """The one item that goes to the log next."""
        items: list[ProducerEvents] = []

        def look() -> bool:
            items.extend(self.publisher.take(10, 1 << 20))
            return bool(items)

        await eventually(look)
        (item,) = items
        return item

    def refuse_as_stale(self, item: ProducerEvents) -> None:
        """The log's word on an item that was sent under a fence of before."""
        ack = ProducerAck(user_id="u", producer_id=item.producer_id, fence=item.fence)
        ack.refusal.reason = RefusalReason.REFUSAL_REASON_STALE_FENCE
        self.publisher.acknowledge([ack])

    def acknowledge(self, through: int, producer: str = "p") -> None:
        self.publisher.acknowledge([ProducerAck(user_id="u", producer_id=producer, through=through)])


async def test_a_refusal_that_was_not_heard_yet_survives_later_acknowledgements() -> None:
    stream = AckStream()
    refused = ProducerAck(user_id="u", producer_id="p", through=3)
    refused.refusal.reason = RefusalReason.REFUSAL_REASON_GAP
    stream.forward("u", "p", refused)
    stream.forward("u", "p", ProducerAck(user_id="u", producer_id="p", through=5))
    stream.forward("u", "q", ProducerAck(user_id="u", producer_id="q", through=1))
    first, second = stream.take()
    assert (first.through, first.refusal.reason) == (5, RefusalReason.REFUSAL_REASON_GAP)
    assert second.producer_id == "q"
    assert stream.take() == []


async def test_a_response_holds_a_thousand_acknowledgements_at_most() -> None:
    stream = AckStream()
    for n in range(2500):
        stream.forward("u", f"p{n}", ProducerAck(user_id="u", producer_id=f"p{n}", through=1))
    assert [len(stream.take()) for _ in range(4)] == [1000, 1000, 500, 0]


async def test_nothing_of_a_stream_is_left_when_its_client_is_gone(eventually: Eventually) -> None:
    parts = Parts()
    responses = parts.emit()
    parts.send(1, 3)
    waiting = asyncio.ensure_future(anext(responses))
    await eventually(lambda: parts.ledger.queue.events == 3)
    parts.acknowledge(2)
    assert (await waiting).acks[0].through == 2
    producer = next(iter(parts.ledger._producers.values()))
    assert producer.listeners
    await responses.aclose()
    assert not producer.listeners
    assert not parts.servicer._streams
    assert parts.ledger.queue.events == 3


async def test_a_stream_whose_reading_fails_ends_with_that_failure() -> None:
    parts = Parts()
    responses = parts.emit()
    parts.send(1, 3)
    parts.requests.put_nowait(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await anext(responses)


async def test_a_request_wakes_the_bridges_stream_once(eventually: Eventually) -> None:
    parts = Parts()
    responses = parts.emit()
    parts.send(1, 3)
    parts.requests.put_nowait(None)
    waiting = asyncio.ensure_future(anext(responses))
    await eventually(lambda: parts.woken == 1)
    parts.acknowledge(3)
    assert (await waiting).acks[0].through == 3
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


async def test_an_item_that_trips_the_intake_up_is_refused_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    parts = Parts()
    offer = parts.ledger.offer
    monkeypatch.setattr(parts.ledger, "offer", lambda o, *rest: 1 // 0 if o.producer_id == "odd" else offer(o, *rest))
    responses = parts.emit()
    parts.send(1, 1, "odd")
    assert (await anext(responses)).acks[0].refusal.reason == RefusalReason.REFUSAL_REASON_INVALID
    parts.send(1, 1, "good")
    waiting = asyncio.ensure_future(anext(responses))
    await eventually(lambda: parts.ledger.queue.events == 1)
    parts.acknowledge(1, "good")
    assert (await waiting).acks[0].through == 1
    await responses.aclose()


async def test_a_notification_that_a_new_holder_overtakes_is_sent_again_under_the_new_fence(
    eventually: Eventually,
) -> None:
    parts = Parts()
    parts.fences = [0, 1, 2]
    answer = parts.notify()
    tries = []
    for _ in range(3):
        tries.append(await parts.sent(eventually))
        if len(tries) < 3:
            parts.refuse_as_stale(tries[-1])
    parts.acknowledge(1, tries[0].producer_id)
    event_id = (await answer).event_id
    assert [one.fence for one in tries] == [0, 1, 2]
    assert {(one.producer_id, one.events[0].event_id) for one in tries} == {(tries[0].producer_id, event_id)}
    assert parts.ledger.queue.events == 0


async def test_two_calls_with_one_key_that_are_overtaken_together_get_one_answer(eventually: Eventually) -> None:
    parts = Parts()
    parts.fences = [0, 1]
    first = parts.notify()
    overtaken = await parts.sent(eventually)
    # It asks when the holder has written, and finds the other's item on its way.
    second = parts.notify()
    newer = await parts.sent(eventually)
    assert (overtaken.fence, newer.fence) == (0, 1)
    parts.refuse_as_stale(overtaken)
    again = await parts.sent(eventually)
    parts.acknowledge(1, again.producer_id)
    assert (await first).event_id == (await second).event_id == overtaken.events[0].event_id


async def test_a_notification_under_its_callers_own_stale_fence_is_refused(eventually: Eventually) -> None:
    parts = Parts()
    parts.fences = [1]
    answer = parts.notify(fence=1)
    parts.refuse_as_stale(await parts.sent(eventually))
    with pytest.raises(StaleFenceError):
        await answer


async def test_a_notification_that_is_overtaken_again_and_again_asks_its_caller_to_come_again(
    eventually: Eventually,
) -> None:
    parts = Parts()
    parts.fences = list(range(20))
    answer = parts.notify()
    for _ in range(5):
        parts.refuse_as_stale(await parts.sent(eventually))
    with pytest.raises(UnavailableError) as raised:
        await answer
    assert raised.value.retryable
    assert parts.ledger.queue.events == 0
