"""Frames in and out: parsing never fails but with an error of the protocol, encoding is exact."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import CarrelError, FrameError, TooLargeError, UnknownFrameError
from carrel.events import validate_event
from gateway.close_codes import CloseCode, close_code_for
from gateway.encoding import control, encode_entry, event_batch, iso_time, ws_text
from gateway.fields import Rule, check_fields
from gateway.frames import MAX_FRAME_BYTES, connect_options, parse_frame
from gateway.ring import Place
from tests.unit.gateway.entries import entry

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KINDS = ["connect", "agent_execute", "agent_cancel", "input_provide", "ack", "ping", "pong", "refresh"]


@given(st.text(max_size=200))
def test_any_text_is_a_frame_or_a_frame_error(text: str) -> None:
    with contextlib.suppress(FrameError):
        parse_frame(text).checked()


@given(kind=st.sampled_from(KINDS), fields=st.dictionaries(st.text(max_size=12), JSON, max_size=5), resume=JSON)
def test_any_fields_are_fine_or_an_error_that_names_them(kind: str, fields: dict[str, Any], resume: object) -> None:
    try:
        text = orjson.dumps({**fields, "resume": resume, "type": kind}).decode()
    except (TypeError, orjson.JSONEncodeError):
        return
    frame = parse_frame(text)
    refusal: CarrelError | None = None
    try:
        _ = connect_options(frame) if kind == "connect" else frame.checked()
    except CarrelError as error:
        refusal = error
    assert refusal is None or (refusal.message and close_code_for(refusal) is CloseCode.BAD_FRAME)


def test_a_frame_of_unknown_type_keeps_its_client_ref_for_the_error() -> None:
    frame = parse_frame('{"type":"execute","client_ref":"r1"}')
    assert frame.client_ref == "r1"
    with pytest.raises(UnknownFrameError) as refused:
        frame.checked()
    assert "agent_execute" in refused.value.advice


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"type":"ping","type":"ping"}', "type"),
        ('{"type":"ping", "client_ref":"a", "client_ref":"b"}', "client_ref"),
        ('{"type":"agent_execute","message":"m","params":{"a":[{"b":1e5,"b":1e5}]}}', "b"),
        ('{"type":"ping","\\u0074ype":"agent_cancel"}', "type"),
    ],
)
def test_a_name_that_comes_twice_is_refused_wherever_it_stands(text: str, name: str) -> None:
    with pytest.raises(FrameError, match="twice") as refused:
        parse_frame(text)
    assert refused.value.fields == {name: "is there twice"}


def test_equal_names_in_different_objects_and_long_numbers_are_fine() -> None:
    text = '{"type":"agent_execute","message":"m","params":{"a":[{"b":1},{"b":%s}],"b":{"b":1}}}'
    assert parse_frame(text % ("0." + "9" * 5000)).checked()["params"]["b"] == {"b": 1}


def test_a_deeply_nested_frame_is_fine_or_a_frame_error() -> None:
    for depth in (500, 1000, 5000):
        with contextlib.suppress(FrameError):
            parse_frame('{"type":"ping","x":' + "[" * depth + "]" * depth + "}")


@pytest.mark.parametrize(("text", "fits"), [("x" * MAX_FRAME_BYTES, True), ("x" * (MAX_FRAME_BYTES + 1), False)])
def test_the_bound_of_a_frame_is_exact(text: str, fits: bool) -> None:
    with pytest.raises(FrameError if fits else TooLargeError):
        parse_frame(text)
    with pytest.raises(TooLargeError):
        parse_frame("€" * (MAX_FRAME_BYTES // 3 + 1))


def test_connect_options() -> None:
    text = '{"type":"connect","token":"t","thread_id":"th-1","batch":true,"ack":true,"resume":%s}'
    options = connect_options(parse_frame(text % '{"epoch":"e","offset":7,"event_id":"v"}'))
    assert (options.token, options.thread_id, options.batch) == ("t", "th-1", True)
    assert options.resume == Place("e", 7, "v")
    assert connect_options(parse_frame('{"type":"connect","resume":{"offset":0}}')).resume == Place("", 0)
    for wrong in ('{"offset":7}', '{"offset":7,"epoch":"e"}', '{"offset":-1}', '{"epoch":"e"}', "[]", '{"offset":1.5}'):
        with pytest.raises(FrameError):
            connect_options(parse_frame(text % wrong))
    with pytest.raises(FrameError):
        connect_options(parse_frame('{"type":"connect","token":"t","socket_token":"s"}'))


def test_every_problem_is_named_at_once_and_no_value_is_repeated() -> None:
    rules = {"a": Rule(str, required=True), "b": Rule(int, least=1), "c": Rule(list)}
    with pytest.raises(FrameError) as refused:
        check_fields({"b": 0, "c": [1], "secret-value": "secret-value-2"}, rules, "the frame", FrameError)
    assert set(refused.value.fields) == {"a", "b", "c", "secret-value"}
    assert "secret-value-2" not in str(refused.value)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_frames_header_has_the_length_of_rfc_6455(size: int) -> None:
    wire = ws_text(b"x" * size)
    assert wire[0] == 0x81
    head = 2 if size < 126 else 4 if size < 65_536 else 10
    assert len(wire) == head + size
    length = wire[1] if head == 2 else int.from_bytes(wire[2:head], "big")
    assert (length, wire[1] & 0x80) == (size, 0)


def test_an_entry_is_one_flat_object_with_its_data_as_it_was_written() -> None:
    made = entry(5, data=b'{"text": "\\u00fc", "n": 1.50}')
    made.parent_request_id = "req-0"
    frame = encode_entry("alice", made)
    assert frame[:3] == (5, "evt-5", "thread-1")
    assert orjson.loads(frame.wire[frame.head :]) == {
        "event_type": "agent_thinking",
        "event_id": "evt-5",
        "offset": 5,
        "user_id": "alice",
        "thread_id": "thread-1",
        "run_id": "run-1",
        "request_id": "req-1",
        "parent_request_id": "req-0",
        "agent_name": "data",
        "attempt": 1,
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "data": {"text": "ü", "n": 1.5},
    }
    assert b'"data":{"text": "\\u00fc", "n": 1.50}' in frame.wire
    batch = event_batch([frame, frame])
    assert orjson.loads(batch[4:])["events"][1]["offset"] == 5


def test_an_entry_without_data_has_an_empty_object() -> None:
    frame = encode_entry("alice", entry(1, data=b""))
    assert orjson.loads(frame.wire[frame.head :])["data"] == {}


@given(st.integers(0, 4_102_444_800), st.integers(0, 999_999_999))
def test_times_are_iso_8601_in_utc(seconds: int, nanos: int) -> None:
    from datetime import UTC, datetime

    expected = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1000)
    assert datetime.fromisoformat(iso_time(seconds, nanos)) == expected


UNREADABLE: dict[str, dict[str, Any]] = {
    "a time after the year 9999": {"seconds": 2**62},
    "a time just after it": {"seconds": 253_402_300_800},
    "a time before the year 1": {"seconds": -(2**62)},
    "odd nanos": {"nanos": -1},
    "too many nanos": {"nanos": 1_000_000_000},
    "data that is not UTF-8": {"data": b'{"text":"\xff"}'},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_cannot_be_encoded_is_shown_as_rejected_in_its_place(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = entry(5)
    made.event_id = f"evt-{name}"
    for field, value in UNREADABLE[name].items():
        setattr(made if field == "data" else made.timestamp, field, value)
    frames = [encode_entry("alice", made) for _ in range(3)]
    assert frames[0][:3] == (5, made.event_id, "thread-1")
    shown = orjson.loads(frames[0].wire[frames[0].head :])
    assert (shown["event_type"], shown["offset"], shown["run_id"]) == ("event_rejected", 5, "run-1")
    assert shown["timestamp"] == "1970-01-01T00:00:00.000000Z"
    validate_event("event_rejected", shown["data"])
    assert shown["data"]["event_type"] == "agent_thinking"
    assert len([r for r in caplog.records if "could not be encoded" in r.getMessage()]) == 1


def test_the_first_and_the_last_second_have_a_time() -> None:
    assert iso_time(-62_135_596_800, 0) == "0001-01-01T00:00:00.000000Z"
    assert iso_time(253_402_300_799, 999_999_999) == "9999-12-31T23:59:59.999999Z"


def test_controls_leave_out_what_is_none() -> None:
    assert control("pong", {"client_ref": None})[2:] == b'{"type":"pong"}'


def test_close_codes_keep_their_ranges() -> None:
    assert {code.name: (int(code), code.reconnect) for code in CloseCode} == {
        "DRAIN": (4000, True),
        "SLOW": (4001, True),
        "EXPIRED": (4002, True),
        "UPSTREAM": (4003, True),
        "INTERNAL": (4004, True),
        "ACK_TIMEOUT": (4005, True),
        "BAD_TOKEN": (4500, False),
        "BAD_FRAME": (4501, False),
        "FORBIDDEN": (4503, False),
        "LIMIT": (4504, False),
        "HANDSHAKE_TIMEOUT": (4505, False),
    }
