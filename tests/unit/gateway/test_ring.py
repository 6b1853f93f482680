"""The ring's bounds, and that a cursor over it never skips and never repeats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.encoding import Frame, ws_text
from gateway.ring import Cursor, Place, Ring, Taken


def frame(offset: int, *, size: int = 10, thread: str = "t") -> Frame:
    wire = ws_text(b"x" * size)
    return Frame(offset, f"evt-{offset}", thread, len(wire) - size, wire)


def filled(first: int, last: int, *, most: int = 1000, size: int = 10) -> Ring:
    ring = Ring(most, 1 << 20)
    ring.restart(Place("e", first - 1, f"evt-{first - 1}" if first > 1 else ""))
    for offset in range(first, last + 1):
        assert ring.append(frame(offset, size=size))
    return ring


def offsets(items: object) -> list[int]:
    assert isinstance(items, list)
    return [item.offset for item in items]


def test_the_oldest_go_when_either_bound_is_reached() -> None:
    ring = filled(1, 25, most=10)
    assert (len(ring), ring.base, ring.top) == (10, 15, Place("e", 25, "evt-25"))
    small = Ring(1000, 1000)
    small.restart(Place("e", 0))
    for offset in range(1, 100):
        small.append(frame(offset, size=98))
        assert small.size <= 1000
    assert len(small) == 10


def test_one_event_over_the_byte_bound_is_held_alone() -> None:
    ring = Ring(10, 100)
    ring.restart(Place("e", 0))
    ring.append(frame(1))
    ring.append(frame(2, size=5000))
    assert (len(ring), ring.base) == (1, 1)


def test_a_repeat_is_ignored_and_after_a_hole_only_the_rest_is_held() -> None:
    ring = filled(1, 5)
    assert not ring.append(frame(3))
    assert ring.append(frame(9))
    assert (ring.base, ring.top.offset, len(ring)) == (8, 9, 1)
    assert ring.after(5, 10, 1000) is None


def test_a_ring_knows_a_place_only_if_epoch_offset_and_event_are_right() -> None:
    ring = filled(1, 30, most=10)
    assert ring.knows(Place("e", 25, "evt-25"))
    assert ring.knows(Place("e", 20, "evt-20")), "the last to go"
    for wrong in (
        Place("f", 25, "evt-25"),
        Place("e", 25, "evt-24"),
        Place("e", 25),
        Place("e", 19, "evt-19"),
        Place("e", 31, "evt-31"),
        Place("e", 0),
    ):
        assert not ring.knows(wrong), wrong


def test_a_restart_makes_cursors_ask_the_log_and_a_turn_does_not() -> None:
    ring = filled(1, 5)
    cursor = Cursor(Place("e", 5, "evt-5"), ring.version)
    ring.turn("f")
    assert cursor.take(ring, 10, 1000) is Taken.NEW_EPOCH
    cursor.move(Place("f", 5, "evt-5"), ring.version)
    assert cursor.take(ring, 10, 1000) is Taken.NOTHING_NEW
    ring.restart(Place("f", 2, "evt-2"))
    assert cursor.take(ring, 10, 1000) is Taken.READ_LOG


def test_a_cursor_ahead_of_the_ring_waits_and_one_behind_it_reads_the_log() -> None:
    ring = filled(6, 10)
    assert Cursor(Place("e", 12, "x"), ring.version).take(ring, 10, 1000) is Taken.NOTHING_NEW
    assert Cursor(Place("e", 4, "x"), ring.version).take(ring, 10, 1000) is Taken.READ_LOG
    assert offsets(Cursor(Place("e", 5, "x"), ring.version).take(ring, 3, 1000)) == [6, 7, 8]


def test_taking_is_bounded_in_bytes_but_gives_one_at_least() -> None:
    ring = filled(1, 5, size=100)
    assert offsets(ring.after(0, 10, 250)) == [1, 2]
    assert offsets(ring.after(0, 10, 1)) == [1]


@given(
    steps=st.lists(st.one_of(st.integers(1, 7).map(lambda n: ("append", n)), st.just(("take", 0))), max_size=60),
    most=st.integers(1, 12),
    start=st.integers(0, 5),
    per_take=st.integers(1, 9),
)
def test_whatever_the_order_of_appends_and_takes_nothing_is_skipped_or_repeated(
    steps: list[tuple[str, int]], most: int, start: int, per_take: int
) -> None:
    ring = Ring(most, 1 << 20)
    ring.restart(Place("e", start))
    cursor, seen, top = Cursor(Place("e", start), ring.version), list[int](), start
    for what, count in [*steps, ("take", 0)]:
        if what == "append":
            for _ in range(count):
                top += 1
                ring.append(frame(top))
            continue
        while (taken := cursor.take(ring, per_take, 1 << 20)) is not Taken.NOTHING_NEW:
            if taken is Taken.READ_LOG:
                # The log has everything: give what the ring has lost, as a piece of it.
                taken = list(cursor.advance([frame(at) for at in range(cursor.place.offset + 1, ring.base + 1)]))
            seen += offsets(taken)
    assert seen == list(range(start + 1, top + 1))


@given(threads=st.lists(st.sampled_from("ab"), min_size=1, max_size=40), per_take=st.integers(1, 7))
def test_a_filter_leaves_no_offset_unexplained(threads: list[str], per_take: int) -> None:
    ring = Ring(100, 1 << 20)
    ring.restart(Place("e", 0))
    for offset, thread in enumerate(threads, 1):
        ring.append(frame(offset, thread=thread))
    cursor, last, wanted = Cursor(Place("e", 0), ring.version, "a"), 0, list[int]()
    while isinstance(items := cursor.take(ring, per_take, 1 << 20), list):
        for item in items:
            if isinstance(item, Frame):
                assert item.offset == last + 1
                wanted.append(item.offset)
            else:
                assert item.offset > last
                assert item.event_id == f"evt-{item.offset}"
            last = item.offset
    assert wanted == [offset for offset, thread in enumerate(threads, 1) if thread == "a"]
    told = cursor.passed_over.offset if cursor.passed_over else last
    assert told == len(threads)
