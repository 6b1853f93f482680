"""Which agent_instance an attempt goes to."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from services.execution.domain.placement import Placement


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def placement(clock: Clock) -> Placement:
    return Placement(clock, random.Random(7))


def place(placement: Placement, addresses: list[str], attempts: int) -> Counter[str]:
    """Begin so many attempts, none of which ends."""
    counts: Counter[str] = Counter()
    for _ in range(attempts):
        address = placement.choose(addresses)
        placement.began(address)
        counts[address] += 1
    return counts


def test_an_attempt_goes_where_more_workers_are_free(placement: Placement) -> None:
    placement.said("a", busy=9, capacity=10)
    placement.said("b", busy=2, capacity=10)
    assert place(placement, ["a", "b"], 6) == Counter(b=6)


def test_what_was_sent_since_it_spoke_counts(placement: Placement) -> None:
    placement.said("a", busy=0, capacity=10)
    placement.said("b", busy=0, capacity=10)
    assert place(placement, ["a", "b"], 10) == Counter(a=5, b=5)


def test_a_large_one_gets_more_than_a_small_one(placement: Placement) -> None:
    placement.said("large", busy=0, capacity=30)
    placement.said("small", busy=0, capacity=10)
    assert place(placement, ["large", "small"], 30) == Counter(large=25, small=5)


def test_before_anybody_spoke_they_take_turns(placement: Placement) -> None:
    counts = place(placement, ["a", "b", "c"], 30)
    assert min(counts.values()) >= 7


def test_what_was_said_long_ago_counts_no_more(placement: Placement, clock: Clock) -> None:
    placement.said("a", busy=9, capacity=10)
    placement.said("b", busy=0, capacity=10)
    clock.now += 10
    assert place(placement, ["a", "b"], 10) == Counter(a=5, b=5)


def test_one_that_refused_is_passed_over_for_a_second_while_there_are_others(
    placement: Placement, clock: Clock
) -> None:
    placement.said("a", busy=0, capacity=10)
    placement.said("b", busy=8, capacity=10)
    placement.refused("a")
    assert placement.choose(["a", "b"]) == "b"
    assert placement.choose(["a"]) == "a"
    clock.now += 1.5
    assert placement.choose(["a", "b"]) == "a"


def test_ended_attempts_make_room(placement: Placement) -> None:
    placement.said("a", busy=0, capacity=4)
    placement.said("b", busy=0, capacity=4)
    place(placement, ["a", "b"], 8)
    placement.ended("a")
    assert placement.choose(["a", "b"]) == "a"


def test_among_many_two_are_compared_so_that_not_everybody_goes_to_the_best(clock: Clock) -> None:
    addresses = [f"a{number}" for number in range(10)]
    chosen: Counter[str] = Counter()
    for seed in range(50):
        placement = Placement(clock, random.Random(seed))
        for number, address in enumerate(addresses):
            placement.said(address, busy=number, capacity=20)
        chosen[placement.choose(addresses)] += 1
    assert chosen["a0"] < 25
    assert chosen["a9"] == 0


def test_those_that_are_gone_are_forgotten_unless_attempts_are_there(placement: Placement) -> None:
    for address in ("a", "b", "c"):
        placement.said(address, busy=5, capacity=10)
    placement.began("b")
    placement.forget(["c"])
    placement.ended("b")
    placement.said("b", busy=1, capacity=10)
    assert placement.choose(["b", "c"]) == "b"


def test_by_turns_while_the_switch_is_off_whatever_they_say(clock: Clock) -> None:
    on = False
    placement = Placement(clock, random.Random(7), by_load=lambda: on)
    placement.said("a", busy=10, capacity=10)
    placement.said("b", busy=0, capacity=10)
    assert place(placement, ["b", "a"], 10) == Counter(a=5, b=5)
    placement.refused("a")
    assert place(placement, ["a", "b"], 4) == Counter(b=4), "one that refused is still passed over"
    on = True
    clock.now += 2
    assert placement.choose(["a", "b"]) == "b"
