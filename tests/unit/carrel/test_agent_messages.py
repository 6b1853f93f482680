"""The codec between worker and host: everything round-trips, nothing malformed gets in."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import agent_messages
from carrel.agent_codec import decode, encode, from_dict, to_dict
from carrel.agent_messages import (
    MAX_MESSAGE_BYTES,
    CallTool,
    DownMessage,
    OpenChild,
    PutArtifact,
    Result,
    Start,
    UpMessage,
)
from carrel.errors import ProtocolError, TooLargeError
from carrel.frozen import freeze_map

CLASSES = [*typing.get_args(UpMessage), *typing.get_args(DownMessage)]
OBJECTS = st.dictionaries(st.text(max_size=5), st.none() | st.integers(0, 9) | st.text(max_size=5), max_size=3)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**40),
    str: st.text(max_size=9),
    bool: st.booleans(),
    bytes: st.binary(max_size=9),
    agent_messages.Object: OBJECTS,
    agent_messages.Object | None: st.none() | OBJECTS,
    int | None: st.none() | st.integers(0, 2**40),
    float | None: st.none() | st.floats(0.001, 1e6),
    tuple[str, ...]: st.lists(st.text(max_size=3), max_size=3).map(tuple),
    tuple[str, ...] | None: st.none() | st.lists(st.text(max_size=3), max_size=3).map(tuple),
    Any: st.none() | OBJECTS | st.lists(st.integers(0, 9), max_size=3),
}
MESSAGES = st.sampled_from(CLASSES).flatmap(
    lambda cls: st.builds(cls, **{name: BY_TYPE[hint] for name, hint in typing.get_type_hints(cls).items()})
)


@given(MESSAGES)
def test_every_message_round_trips(message: Any) -> None:
    assert decode(encode(message)) == message
    assert from_dict(to_dict(message)) == message


@given(MESSAGES, st.data())
def test_a_message_with_a_field_gone_wrong_is_refused(message: Any, data: st.DataObject) -> None:
    value = to_dict(message)
    names = [
        item.name for item in dataclasses.fields(message) if typing.get_type_hints(type(message))[item.name] != Any
    ]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    value[name] = "x" if typing.get_type_hints(type(message))[name] == float | None else 1.5
    with pytest.raises(ProtocolError):
        from_dict(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"type": 5}',
        b'{"type": "open_sesame"}',
        b'{"type": "call_tool"}',
        b'{"type": "call_tool", "call_id": -1, "handle": 0, "name": "x", "arguments": {}}',
        b'{"type": "call_tool", "call_id": true, "handle": 0, "name": "x", "arguments": {}}',
        b'{"type": "call_tool", "call_id": 1, "handle": 0, "name": "x", "arguments": []}',
        b'{"type": "call_tool", "call_id": 1, "handle": 0, "name": "x", "arguments": {}, "more": 1}',
        b'{"type": "put_artifact", "call_id": 1, "data": 7}',
        b'{"type": "put_artifact", "data": "***"}',
        b'{"type": "cancel_tool_body", "tool_call_id": "\xff"}',
        b"[" * 100_000,
        b" " * (MAX_MESSAGE_BYTES + 1),
    ],
)
def test_malformed_bytes_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_names_on_the_wire() -> None:
    assert to_dict(CallTool(1, 0, "t", {}))["type"] == "call_tool"
    assert to_dict(Start({}, "a", {}))["type"] == "start"
    assert to_dict(PutArtifact(1, 0, "n", "a/b", 1, b"\xff", True))["data"] == "/w=="


def test_defaults_may_be_left_out() -> None:
    assert from_dict({"type": "open_child", "call_id": 1, "handle": 0, "operation_name": "x"}) == OpenChild(1, 0, "x")


def test_frozen_values_are_encoded_like_plain_ones() -> None:
    assert decode(encode(Result(freeze_map({"a": [1, {"b": 2}]}, "r")))) == Result({"a": [1, {"b": 2}]})


def test_what_cannot_be_sent_is_refused_by_the_sender() -> None:
    with pytest.raises(ProtocolError):
        encode(Result({"a": object()}))
    with pytest.raises(TooLargeError) as caught:
        encode(Result({"a": "x" * MAX_MESSAGE_BYTES}))
    assert caught.value.limit == "message_bytes"
