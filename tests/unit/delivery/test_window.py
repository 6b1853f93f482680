"""The window over a producer's numbers: what is kept, what is to be sent next."""

from __future__ import annotations

import random

from carrel.v1.events_pb2 import Event
from servicekit.delivery.window import Window


def window(events: int) -> Window:
    result = Window()
    for _ in range(events):
        result.add(Event(number=result.next), None, 100)
    return result


def numbers(part: Window, count: int = 100) -> list[int]:
    return [event.number for event in part.slice(count, 1 << 20).events] if part.unsent else []


def test_an_acknowledgement_of_what_is_to_be_sent_again_moves_the_cursor_past_it() -> None:
    part = window(10)
    numbers(part)
    part.rewind(0)
    part.release(6)
    assert numbers(part) == [7, 8, 9, 10]


def test_a_rewind_goes_neither_forward_nor_into_what_is_acknowledged() -> None:
    part = window(10)
    numbers(part, 5)
    part.release(3)
    part.rewind(8)
    assert numbers(part, 1) == [6]
    part.rewind(1)
    assert numbers(part, 1) == [4]


def test_an_acknowledgement_beyond_what_was_made_is_held_to_that() -> None:
    part = window(3)
    assert part.release(99)
    assert (part.acked, len(part), part.size) == (3, 0, 0)
    assert not part.release(99)


def test_whatever_is_acknowledged_and_rewound_everything_is_sent_in_order_and_kept_until_then() -> None:
    dice = random.Random(5)
    part, log = Window(), 0
    for _ in range(5000):
        match dice.randrange(4):
            case 0:
                part.add(Event(number=part.next), None, dice.randrange(1000))
            case 1:
                for number in numbers(part, dice.randrange(1, 20)):
                    # The log takes what follows, ignores what it has, and is never offered a hole.
                    assert number <= log + 1
                    log = max(log, number)
            case 2:
                part.release(dice.randrange(log + 1))
            case 3:
                part.rewind(dice.randrange(part.next))
        assert len(part) == part.next - 1 - part.acked
        assert part.acked < part.cursor <= part.next
