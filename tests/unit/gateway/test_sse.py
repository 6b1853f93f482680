"""Positions as ids, and blocks of server-sent events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import InvalidRequestError
from gateway.close_codes import CloseCode
from gateway.ring import Place
from gateway.sockets import Ending
from gateway.sse import block, first_words, heartbeat, last_words, parse_position, position_id

_IDS = st.text(st.sampled_from([chr(c) for c in range(33, 127) if c != 47]), min_size=1, max_size=128)


@given(epoch=st.text("0123456789abcdef", min_size=1, max_size=64), offset=st.integers(1, 1 << 35), event_id=_IDS)
def test_an_id_comes_back_as_the_place_it_was_made_of(epoch: str, offset: int, event_id: str) -> None:
    place = Place(epoch, offset, event_id)
    text = position_id(place)
    assert parse_position(text, "last_event_id") == place
    assert not {"\n", "\r", "\0"} & set(text)


def test_a_place_whose_entry_is_unknown_goes_back_to_everything_that_is_kept() -> None:
    assert position_id(Place("9f0c", 41)) == ":0:"
    assert parse_position(":0:", "last_event_id") == Place("", 0)
    assert parse_position(position_id(Place("9f0c", 0)), "last_event_id") == Place("9f0c", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        *("x", "9f0c", "9f0c:41", "9f0c:41:", ":41:evt", "9f0c:-1:evt", "9f0c:041:evt", "9f0c:4e1:evt", "9f0c:²:evt"),
        *("9f0c:41:evt/1", "9f0c:41:evt 1", "9f0c:41:" + "x" * 129, "9" * 65 + ":41:evt", "9f0c:" + "9" * 30 + ":evt"),
    ],
)
def test_a_malformed_id_is_refused_with_the_form(wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match="epoch:offset:event_id") as refused:
        parse_position(wrong, "Last-Event-ID")
    assert refused.value.fields == {"Last-Event-ID": "must be epoch:offset:event_id"}
    assert wrong not in str(refused.value)


def test_blocks_have_one_line_of_data_and_end_with_an_empty_one() -> None:
    made = block("reset", {"reason": "trimmed", "none": None}, Place("e", 4, "v"))
    assert made == b'id: e:4:v\nevent: reset\ndata: {"reason":"trimmed"}\n\n'
    assert heartbeat(Place("e", 4, "v")) == b": ping\nid: e:4:v\n\n"
    assert len({first_words() for _ in range(50)}) > 10


def test_bye_says_when_to_come_back_or_that_it_is_no_use() -> None:
    assert b"retry: 1234\n" in last_words(Ending(CloseCode.DRAIN, retry_ms=234))
    gone = last_words(Ending(CloseCode.FORBIDDEN))
    assert b"retry" not in gone
    assert b'"reconnect":false' in gone
