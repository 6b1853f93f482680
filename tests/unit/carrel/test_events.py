"""The table of events and the check of one event's data."""

from __future__ import annotations

import enum
import re
import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import events
from carrel.errors import InvalidEventError, TooLargeError
from carrel.events import EVENTS, TERMINAL, Criticality, check_event_size, event_kind, validate_event
from carrel.frozen import freeze_map

GOOD: dict[str, dict[str, Any]] = {
    "agent_started": {"agent_name": "data"},
    "agent_thinking": {"text": "Looking"},
    "tool_executing": {"tool_name": "t", "tool_call_id": "c", "arguments": {"path": "a"}},
    "tool_completed": {"tool_name": "t", "tool_call_id": "c", "status": "ok", "duration_ms": 1.5, "result": [1]},
    "agent_completed": {"agent_name": "data", "result": {"a": 1}},
    "agent_error": {"code": "AGENT_FAILED", "message": "m", "advice": "a", "retryable": False},
    "agent_message": {"message_id": "m", "delta": "x"},
    "run_accepted": {"client_ref": None},
    "run_attempt": {"attempt": 2},
    "run_completed": {"status": "SUCCEEDED", "result": {}},
    "input_required": {"input_id": "i"},
    "event_rejected": {"event_type": "x", "reason": "r"},
    "log_gap": {},
}


def test_the_table_holds_every_kind_of_the_design() -> None:
    assert set(EVENTS) == set(GOOD)
    assert TERMINAL in EVENTS
    assert [name for name, kind in EVENTS.items() if kind.sheddable] == ["agent_thinking"]
    assert all(
        kind.criticality is Criticality.MISSION_CRITICAL for name, kind in EVENTS.items() if name != "agent_thinking"
    )
    assert {name for name, kind in EVENTS.items() if kind.source == "agent"} >= {"agent_started", "agent_message"}
    assert EVENTS["log_gap"].source == "log"
    assert EVENTS["run_completed"].source == "run"
    with pytest.raises(TypeError):
        EVENTS["x"] = EVENTS["log_gap"]  # type: ignore[index]  # what is refused


def test_the_documentation_names_every_field() -> None:
    for name, kind in EVENTS.items():
        line = re.search(rf"^    {name} +(.*)$", events.__doc__ or "", re.MULTILINE)
        assert line, name
        for field, rule in kind.schema.items():
            wanted = field if rule.required or field in kind.one_of else rf"{field}\?"
            assert re.search(rf"\b{wanted}(\W|$)", line[1]), (name, field)


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_good_data_passes_and_may_hold_more(kind: str) -> None:
    validate_event(kind, GOOD[kind])
    validate_event(kind, freeze_map({**GOOD[kind], "more": {"x": [1]}}, "data"))


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, f) for kind, k in EVENTS.items() for f, rule in k.schema.items() if rule.required]
)
def test_a_missing_or_wrong_required_field_is_named(kind: str, field: str) -> None:
    without = {name: value for name, value in GOOD[kind].items() if name != field}
    for data in (without, {**without, field: None}, {**without, field: {"secret": 1}}):
        with pytest.raises(InvalidEventError) as caught:
            validate_event(kind, data)
        assert set(caught.value.fields) == {field}
        assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        ("agent_thinking", {"heartbeat": 1}, "heartbeat"),
        ("agent_thinking", {"shed": True}, "shed"),
        ("agent_started", {"stage": 1.5}, "stage"),
        ("tool_completed", {"status": "fine"}, "status"),
        ("tool_completed", {"duration_ms": True}, "duration_ms"),
        ("tool_completed", {"error": "text"}, "error"),
        ("run_completed", {"status": "succeeded"}, "status"),
        ("agent_message", {"text": "y"}, "delta"),
        ("agent_message", {"delta": None}, "delta"),
        ("agent_completed", {"result": [1]}, "result"),
    ],
)
def test_wrong_fields_are_named(kind: str, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        validate_event(kind, {**GOOD[kind], **change})
    assert set(caught.value.fields) == {field}


def test_a_message_needs_exactly_one_of_delta_and_text() -> None:
    with pytest.raises(InvalidEventError):
        validate_event("agent_message", {"message_id": "m"})
    validate_event("agent_message", {"message_id": "m", "text": ""})


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_data_must_be_an_object(data: Any) -> None:
    with pytest.raises(InvalidEventError, match="object"):
        validate_event("agent_thinking", data)


def test_unknown_kinds_are_refused_with_the_list() -> None:
    for name in ("agent_thinkin", "", "AGENT_STARTED"):
        with pytest.raises(InvalidEventError) as caught:
            validate_event(name, {})
        assert "agent_thinking" in caught.value.advice


def test_subclasses_of_plain_types_pass() -> None:
    class Status(enum.StrEnum):
        OK = "ok"

    validate_event("tool_completed", {**GOOD["tool_completed"], "status": Status.OK})


def test_size_is_bounded_by_kind() -> None:
    bound = event_kind("agent_thinking").max_bytes
    check_event_size("agent_thinking", bound)
    with pytest.raises(TooLargeError) as caught:
        check_event_size("agent_thinking", bound + 1)
    assert (caught.value.limit_value, caught.value.use) == (bound, bound + 1)
    assert all(kind.max_bytes <= 256 * 1024 for kind in EVENTS.values())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(
    kind=st.sampled_from(sorted(EVENTS)),
    data=st.dictionaries(
        st.sampled_from(sorted({field for kind in EVENTS.values() for field in kind.schema})), JSON_VALUES, max_size=5
    ),
)
def test_the_quick_check_agrees_with_the_table(kind: str, data: dict[str, Any]) -> None:
    def fits(value: Any, rule: events.Field) -> bool:
        return type(value) in rule.types and (rule.choices is None or value in rule.choices)

    rules = EVENTS[kind]
    expected = all(
        fits(data[name], rule) if name in data else not rule.required for name, rule in rules.schema.items()
    ) and (not rules.one_of or sum(name in data for name in rules.one_of) == 1)
    try:
        validate_event(kind, data)
    except InvalidEventError:
        assert not expected
    else:
        assert expected


def test_validation_is_quick_enough_for_the_hot_path() -> None:
    data = GOOD["tool_completed"]
    best = min(timeit.repeat(lambda: validate_event("tool_completed", data), number=2000, repeat=7)) / 2000
    # 0.7 µs on the machine it was written on; the bound leaves room for a busy one.
    assert best < 5e-6
