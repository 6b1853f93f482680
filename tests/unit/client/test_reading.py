"""What a reader keeps in mind, at every split of a stream and over resets and batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.client.models import Event, Position
from carrel.client.reading import Notice, Reader
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
        got += offsets(reader, *log[start:cut])
        reader.begin()
        connected(reader, start)
    assert got == list(range(1, 21))
    assert reader.holes == 0


def test_batch_is_its_events() -> None:
    reader = connected(Reader(Position()))
    batch = {"event_type": "event_batch", "batch_size": 2, "compressed": False, "events": [event(1), event(2)]}
    assert offsets(reader, batch, event(2), event(3)) == [1, 2, 3]
    assert reader.duplicates == 1


def test_hole_is_counted_unless_it_was_announced_or_the_stream_is_filtered() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1), event(3)) == [1, 3]
    assert reader.holes == 1
    assert [item.kind for item in reader.take({"type": "gap", "from": 4, "to": 8}) if isinstance(item, Notice)]
    assert offsets(reader, event(9)) == [9]
    assert reader.holes == 1
    filtered = connected(Reader(Position(), filtered=True))
    assert offsets(filtered, event(1), event(7)) == [1, 7]
    assert filtered.holes == 0


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
    connected(reader, 0, "e2")
    assert offsets(reader, event(1), event(2)) == [1, 2]
    assert reader.position == Position("e2", 2, "ev-2")


def test_event_seen_before_the_reset_is_not_given_again() -> None:
    reader = connected(Reader(Position()))
    assert offsets(reader, event(1), event(2)) == [1, 2]
    list(reader.take({"type": "reset", "reason": "trimmed", "epoch": "e2", "offset": 4}))
    assert offsets(reader, event(5, event_id="ev-2"), event(6)) == [6]
    assert reader.holes == 0


@pytest.mark.parametrize("field", ["offset", "event_id", "user_id", "run_id", "request_id"])
def test_event_without_a_field_is_a_protocol_error(field: str) -> None:
    body = event(1)
    del body[field]
    with pytest.raises(ProtocolError, match=field):
        list(Reader().take(body))


def test_event_survives_the_way_to_json_and_back() -> None:
    body = event(3, parent_request_id="q", request_id="q_child")
    assert Event.from_json(body).to_json() == body
