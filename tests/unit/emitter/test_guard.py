"""What an event may be, and what takes the place of one that may not."""

from __future__ import annotations

import orjson
import pytest

from carrel.errors import InvalidEventError, PermissionDeniedError, TooLargeError
from carrel.events import EVENTS, validate_event
from carrel.v1.events_pb2 import Event, ProducerAck, Refusal, RefusalReason
from services.emitter.convert import merged_ack, notify_producer
from services.emitter.domain.guard import Guard, check_notifiable
from services.emitter.domain.sanitize import Sanitizer

EXAMPLES: dict[str, dict[str, object]] = {
    "agent_started": {"agent_name": "data"},
    "agent_thinking": {"text": "hm", "heartbeat": True},
    "tool_executing": {"tool_name": "t", "tool_call_id": "c", "arguments": {"a": 1}},
    "tool_completed": {"tool_name": "t", "tool_call_id": "c", "status": "ok", "duration_ms": 1.5, "result": [1]},
    "agent_completed": {"agent_name": "data", "result": {}},
    "agent_error": {"code": "X", "message": "y"},
    "agent_message": {"message_id": "m", "delta": "d"},
    "run_accepted": {},
    "run_attempt": {"attempt": 2},
    "run_completed": {"status": "SUCCEEDED", "result": {}},
    "input_required": {"input_id": "i", "schema": {"properties": {"password": {"type": "string"}}}},
}


@pytest.fixture
def guard() -> Guard:
    return Guard(Sanitizer())


def test_every_kind_that_producers_write_passes_as_it_came(guard: Guard) -> None:
    assert set(EXAMPLES) == {name for name, kind in EVENTS.items() if kind.source in ("agent", "run")}
    for kind, data in EXAMPLES.items():
        payload = orjson.dumps(data)
        event = Event(event_id="e1", number=1, event_type=kind, data=payload)
        assert guard.admit(event), kind
        assert event.data == payload
    assert guard.cleaned == 0


def test_what_takes_an_events_place_is_itself_a_valid_event_of_the_same_number(guard: Guard) -> None:
    event = Event(event_id="e7", number=7, event_type="agent_thinking", agent_name="data", data=b"{}", traceparent="00")
    assert not guard.admit(event)
    assert (event.event_type, event.number, event.event_id, event.agent_name) == ("event_rejected", 7, "e7", "data")
    validate_event("event_rejected", orjson.loads(event.data))
    assert orjson.loads(event.data)["event_type"] == "agent_thinking"


def test_a_reason_never_quotes_the_data(guard: Guard) -> None:
    event = Event(event_id="e", number=1, event_type="run_completed", data=b'{"status":"very private"}')
    assert not guard.admit(event)
    assert b"private" not in event.data


@pytest.mark.parametrize("field", ["agent_name", "traceparent"])
def test_an_envelope_that_is_too_long_is_refused(guard: Guard, field: str) -> None:
    event = Event(event_id="e", number=1, event_type="agent_thinking", data=b'{"text":"x"}')
    setattr(event, field, "x" * 129)
    assert not guard.admit(event)
    assert len(event.agent_name) <= 128
    assert not event.traceparent


def test_an_event_that_trips_the_guard_up_is_replaced_and_not_let_through(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_is_suspect", lambda data, value: 1 // 0)
    event = Event(event_id="e", number=1, event_type="agent_thinking", data=b'{"text":"x"}')
    assert not guard.admit(event)
    assert orjson.loads(event.data)["code"] == "INTERNAL"


def test_size_is_the_kinds_own(guard: Guard) -> None:
    bound = EVENTS["agent_thinking"].max_bytes
    fits = orjson.dumps({"text": "x" * (bound - len('{"text":""}'))})
    assert guard.admit_data("agent_thinking", fits) is fits
    with pytest.raises(TooLargeError):
        guard.admit_data("agent_thinking", fits[:-2] + b'x"}')


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"text":"x"', b'{"text":"x"}}', b'{"text":NaN}', b'"text"'])
def test_data_that_is_no_object_is_refused(guard: Guard, data: bytes) -> None:
    with pytest.raises(InvalidEventError):
        guard.admit_data("agent_thinking", data)


@pytest.mark.parametrize("kind", ["run_accepted", "run_completed", "input_required", "log_gap", "event_rejected"])
def test_owners_kinds_are_not_for_notifications(kind: str) -> None:
    with pytest.raises(PermissionDeniedError):
        check_notifiable(kind)


def test_agents_kinds_and_unknown_ones_are_left_to_the_guard() -> None:
    for kind in ("agent_started", "tool_completed", "agent_error", "agent_message", "nonsense"):
        check_notifiable(kind)


def ack(through: int, reason: RefusalReason.ValueType | None = None, last: int = 0) -> ProducerAck:
    refusal = Refusal(reason=reason, last_number=last) if reason is not None else None
    return ProducerAck(user_id="u", producer_id="p", through=through, offset=through, epoch="e", refusal=refusal)


GAP, SEALED = RefusalReason.REFUSAL_REASON_GAP, RefusalReason.REFUSAL_REASON_SEALED


@pytest.mark.parametrize(
    ("older", "newer", "merged"),
    [
        (ack(1), ack(5), ack(5)),
        (ack(5), ack(1), ack(5)),
        (ack(5), ack(5, GAP, 5), ack(5, GAP, 5)),
        (ack(5), ack(0, GAP, 5), ack(5, GAP, 5)),
        (ack(5, GAP, 5), ack(7), ack(7, GAP, 5)),
        (ack(5, GAP, 5), ack(6, SEALED, 6), ack(6, SEALED, 6)),
    ],
)
def test_merged_acknowledgements_keep_the_furthest_progress_and_the_latest_refusal(
    older: ProducerAck, newer: ProducerAck, merged: ProducerAck
) -> None:
    before = older.SerializeToString(), newer.SerializeToString()
    assert merged_ack(older, newer) == merged
    assert before == (older.SerializeToString(), newer.SerializeToString())


def test_notifications_of_different_runs_or_keys_have_different_producers() -> None:
    pairs = [("r1", "k"), ("r1", "k:x"), ("r1:k", "x"), ("r" * 128, "k" * 128), ("r" * 128, "k" * 127), ("r1", "k2")]
    ids = {notify_producer(run, key) for run, key in pairs}
    assert len(ids) == len(pairs)
    assert all(len(name) <= 200 for name in ids)
