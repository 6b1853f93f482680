"""Whose turn it is, what flies, what is held: the queue alone, with batches that carry nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from services.emitter.domain.fairness import FairQueue
from services.emitter.models import Batch, Limits, ProducerState

HUGE = 1 << 40


class Users:
    """Makes batches of users over one queue."""

    def __init__(self, **limits: int) -> None:
        wide = {"user_window": HUGE, "total_window": HUGE, "user_events": HUGE, "user_bytes": HUGE, "total_bytes": HUGE}
        self.queue = FairQueue(Limits(**{**wide, **limits}))
        self.producers: dict[str, ProducerState] = {}
        self.numbers: Counter[str] = Counter()

    def batch(self, user: str, count: int = 1, size: int = 100) -> Batch:
        if user not in self.producers:
            self.producers[user] = ProducerState(self.queue.user(user, 0.0), "p", "r", 0)
        first = self.numbers[user] + 1
        self.numbers[user] += count
        return Batch(self.producers[user], first, first + count - 1, size, f"{user}{first}", 0.0)

    def push(self, user: str, count: int = 1, size: int = 100) -> Batch:
        batch = self.batch(user, count, size)
        self.queue.push(batch)
        return batch

    def take(self, items: int = 1000, size: int = HUGE) -> list[str]:
        return [batch.payload for batch in self.queue.take(items, size)]


def test_a_users_batches_leave_in_the_order_they_came() -> None:
    users = Users()
    for _ in range(5):
        users.push("a")
    assert users.take(2) == ["a1", "a2"]
    assert users.take() == ["a3", "a4", "a5"]
    assert users.take() == []


def test_a_flood_is_served_in_turns_of_a_hundred_events() -> None:
    users = Users()
    for _ in range(100):
        users.push("flood", 10)
    users.push("b")
    users.push("c")
    order = users.take(16)
    assert order.index("b1") == 10
    assert order.index("c1") == 11
    assert len(order) == 16


def test_the_turn_counts_events_and_not_batches() -> None:
    users = Users()
    for _ in range(10):
        users.push("large", 60)
    for _ in range(10):
        users.push("small", 1)
    # One batch of 60 (a second would be over 100), then all the small ones.
    assert users.take(12) == ["large1", *[f"small{n}" for n in range(1, 11)], "large61"]


def test_a_batch_larger_than_a_turn_still_leaves() -> None:
    users = Users(turn_events=10)
    users.push("a", 100)
    users.push("a", 100)
    assert users.take(1) == ["a1"]
    assert users.take(1) == ["a101"]


def test_a_message_is_bounded_by_bytes_after_the_batch_that_reaches_them() -> None:
    users = Users()
    for user in "abcd":
        users.push(user, size=60)
    assert users.take(size=100) == ["a1", "b1"]


@pytest.mark.parametrize(("window", "flying"), [(10, 1), (20, 2), (25, 3)])
def test_the_window_of_one_user_closes_after_the_turn_that_reaches_it(window: int, flying: int) -> None:
    users = Users(user_window=window, turn_events=10)
    batches = [users.push("a", 10) for _ in range(6)]
    assert len(users.take()) == flying
    assert users.take() == []
    users.push("b")
    assert users.take() == ["b1"]
    users.queue.release(batches[0])
    assert users.take() == [batches[flying].payload]


def test_the_window_of_all_users_closes_too() -> None:
    users = Users(total_window=3)
    batches = [users.push(f"u{n}") for n in range(6)]
    assert len(users.take()) == 3
    assert users.take() == []
    users.queue.release(batches[0])
    assert users.take() == ["u31"]


def test_the_next_user_is_served_first_after_a_message_was_full() -> None:
    users = Users()
    for _ in range(300):
        users.push("a")
    for _ in range(300):
        users.push("b")
    first, second = users.take(128), users.take(128)
    assert Counter(p[0] for p in first) == {"a": 100, "b": 28}
    assert Counter(p[0] for p in second)["a"] >= 28


def test_after_a_rewind_everything_unacknowledged_leaves_again_in_its_order() -> None:
    users = Users()
    batches = [users.push("a") for _ in range(4)] + [users.push("b") for _ in range(2)]
    users.take(5)
    users.queue.release(batches[0])
    users.queue.rewind()
    users.push("a")
    taken = users.take()
    assert [p for p in taken if p[0] == "a"] == ["a2", "a3", "a4", "a5"]
    assert [p for p in taken if p[0] == "b"] == ["b1", "b2"]


def test_a_batch_given_up_while_it_waits_is_stepped_over() -> None:
    users = Users()
    batches = [users.push("a") for _ in range(3)]
    users.queue.release(batches[1])
    assert users.take() == ["a1", "a3"]
    assert users.queue.events == 2


def test_bounds_are_told_by_name_and_an_empty_queue_takes_anything() -> None:
    users = Users(user_events=10, user_bytes=1000, total_bytes=1500)
    a, b = users.queue.user("a", 0), users.queue.user("b", 0)
    assert users.queue.full_for(a, 100, 10_000) == ""
    users.push("a", 5, 900)
    assert users.queue.full_for(a, 6, 1) == "user_events"
    assert users.queue.full_for(a, 5, 101) == "user_bytes"
    assert users.queue.full_for(a, 5, 100) == ""
    assert users.queue.full_for(b, 1, 601) == "total_bytes"
    assert users.queue.full_for(b, 1, 600) == ""


def test_the_oldest_is_found_whether_it_flies_or_waits() -> None:
    users = Users()
    assert users.queue.oldest() is None
    first, second = users.push("a"), users.push("b")
    first.received, second.received = 5.0, 3.0
    assert users.queue.oldest() == 3.0
    users.take()
    assert users.queue.oldest() == 3.0
    users.queue.release(second)
    assert users.queue.oldest() == 5.0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_counts_are_right_and_nothing_is_lost_or_out_of_order(seed: int) -> None:
    dice = random.Random(seed)
    users = Users(user_window=30, total_window=100, turn_events=20)
    held: dict[str, list[Batch]] = {}
    sent: list[Batch] = []
    log: dict[str, list[int]] = {}
    for _ in range(2000):
        action = dice.random()
        if action < 0.45:
            user = f"u{dice.randrange(5)}"
            held.setdefault(user, []).append(users.push(user, dice.randrange(1, 12)))
        elif action < 0.75:
            sent += users.queue.take(dice.randrange(1, 10), HUGE)
        elif action < 0.97 and sent:
            batch = sent.pop(0)
            user = batch.producer.user.user_id
            log.setdefault(user, []).append(batch.first)
            held[user].remove(batch)
            users.queue.release(batch)
        elif action >= 0.97:
            users.queue.rewind()
            sent.clear()
        assert users.queue.events == sum(b.count for batches in held.values() for b in batches)
        assert users.queue.bytes == sum(b.size for batches in held.values() for b in batches)
    users.queue.rewind()
    sent.clear()
    while taken := users.queue.take(10, HUGE):
        for batch in taken:
            user = batch.producer.user.user_id
            log.setdefault(user, []).append(batch.first)
            held[user].remove(batch)
            users.queue.release(batch)
    assert not any(held.values())
    assert all(numbers == sorted(numbers) for numbers in log.values())
    assert users.queue.events == users.queue.bytes == 0
