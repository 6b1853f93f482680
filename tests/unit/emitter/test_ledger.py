"""What was taken, what is known to be logged, who hears of it; the log is played by the test."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errors import CarrelError, EventGapError, IdentityMismatchError, QueueFullError, StaleFenceError
from services.emitter.domain.ledger import Ledger
from services.emitter.models import Batch, Limits, Offer, ProducerState, Refused, Verdict, VerdictKind

GAP, OVERLOAD, FINAL = (True, True), (True, False), (False, False)


class Ear:
    """A listener that keeps nothing."""

    def __init__(self) -> None:
        self.producers: set[ProducerState] = set()

    def known(self, producer: ProducerState) -> None: ...
    def refused(self, user_id: str, producer_id: str, error: CarrelError, last_number: int) -> None: ...
    def forward(self, user_id: str, producer_id: str, ack: Any) -> None: ...


class Desk:
    """Offers items of one producer and queues what is to be queued."""

    def __init__(self, **limits: Any) -> None:
        self.ledger = Ledger(Limits(**limits))
        self.ear = Ear()
        self.now = 0.0

    def offer(
        self, first: int, last: int, *, declares: bool = False, run: str = "r", producer: str = "p", fence: int = 1
    ) -> Verdict:
        offer = Offer("u", producer, run, first, last, declares, fence)
        verdict = self.ledger.offer(offer, self.ear, self.now)
        if verdict.kind is VerdictKind.QUEUE:
            batch = Batch(verdict.producer, first + verdict.skip, last, 100, (first + verdict.skip, last), self.now)
            self.ledger.check_room(batch, self.now)
            self.ledger.queue_batch(batch)
        return verdict

    def send(self) -> list[Any]:
        return [batch.payload for batch in self.ledger.queue.take(1000, 1 << 40)]

    def ack(self, through: int) -> list[Any]:
        _, done = self.ledger.acknowledged("u", "p", through, through, "e")
        return [batch.payload for batch in done]

    def refuse(self, last_number: int, kind: tuple[bool, bool] = GAP) -> None:
        producer, _ = self.ledger.acknowledged("u", "p", 0, 0, "")
        assert producer is not None
        self.ledger.refused(producer, Refused(last_number, *kind), self.now)


def test_consecutive_items_are_queued_and_released_as_the_log_acknowledges() -> None:
    desk = Desk()
    for first in (1, 4, 7):
        assert desk.offer(first, first + 2).kind is VerdictKind.QUEUE
    assert desk.send() == [(1, 3), (4, 6), (7, 9)]
    assert desk.ack(5) == [(1, 3)]
    assert desk.ack(9) == [(4, 6), (7, 9)]
    assert desk.ledger.queue.events == 0


def test_the_first_number_seen_may_be_any() -> None:
    assert Desk().offer(51, 60).kind is VerdictKind.QUEUE


def test_a_repeat_in_flight_is_not_queued_and_a_partial_one_only_in_its_new_part() -> None:
    desk = Desk()
    desk.offer(1, 10)
    assert desk.offer(1, 10).kind is VerdictKind.IN_FLIGHT
    assert desk.offer(3, 5).kind is VerdictKind.IN_FLIGHT
    verdict = desk.offer(8, 12)
    assert (verdict.kind, verdict.skip) == (VerdictKind.QUEUE, 3)
    assert desk.send() == [(1, 10), (11, 12)]


def test_a_repeat_of_what_is_logged_is_known_and_a_partial_one_only_in_its_new_part() -> None:
    desk = Desk()
    desk.offer(1, 10)
    desk.send()
    desk.ack(10)
    verdict = desk.offer(5, 10)
    assert verdict.kind is VerdictKind.KNOWN
    assert (verdict.producer.acked, verdict.producer.offset, verdict.producer.epoch) == (10, 10, "e")
    assert desk.offer(5, 12).skip == 6


def test_a_hole_is_refused_while_something_is_on_its_way_and_left_to_the_log_otherwise() -> None:
    desk = Desk()
    desk.offer(1, 5)
    with pytest.raises(EventGapError) as raised:
        desk.offer(7, 8)
    assert raised.value.last_number == 5
    assert desk.offer(7, 8, declares=True).kind is VerdictKind.QUEUE
    desk.send()
    desk.ack(8)
    # Another emitter may have handled what came between.
    assert desk.offer(20, 21).kind is VerdictKind.QUEUE


def test_after_a_gap_refusal_everything_is_given_up_and_the_producer_goes_on_after_the_last_number() -> None:
    desk = Desk()
    desk.offer(1, 5)
    desk.offer(6, 10)
    desk.send()
    desk.offer(11, 12)
    desk.refuse(3)
    assert desk.ledger.queue.events == 0
    with pytest.raises(EventGapError) as raised:
        desk.offer(13, 14)
    assert raised.value.last_number == 3
    assert desk.offer(4, 12).kind is VerdictKind.QUEUE
    assert desk.send() == [(4, 12)]


def test_a_late_refusal_does_not_take_back_what_already_starts_again() -> None:
    desk = Desk()
    desk.offer(1, 5)
    desk.send()
    desk.refuse(0)
    desk.offer(1, 5)
    desk.offer(6, 9)
    # The log's answer to another item of the first pass: what waits begins at the right number already.
    desk.refuse(0)
    assert desk.send() == [(1, 5), (6, 9)]


def test_a_log_that_lost_its_tail_takes_back_what_it_acknowledged() -> None:
    desk = Desk()
    desk.offer(1, 10)
    desk.send()
    desk.ack(10)
    desk.offer(11, 11)
    desk.send()
    desk.refuse(4)
    with pytest.raises(EventGapError) as raised:
        desk.offer(11, 11)
    assert raised.value.last_number == 4
    assert desk.offer(11, 11, declares=True).kind is VerdictKind.QUEUE


def test_an_overloaded_bridge_that_knows_no_number_does_not_make_a_gap() -> None:
    desk = Desk()
    desk.offer(51, 60)
    desk.send()
    desk.refuse(0, OVERLOAD)
    with pytest.raises(EventGapError) as raised:
        desk.offer(61, 62)
    assert raised.value.last_number == 50
    assert desk.offer(51, 60).kind is VerdictKind.QUEUE


def test_a_final_refusal_gives_everything_up_and_leaves_no_trace() -> None:
    desk = Desk()
    desk.offer(1, 5)
    desk.send()
    desk.offer(6, 7)
    desk.refuse(0, FINAL)
    assert desk.ledger.queue.events == 0
    assert desk.offer(1, 5).kind is VerdictKind.QUEUE


def test_strictness_ends_by_itself() -> None:
    desk = Desk()
    desk.offer(1, 5)
    desk.send()
    desk.refuse(0)
    desk.now = 5.0
    assert desk.offer(9, 9).kind is VerdictKind.QUEUE


def test_a_full_queue_refuses_with_the_number_to_go_on_from_and_what_follows_is_a_gap() -> None:
    desk = Desk(user_events=10)
    desk.offer(1, 8)
    with pytest.raises(QueueFullError) as raised:
        desk.offer(9, 12)
    assert raised.value.details["last_number"] == 8
    assert raised.value.retry_after_s
    assert raised.value.limit == "user_events"
    with pytest.raises(EventGapError):
        desk.offer(13, 14)
    desk.send()
    desk.ack(8)
    assert desk.offer(9, 12).kind is VerdictKind.QUEUE


def test_a_full_queue_refuses_a_new_producer_from_its_own_first_number() -> None:
    desk = Desk(user_events=10)
    desk.offer(1, 10)
    with pytest.raises(QueueFullError) as raised:
        desk.offer(31, 32, producer="other")
    assert raised.value.details["last_number"] == 30
    with pytest.raises(EventGapError):
        desk.offer(33, 34, producer="other")


def test_a_producer_belongs_to_one_run() -> None:
    desk = Desk()
    desk.offer(1, 1)
    with pytest.raises(IdentityMismatchError):
        desk.offer(2, 2, run="other")


def test_a_restart_sends_again_what_flew_and_forgets_what_was_idle() -> None:
    desk = Desk()
    desk.offer(1, 5)
    desk.offer(1, 1, producer="idle")
    desk.send()
    desk.ledger.acknowledged("u", "idle", 1, 1, "e")
    desk.offer(6, 7)
    desk.ledger.restart()
    assert desk.send() == [(1, 5), (6, 7)]
    assert len(desk.ledger) == 1
    assert desk.offer(1, 1, producer="idle").kind is VerdictKind.QUEUE


def test_listeners_hear_until_they_leave() -> None:
    desk = Desk()
    producer = desk.offer(1, 5).producer
    assert list(producer.listeners) == [desk.ear]
    assert desk.ledger.pending_of(desk.ear)
    desk.ledger.leave(desk.ear)
    assert not producer.listeners
    assert not desk.ear.producers
    assert desk.send() == [(1, 5)]


def test_idle_producers_and_users_are_forgotten_and_busy_ones_are_not() -> None:
    desk = Desk(remember_s=60.0)
    desk.offer(1, 5)
    desk.offer(1, 5, producer="busy")
    desk.send()
    desk.ack(5)
    desk.ledger.sweep(59.0)
    assert len(desk.ledger) == 2
    desk.ledger.sweep(61.0)
    assert len(desk.ledger) == 1
    assert not any(p.producer_id == "p" for p in desk.ear.producers)
    desk.ledger.acknowledged("u", "busy", 5, 5, "e")
    desk.ledger.sweep(122.0)
    assert len(desk.ledger) == 0
    assert not list(desk.ledger.queue.users)


def test_a_new_holder_of_the_run_takes_over_its_producer() -> None:
    desk = Desk()
    desk.offer(1, 5, fence=1)
    desk.send()
    assert desk.offer(3, 6, fence=2).kind is VerdictKind.QUEUE
    with pytest.raises(StaleFenceError):
        desk.offer(6, 6, fence=1)
    # The log's answer to what the old holder sent.
    producer, _ = desk.ledger.acknowledged("u", "p", 2, 2, "e")
    assert producer is not None
    desk.ledger.refused(producer, Refused(2, *FINAL, fence=1), 0.0)
    assert desk.send() == [(3, 6)]


def test_the_number_of_producers_is_bounded_and_idle_ones_make_room() -> None:
    desk = Desk(producers=2)
    desk.offer(1, 1, producer="a")
    desk.offer(1, 1, producer="b")
    desk.now = 1.0
    with pytest.raises(QueueFullError) as raised:
        desk.offer(5, 5, producer="c")
    assert raised.value.details["last_number"] == 4
    desk.send()
    desk.ledger.acknowledged("u", "a", 1, 1, "e")
    assert desk.offer(5, 5, producer="c").kind is VerdictKind.QUEUE
    assert len(desk.ledger) == 2
