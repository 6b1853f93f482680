"""The log as events of AG-UI: any log comes out in order; cut anywhere, the two halves are the whole."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from ag_ui.core import PROTOCOL_VERSION
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.events import EVENTS, validate_event
from gateway import ag_ui_mapping
from gateway.ag_ui_mapping import Names, Translation
from tests.ag_ui.rules import Rules, texts
from tests.support.stack import ROOT

Entry = dict[str, Any]
RECORDED: Final[list[Entry]] = json.loads((ROOT / "tests" / "js" / "recorded_run.json").read_text())
NAMES: Final = Names("my thread", "their run", "thread-1", "run-1", state={"theirs": 1})
REQUESTS: Final = ("req-1", "req-1_a", "req-1_a_b", "req-1_c")


def entry(kind: str, data: dict[str, Any], number: int = 1, **envelope: Any) -> Entry:
    """An event as readers of the log get it."""
    return {
        "event_type": kind,
        "event_id": f"evt-{number}",
        "offset": number,
        "request_id": "req-1",
        "agent_name": "data",
        "attempt": 1,
        "timestamp": "2026-01-02T03:04:05.678901Z",
        **envelope,
        "data": data,
    }


def told(log: list[Entry], names: Names = NAMES) -> list[Entry]:
    """All that a reader gets of a log, checked."""
    translation, rules = Translation(names), Rules()
    events = [event for item in log for event in translation.feed(item)]
    for event in events:
        rules.take(event)
    assert translation.ended == rules.ended
    return events


def kinds(events: list[Entry]) -> list[str]:
    return [event["type"] for event in events]


words = st.sampled_from(["", "one ", "two ", "one two "])
ids = st.sampled_from(["x", "y", "z"])
DATA: Final[dict[str, st.SearchStrategy[dict[str, Any]]]] = {
    "run_accepted": st.fixed_dictionaries({}, optional={"status": st.just("QUEUED")}),
    "run_attempt": st.fixed_dictionaries({"attempt": st.integers(1, 4)}),
    "run_completed": st.fixed_dictionaries(
        {"status": st.sampled_from(["SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"])},
        optional={"result": st.just({"a": 1}), "error": st.just({"code": "X", "message": "m"})},
    ),
    "agent_started": st.fixed_dictionaries({"agent_name": ids}, optional={"stage": st.integers(0, 3)}),
    "agent_completed": st.fixed_dictionaries({"agent_name": ids}, optional={"result": st.just({"a": 1})}),
    "agent_error": st.fixed_dictionaries({"code": ids, "message": words}),
    "agent_thinking": st.fixed_dictionaries(
        {"text": words}, optional={"heartbeat": st.booleans(), "delta": st.booleans(), "message_id": ids}
    ),
    "agent_message": st.one_of(
        st.fixed_dictionaries({"message_id": ids, "delta": words}),
        st.fixed_dictionaries({"message_id": ids, "text": words}),
    ),
    "tool_executing": st.fixed_dictionaries(
        {"tool_name": ids, "tool_call_id": ids}, optional={"arguments": st.just({"a": 1})}
    ),
    "tool_completed": st.fixed_dictionaries(
        {
            "tool_name": ids,
            "tool_call_id": ids,
            "status": st.sampled_from(["ok", "error", "timeout", "cancelled"]),
            "duration_ms": st.just(1.0),
        },
        optional={"result": st.just([1]), "error": st.just({"code": "X"})},
    ),
    "input_required": st.fixed_dictionaries({"input_id": ids}, optional={"prompt": words, "tool_name": ids}),
    "event_rejected": st.just({"event_type": "agent_message", "reason": "r"}),
    "log_gap": st.just({"reason": "lost"}),
}


@st.composite
def logs(draw: st.DrawFn, most: int = 40) -> list[Entry]:
    """Any entries in any order: what came before may not be kept, attempts are cut off anywhere."""
    names = st.sampled_from(
        [name for name in DATA for _ in range(1 if name in {"run_completed", "input_required"} else 4)]
    )
    log: list[Entry] = []
    for number in range(1, draw(st.integers(1, most)) + 1):
        kind = draw(names)
        request_id = draw(st.sampled_from(REQUESTS))
        parent = {} if request_id == "req-1" else {"parent_request_id": request_id.rpartition("_")[0]}
        data = draw(DATA[kind])
        validate_event(kind, data)
        attempt = draw(st.integers(1, 2))
        log.append(entry(kind, data, number, request_id=request_id, attempt=attempt, **parent))
    return log


def test_every_kind_of_event_is_tried() -> None:
    assert DATA.keys() == EVENTS.keys()
    assert ag_ui_mapping.PROTOCOL_VERSION == PROTOCOL_VERSION


@settings(max_examples=150)
@given(logs())
def test_any_log_comes_out_in_order(log: list[Entry]) -> None:
    events = told(log)
    assert kinds(events)[:2] == ["RUN_STARTED", "STATE_SNAPSHOT"]


@settings(max_examples=60)
@given(logs(), st.data())
def test_the_same_log_gives_the_same_events_wherever_it_is_taken_up(log: list[Entry], data: st.DataObject) -> None:
    whole = [(item["offset"], n, event) for item, events in fed(log) for n, event in enumerate(events, 1)]
    if not whole:
        return
    offset, count, _ = whole[data.draw(st.integers(0, len(whole) - 1))]
    again = [(item["offset"], n, event) for item, events in fed(log) for n, event in enumerate(events, 1)]
    assert [e for e in whole if e[:2] <= (offset, count)] + [e for e in again if e[:2] > (offset, count)] == whole


def fed(log: list[Entry]) -> list[tuple[Entry, list[Entry]]]:
    translation = Translation(NAMES)
    return [(item, translation.feed(item)) for item in log]


@settings(max_examples=60)
@given(logs())
def test_a_run_that_goes_on_after_a_question_is_in_order_too(log: list[Entry]) -> None:
    asked = [item["data"]["input_id"] for item in log if item["event_type"] == "input_required"]
    for input_id in asked:
        names = Names("t", "r2", "thread-1", "run-1", after_input=input_id)
        events = told(log, names)
        assert not events or events[0]["runId"] == "r2"
        assert kinds(events)[:2] in ([], ["RUN_STARTED", "STATE_SNAPSHOT"])


def patch(state: Any, delta: list[Entry]) -> None:
    """RFC 6902, as far as it is used."""
    for step in delta:
        *path, last = step["path"].split("/")[1:]
        place = state
        for name in path:
            place = place[name]
        if step["op"] == "add":
            assert last == "-"
            place.append(step["value"])
        else:
            assert (step["op"], last in place) == ("replace", True)
            place[last] = step["value"]


@settings(max_examples=60)
@given(logs())
def test_the_state_that_readers_patch_is_what_the_stages_gave(log: list[Entry]) -> None:
    state: Any = None
    for event in told(log):
        if event["type"] == "STATE_SNAPSHOT":
            state = event["snapshot"]
        elif event["type"] == "STATE_DELTA":
            patch(state, event["delta"])
    assert state["theirs"] == 1
    assert state["carrel"]["run_id"] == "run-1"


def test_the_recorded_run_is_told_as_a_whole() -> None:
    events = told(RECORDED)
    assert [event["stepName"] for event in events if event["type"] == "STEP_STARTED"] == [
        "supervisor", "data", "optimization", "report"
    ]  # fmt: skip
    calls = {event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_START"}
    assert calls == {event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_RESULT"}
    assert len(calls) == 5
    assert next(iter(texts(events).values())).startswith("The 2,000 requests")
    assert events[-1]["outcome"] == {"type": "success"}
    assert events[-1]["result"] == RECORDED[-1]["data"]["result"]
    assert (events[0]["threadId"], events[0]["runId"]) == ("my thread", "their run")
    assert events[0]["metadata"]["carrel"]["run_id"] == "run-1"


def say(number: int, attempt: int, **piece: str) -> Entry:
    return entry("agent_message", {"message_id": "m", **piece}, number, attempt=attempt)


def test_what_an_attempt_says_again_is_told_once() -> None:
    log = [say(1, 1, delta="Hello "), say(2, 1, delta="you"), say(3, 2, delta="Hel"), say(4, 2, delta="lo you there")]
    assert texts(told(log)) == {"run-1:m": "Hello you there"}


def test_what_an_attempt_says_otherwise_is_a_message_of_its_own() -> None:
    log = [say(1, 1, delta="Hello "), say(2, 2, delta="Hel"), say(3, 2, delta="p me")]
    assert texts(told(log)) == {"run-1:m": "Hello ", "run-1:m~1": "Help me"}


def test_a_whole_text_after_its_pieces_adds_what_is_missing() -> None:
    log = [say(1, 1, delta="Hello "), say(2, 1, text="Hello you")]
    events = told(log)
    assert texts(events) == {"run-1:m": "Hello you"}
    assert kinds(events)[-1] == "TEXT_MESSAGE_END"


def test_a_text_too_long_to_compare_is_told_again_under_another_name() -> None:
    long = "x" * 60_000
    log = [say(n, attempt, delta=long) for n, attempt in enumerate([1] * 5 + [2] * 5)]
    assert texts(told(log)) == {"run-1:m": long * 5, "run-1:m~1": long * 5}


def test_a_refused_call_is_told_with_its_call() -> None:
    data = {
        "tool_name": "t",
        "tool_call_id": "c",
        "status": "error",
        "duration_ms": 0,
        "denied": True,
        "error": {"code": "X"},
    }
    events = told([entry("tool_completed", data)])
    assert kinds(events)[2:] == ["TOOL_CALL_START", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
    assert json.loads(events[-1]["content"]) == {"status": "error", "error": {"code": "X"}}
    assert events[-1]["metadata"]["carrel"]["denied"] is True


def test_calls_of_a_cut_off_attempt_have_a_result_at_the_end() -> None:
    # Without one, readers would take them for calls that they are to answer.
    log = [
        entry("tool_executing", {"tool_name": "t", "tool_call_id": "c"}),
        entry("run_completed", {"status": "SUCCEEDED", "result": {}}, 2),
    ]
    results = [event for event in told(log) if event["type"] == "TOOL_CALL_RESULT"]
    assert [json.loads(event["content"])["status"] for event in results] == ["cut_off"]


def test_sub_agents_own_what_they_do() -> None:
    child = {"request_id": "req-1_a", "parent_request_id": "req-1", "agent_name": "helper"}
    log = [
        entry("agent_started", {"agent_name": "data"}),
        entry("agent_started", {"agent_name": "helper"}, 2, **child),
        entry("agent_thinking", {"text": "hm"}, 3, **child),
        entry("agent_message", {"message_id": "m", "text": "yes"}, 4, **child),
        entry("agent_completed", {"agent_name": "helper", "result": {"a": 1}}, 5, **child),
        entry("agent_completed", {"agent_name": "data", "result": {}}, 6),
    ]
    events = told(log)
    owned = [event["type"] for event in events if event.get("subagentRunId") == "req-1_a#1"]
    assert owned == [
        "SUBAGENT_STARTED", "REASONING_START", "REASONING_MESSAGE_START", "TEXT_MESSAGE_START", "SUBAGENT_FINISHED"
    ]  # fmt: skip


def test_two_sub_agents_of_one_name_end_apart() -> None:
    one, two = (
        {"request_id": name, "parent_request_id": "req-1", "agent_name": "words"}
        for name in ("req-1_words", "req-1_words_2")
    )
    log = [
        entry("agent_started", {"agent_name": "data"}),
        entry("agent_started", {"agent_name": "words"}, 2, **one),
        entry("agent_started", {"agent_name": "words"}, 3, **two),
        entry("agent_completed", {"agent_name": "words", "result": {"n": 1}}, 4, **one),
        entry("agent_message", {"message_id": "m", "text": "yes"}, 5, **two),
        entry("agent_completed", {"agent_name": "words", "result": {"n": 2}}, 6, **two),
    ]
    events = told(log)
    assert [(event["subagentRunId"], event["result"]) for event in events if event["type"] == "SUBAGENT_FINISHED"] == [
        ("req-1_words#1", {"result": {"n": 1}}),
        ("req-1_words_2#2", {"result": {"n": 2}}),
    ]
    assert "SUBAGENT_ERROR" not in kinds(events)
    assert [e["subagentRunId"] for e in events if e["type"] == "TEXT_MESSAGE_START"] == ["req-1_words_2#2"]


def test_a_thought_that_comes_in_pieces_is_one_message() -> None:
    def piece(number: int, text: str, **more: Any) -> Entry:
        return entry("agent_thinking", {"text": text, "delta": True, **more}, number)

    log = [
        piece(1, "Let me "),
        piece(2, "see."),
        entry("agent_thinking", {"text": "", "heartbeat": True}, 3),
        piece(4, " Well."),
        piece(5, "Another", message_id="m"),
        entry("agent_thinking", {"text": "A step"}, 6),
        piece(7, "Third"),
        entry("run_completed", {"status": "SUCCEEDED", "result": {}}, 8),
    ]
    thoughts: dict[str, str] = {}
    for event in told(log):
        if event["type"] == "REASONING_MESSAGE_CONTENT":
            thoughts[event["messageId"]] = thoughts.get(event["messageId"], "") + event["delta"]
    assert list(thoughts.values()) == ["Let me see. Well.", "Another", "A step", "Third"]


QUESTION: Final = [
    entry("agent_started", {"agent_name": "ask", "stage": 0}),
    entry("agent_completed", {"agent_name": "ask", "result": {"first": 1}}, 2),
    entry("agent_started", {"agent_name": "mail", "stage": 1}, 3),
    say(4, 1, delta="May I?"),
    entry(
        "input_required",
        {
            "input_id": "in-1", "prompt": "Allow send_mail", "schema": {"type": "boolean"},
            "expires_at": "2026-01-03T03:04:05Z", "tool_name": "send_mail", "arguments": {"to": "bob"},
        },
        5,
    ),
    entry("agent_started", {"agent_name": "mail", "stage": 1, "attempt": 2}, 6, attempt=2),
    say(7, 2, delta="May I? Thanks"),
    entry("agent_completed", {"agent_name": "mail", "result": {}}, 8, attempt=2),
    entry("run_completed", {"status": "SUCCEEDED", "result": {"sent": True}}, 9),
]  # fmt: skip


def test_a_question_ends_the_readers_run_and_its_answer_begins_another() -> None:
    first = told(QUESTION)
    assert first[-1]["outcome"] == {
        "type": "interrupt",
        "interrupts": [
            {
                "id": "run-1:in-1",
                "reason": "tool_approval",
                "message": "Allow send_mail",
                "responseSchema": {"type": "boolean"},
                "expiresAt": "2026-01-03T03:04:05Z",
                "metadata": {"carrel": {"tool_name": "send_mail", "arguments": {"to": "bob"}}},
            }
        ],
    }
    second = told(QUESTION, Names("t", "r2", "thread-1", "run-1", after_input="in-1"))
    assert kinds(second)[:3] == ["RUN_STARTED", "STATE_SNAPSHOT", "STEP_STARTED"]
    # What the run had before the question is in the state, what was said before is not said again.
    assert [stage["agent_name"] for stage in second[1]["snapshot"]["carrel"]["stages"]] == ["ask"]
    assert texts(first) | texts(second) == {"run-1:m": " Thanks"}
    assert texts(first) == {"run-1:m": "May I?"}
    assert second[-1]["result"] == {"sent": True}


@pytest.mark.parametrize(
    ("data", "kind", "detail"),
    [
        ({"status": "CANCELLED"}, "RUN_FINISHED", {"type": "cancelled"}),
        ({"status": "FAILED", "error": {"code": "X", "message": "broke", "advice": "mend it"}}, "RUN_ERROR", "X"),
        ({"status": "TIMED_OUT"}, "RUN_ERROR", "RUN_FAILED"),
    ],
)
def test_ends(data: dict[str, Any], kind: str, detail: Any) -> None:
    end = told([entry("run_completed", data)])[-1]
    assert end["type"] == kind
    assert (end["outcome"] if kind == "RUN_FINISHED" else end["code"]) == detail
    if detail == "X":
        assert end["message"] == "broke; mend it"


def test_a_run_whose_end_the_log_lost_is_concluded() -> None:
    for log in ([], QUESTION[:4]):
        translation, rules = Translation(NAMES), Rules()
        events = [event for item in log for event in translation.feed(item)]
        for event in [*events, *translation.conclude("SUCCEEDED", {"a": 1}, None)]:
            rules.take(event)
        assert rules.ended
        assert translation.conclude("SUCCEEDED", {}, None) == []
