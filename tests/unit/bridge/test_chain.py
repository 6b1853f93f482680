"""Whether what is read follows what was seen: every way in which a log may have become another one."""

from __future__ import annotations

import pytest

from services.bridge.domain.chain import Break, break_of, following, mark_after
from services.bridge.models import Entry, Position, ReadResult, ResetReason, ResumePoint

POINT = ResumePoint("e1", 5, "ev5", "ev5")
START = ResumePoint("e1", 0, "")


def read(*, epoch: str = "e1", top: int = 8, oldest: int = 1, anchor: str | None = "ev5") -> ReadResult:
    first = max(6, oldest)
    entries = tuple(Entry(n, f"ev{n}", b"") for n in range(first, top + 1))
    return ReadResult(entries, Position(epoch, top, oldest, f"ev{top}"), oldest > 6, anchor)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (read(), None),
        (read(anchor=None), None),
        (read(top=5), None),
        (read(top=4, anchor=""), Break(ResetReason.BEYOND_TOP, START)),
        (read(top=4, anchor="", epoch="e2"), Break(ResetReason.EPOCH_CHANGED, START._replace(epoch="e2"))),
        (read(anchor="other"), Break(ResetReason.EVENT_MISMATCH, START)),
        (read(anchor="other", epoch="e2"), Break(ResetReason.EPOCH_CHANGED, START._replace(epoch="e2"))),
        (read(epoch="e2"), Break(ResetReason.EPOCH_CHANGED, POINT._replace(epoch="e2"))),
        (read(epoch="e2", anchor=None), Break(ResetReason.EPOCH_CHANGED, POINT._replace(epoch="e2"))),
        (read(oldest=8, anchor=""), Break(ResetReason.TRIMMED, ResumePoint("e1", 7, ""))),
        (read(oldest=6, anchor=""), Break(ResetReason.TRIMMED, ResumePoint("e1", 5, ""))),
    ],
)
def test_break_names_the_reason_and_where_to_go_on(result: ReadResult, expected: Break | None) -> None:
    assert break_of(POINT, result) == expected


def test_who_has_seen_nothing_yet_has_nothing_to_compare() -> None:
    assert break_of(ResumePoint("e1", 5, "ev5"), read(anchor="other")) is None
    from_the_first = tuple(Entry(n, f"ev{n}", b"") for n in range(1, 9))
    assert break_of(ResumePoint("e1", 0, ""), read(anchor="")._replace(entries=from_the_first)) is None


def test_hole_is_passed_over_and_told() -> None:
    whole = read()
    behind = whole._replace(entries=whole.entries[1:])
    assert break_of(POINT, behind) == Break(ResetReason.TRIMMED, ResumePoint("e1", 6, ""))
    other = behind._replace(position=behind.position._replace(epoch="e2"))
    assert break_of(POINT, other) == Break(ResetReason.EPOCH_CHANGED, ResumePoint("e2", 6, ""))
    nothing = whole._replace(entries=(), position=whole.position._replace(mark="m8"))
    assert break_of(POINT, nothing) == Break(ResetReason.TRIMMED, ResumePoint("e1", 8, "ev8", "m8"))


def test_entries_are_taken_up_to_a_hole_only() -> None:
    whole = read()._replace(mark="m8")
    within = whole._replace(entries=(whole.entries[0], whole.entries[2]))
    entries = following(POINT, within)
    assert [entry.offset for entry in entries] == [6]
    assert (mark_after(entries, within), mark_after(whole.entries, whole)) == ("", "m8")
    twice = whole._replace(entries=(whole.entries[0], whole.entries[0], whole.entries[2]))
    assert following(POINT, twice) == whole.entries[:1]


def test_only_entries_right_after_the_point_are_taken() -> None:
    assert [entry.offset for entry in following(POINT, read())] == [6, 7, 8]
    assert following(START, read(anchor="other")) == ()
    assert [entry.offset for entry in following(ResumePoint("e1", 7, ""), read(oldest=8))] == [8]
    assert following(POINT, read(top=5)) == ()
