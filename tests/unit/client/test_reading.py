"""What a reader keeps in mind, at every split of a stream and over resets and batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.client.models import Event, Position
from carrel.client.notices import Gap, Reset
from carrel.client.reading import AstrayError, Reader
from carrel.errors import ProtocolError
from tests.support.fake_gateway import event


def offsets(reader: Reader, *frames: dict[str, object]) -> list[int]:
    return [item.offset for frame in frames for item in reader.take(frame) if isinstance(item, Event)]


def connected(reader: Reader, offset: int = 0, epoch: str = "e1") -> Reader:
    reader.connected({"type": "connected", "epoch": epoch, "offset": offset})
    return reader


@given(cuts=st.lists(st.integers(0, 20), max_size=6), behind=st.integers(0, 20))
def test_every_event_once_in_order_whatever_is_sent_again(cuts: list[int], behind: int) -> None:
    log = [event(n) for n in range(1, 21)]
    reader = connected(Reader(Position()))
    got: list[int] = []
    for cut in [*sorted(cuts), 20]:
        start = max(0, reader.position.offset - behind)
        reader.begin()
        connected(reader, start)
        got += offsets(reader, *log[start:cut])
    assert got == list(range(1, 21))
    assert reader.holes == 0


def test_batch_is_its_events() -> None:
    reader = connected(Reader(Position()))
    batch = {"event_type": "event_batch", "batch_size": 2, "compressed": False, "events": [event(1), event(2)]}
    assert offsets(reader, batch, event(2), event(3)) == [1, 2, 3]
    assert reader.duplicates == 1


def test_hole_is_asked_for_once_more_and_then_told() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1)) == [1]
    with pytest.raises(AstrayError, match="2 to 3"):
        offsets(reader, event(4))
    assert reader.position == Position("e1", 1, "ev-1")
    reader.begin()
    connected(reader, 1)
    gap, item = reader.take(event(4))
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.announced) == (2, 3, False)
    assert isinstance(item, Event)
    assert reader.holes == 2


def test_hole_that_was_mended_is_told_to_nobody() -> None:
    reader = connected(Reader(Position()))
    with pytest.raises(AstrayError):
        offsets(reader, event(2))
    reader.begin()
    connected(reader, 0)
    assert offsets(reader, event(1), event(2)) == [1, 2]


def test_announced_gap_explains_a_jump_and_no_more_than_that() -> None:
    reader = connected(Reader(Position()))
    gap = next(reader.take({"type": "gap", "from": 1, "to": 8}))
    assert isinstance(gap, Gap)
    assert gap.announced
    assert offsets(reader, event(9)) == [9]
    assert reader.holes == 0
    with pytest.raises(AstrayError, match="10 to 10"):
        list(reader.take({"type": "gap", "from": 11, "to": 12}))


def test_filtered_stream_is_explained_by_through_and_resumes_from_it() -> None:
    reader = connected(Reader(Position(), filtered=True))
    assert offsets(reader, event(1)) == [1]
    place = {"type": "through", "epoch": "e1", "offset": 6, "event_id": "ev-6"}
    assert list(reader.take(place)) == [Position("e1", 6, "ev-6")]
    assert reader.resume() == {"resume": {"epoch": "e1", "offset": 6, "event_id": "ev-6"}}
    assert offsets(reader, event(7)) == [7]
    with pytest.raises(AstrayError):
        offsets(reader, event(9))


def test_stream_of_one_run_skips_without_a_word() -> None:
    reader = connected(Reader(Position(), explained=False))
    assert offsets(reader, event(1), event(7)) == [1, 7]
    assert reader.holes == 0


def test_heartbeat_shows_a_lost_tail_on_either_side() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1), event(2)) == [1, 2]
    ping = {"type": "ping", "epoch": "e1", "offset": 2}
    assert list(reader.take(ping)) == []
    for wrong in ({"offset": 1}, {"offset": 3}, {"epoch": "e2"}):
        with pytest.raises(AstrayError):
            list(reader.take(ping | wrong))
    # The end of a filtered stream may be others'.
    filtered = connected(Reader(Position(), filtered=True))
    assert list(filtered.take(ping)) == []


def test_another_event_at_the_readers_offset_is_no_duplicate() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1)) == [1]
    with pytest.raises(ProtocolError, match="another event for the offset 1"):
        offsets(reader, event(1, event_id="other"))


def test_event_of_another_user_is_refused() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1)) == [1]
    with pytest.raises(ProtocolError, match="another user"):
        offsets(reader, event(2, user_id="bob"))


def test_a_lost_position_stays_until_the_reset_is_here() -> None:
    reader = connected(Reader(Position("e1", 5, "ev-5")), 5)
    reader.begin()
    assert reader.connected({"epoch": "e2", "offset": 0, "recovered": False}) == []
    with pytest.raises(ProtocolError, match="before it sent an event"):
        offsets(reader, event(1))
    # The connection was lost before the reset came: the old position is asked about again.
    assert reader.resume() == {"resume": {"epoch": "e1", "offset": 5, "event_id": "ev-5"}}
    reader.begin()
    reader.connected({"epoch": "e2", "offset": 0, "recovered": False})
    (reset,) = reader.take({"type": "reset", "reason": "epoch_changed", "epoch": "e2", "offset": 0})
    assert isinstance(reset, Reset)
    assert (reset.reason, reset.position) == ("epoch_changed", Position("e2", 0))
    assert offsets(reader, event(1)) == [1]


def test_epoch_change_in_place_keeps_the_last_event_to_resume_from() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1)) == [1]
    list(reader.take({"type": "reset", "reason": "epoch_changed", "epoch": "e2", "offset": 1}))
    assert reader.resume() == {"resume": {"epoch": "e2", "offset": 1, "event_id": "ev-1"}}


def test_what_was_trimmed_while_nothing_could_be_compared_is_told() -> None:
    reader = connected(Reader(), 7)
    reader.begin()
    (gap,) = reader.connected({"epoch": "e1", "offset": 20, "recovered": True})
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.announced) == (8, 20, False)
    assert offsets(reader, event(21)) == [21]


def test_beginning_with_everything_that_is_kept_tells_nothing() -> None:
    reader = Reader(Position())
    assert reader.connected({"epoch": "e1", "offset": 20, "recovered": True}) == []
    assert offsets(reader, event(21)) == [21]


def test_resume_says_nothing_then_everything_then_the_place() -> None:
    reader = Reader()
    assert reader.resume() == {}
    connected(reader, 7)
    assert reader.resume() == {"resume": {"offset": 0}}
    assert offsets(reader, event(8)) == [8]
    assert reader.resume() == {"resume": {"epoch": "e1", "offset": 8, "event_id": "ev-8"}}


def test_place_told_with_its_event_id_is_used_as_it_is() -> None:
    reader = Reader()
    reader.connected({"epoch": "e1", "offset": 7, "event_id": "ev-7"})
    assert reader.resume() == {"resume": {"epoch": "e1", "offset": 7, "event_id": "ev-7"}}


def test_epoch_that_changed_while_away_makes_offsets_begin_anew() -> None:
    reader = connected(Reader(), 7)
    (reset,) = reader.connected({"epoch": "e2", "offset": 0})
    assert isinstance(reset, Reset)
    assert offsets(reader, event(1), event(2)) == [1, 2]
    assert reader.position == Position("e2", 2, "ev-2")


def test_event_seen_before_the_reset_is_not_given_again() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1), event(2)) == [1, 2]
    list(reader.take({"type": "reset", "reason": "trimmed", "epoch": "e2", "offset": 4}))
    # The place is told all the same: it is to be acknowledged.
    assert list(reader.take(event(5, event_id="ev-2"))) == [Position("e2", 5, "ev-2")]
    assert offsets(reader, event(6)) == [6]
    assert reader.holes == 0


def test_event_seen_before_the_reset_is_given_again_to_whoever_asks_for_it() -> None:
    reader = connected(Reader(Position(), repeat=True))
    assert offsets(reader, event(1), event(2)) == [1, 2]
    list(reader.take({"type": "reset", "reason": "trimmed", "epoch": "e2", "offset": 0}))
    assert offsets(reader, event(1), event(2)) == [1, 2]


@pytest.mark.parametrize("field", ["offset", "event_id", "user_id", "run_id", "request_id"])
def test_event_without_a_field_is_a_protocol_error(field: str) -> None:
    body = event(1)
    del body[field]
    with pytest.raises(ProtocolError, match=field):
        list(Reader().take(body))


def test_event_survives_the_way_to_json_and_back() -> None:
    body = event(3, parent_request_id="q", request_id="q_child")
    assert Event.from_json(body).to_json() == body
