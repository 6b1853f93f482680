"""The events of a run's own and the reply in the thread."""

from typing import Any

import orjson
import pytest

from carrel.errors import AgentFailedError, InternalError
from carrel.events import EVENTS, check_event_size, validate_event
from services.execution.domain.outcome import (
    MAX_REPLY_BYTES,
    attempt_event,
    fits,
    last_events,
    question_event,
    reply_text,
    superseded,
    trim_error,
)
from services.execution.models import InputRecord, RunState, StageRecord, StageState, ThreadStrategy
from services.execution.models_steps import Again, Finish

RUNNING = StageRecord(1, "data", StageState.RUNNING, 1)
ERROR = AgentFailedError("no trace", advice="send one").to_dict()


def check(events: Any) -> None:
    for event in events:
        validate_event(event.event_type, dict(event.data))
        check_event_size(event.event_type, len(orjson.dumps(dict(event.data))))


def test_success_writes_one_terminal_event_with_the_result() -> None:
    events = last_events(4, Finish(RunState.SUCCEEDED, result=b'{"a":1}'), RUNNING, 7)
    check(events)
    (event,) = events
    assert (event.number, event.event_type, event.created_at) == (4, "run_completed", 7)
    assert event.data == {"status": "SUCCEEDED", "result": {"a": 1}}


def test_reference_stands_in_for_a_large_result() -> None:
    end = Finish(RunState.SUCCEEDED, result=b"{}", reference={"name": "result.json"})
    (event,) = last_events(2, end, RUNNING, 0)
    assert event.data == {"status": "SUCCEEDED", "artifact": {"name": "result.json"}}


@pytest.mark.parametrize(
    ("interrupts", "running", "kinds"),
    [
        (True, RUNNING, ["agent_error", "run_completed"]),
        (True, None, ["run_completed"]),
        (False, RUNNING, ["run_completed"]),
    ],
)
def test_agent_error_is_executions_only_where_it_ended_a_running_stage(
    interrupts: bool, running: StageRecord | None, kinds: list[str]
) -> None:
    events = last_events(2, Finish(RunState.FAILED, error=ERROR, interrupts=interrupts), running, 0)
    check(events)
    assert [event.event_type for event in events] == kinds
    assert [event.number for event in events] == list(range(2, 2 + len(kinds)))
    assert events[-1].data["error"]["code"] == "AGENT_FAILED"
    assert len({event.event_id for event in events}) == len(events)


def test_no_outcome_but_a_terminal_state() -> None:
    with pytest.raises(InternalError):
        last_events(1, Finish(RunState.RUNNING), None, 0)


def test_errors_of_any_size_fit_their_events() -> None:
    error = AgentFailedError("x" * 100_000, advice="y" * 100_000, blob="z" * 100_000)
    assert "details" not in trim_error(error)
    check(last_events(1, Finish(RunState.FAILED, error=error.to_dict(), interrupts=True), RUNNING, 0))


def test_results_that_fit_are_within_the_bound_of_the_terminal_event() -> None:
    bound = EVENTS["run_completed"].max_bytes
    largest = next(n for n in range(bound, 0, -1) if fits(b"x" * n))
    result = orjson.dumps({"a": "x" * (largest - 8)})
    assert len(result) == largest
    check(last_events(1, Finish(RunState.SUCCEEDED, result=result), None, 0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"message": "hi", "answer": "no"}, "hi"),
        ({"message": 1, "answer": "yes"}, "yes"),
        ({"summary": "short"}, "short"),
        ({"rows": 3}, '{"rows":3}'),
    ],
)
def test_reply_is_the_results_own_words_or_the_result(value: dict[str, Any], text: str) -> None:
    assert reply_text(value, orjson.dumps(value)) == text


def test_long_reply_is_cut_at_a_character() -> None:
    text = reply_text({"message": "ü" * MAX_REPLY_BYTES}, b"")
    assert len(text.encode()) <= MAX_REPLY_BYTES
    assert text.endswith("ü…")


@pytest.mark.parametrize("why", Again)
def test_attempt_says_which_and_why(why: Again) -> None:
    event = attempt_event(3, StageRecord(1, "data", StageState.RUNNING, 2), why, 7)
    check([event])
    assert event.data == {"attempt": 2, "agent_name": "data", "stage": 1, "reason": why.value}


def asked(**changes: Any) -> InputRecord:
    return InputRecord(**{"input_id": "i", "stage_index": 0, "prompt": "?", "schema": b"", "asked_at": 1, **changes})


def test_question_says_until_when_and_leaves_out_what_there_is_not() -> None:
    event = question_event(2, asked(expires_at=1_700_000_000_250_000), "data")
    check([event])
    assert event.data == {"input_id": "i", "prompt": "?", "expires_at": "2023-11-14T22:13:20.250Z"}


@pytest.mark.parametrize("name", ["prompt", "schema", "arguments"])
def test_question_of_any_size_fits_its_event(name: str) -> None:
    large: Any = "x" * 40_000 if name == "prompt" else orjson.dumps({"x": "x" * 40_000})
    small = {"prompt": "?", "schema": b'{"type":"string"}', "arguments": b'{"a":1}'}
    event = question_event(2, asked(expires_at=1, tool_name="t", **{**small, name: large}), "data")
    check([event])
    assert set(event.data) == {"input_id", "expires_at", "tool_name", "prompt", "schema", "arguments"} - {name}


@pytest.mark.parametrize("strategy", [ThreadStrategy.INTERRUPT, ThreadStrategy.ROLLBACK])
def test_superseded_run_is_cancelled_by_a_strategy_with_a_name(strategy: ThreadStrategy) -> None:
    end = superseded(strategy)
    check(last_events(2, end, RUNNING, 0))
    assert end.outcome is RunState.CANCELLED
    assert end.error is not None
    assert end.error["code"] == "CANCELLED_RUN"
    assert strategy.value in end.error["message"]
