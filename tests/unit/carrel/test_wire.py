"""Contexts and errors as protobuf messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import descriptor
from hypothesis import example, given
from hypothesis import strategies as st

from carrel.context import UserExecutionContext
from carrel.errors import CarrelError, EnginesLimitError, InvalidContextError, LimitExceededError, error_codes
from carrel.v1 import context_pb2
from carrel.wire import context_from_proto, context_to_proto, error_from_proto, error_to_proto

WORDS = st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
MAPS = st.dictionaries(WORDS, VALUES, max_size=4)


def context(**fields: Any) -> UserExecutionContext:
    ids: dict[str, Any] = {"user_id": "alice", "thread_id": "t1", "run_id": "run-1", "request_id": "req-1"}
    return UserExecutionContext(**{**ids, **fields})


@given(
    agent=MAPS,
    audit=MAPS,
    created=st.datetimes(timezones=st.just(UTC)),
    client=st.none() | st.just("ws-1"),
    children=st.integers(0, 3),
)
def test_a_context_comes_back_equal(
    agent: dict[str, Any], audit: dict[str, Any], created: datetime, client: str | None, children: int
) -> None:
    made = context(
        agent_context=agent, audit_metadata=audit, created_at=created, websocket_client_id=client, ticket="t.t.t"
    )
    for _ in range(children):
        made = made.create_child_context("part")
    data = context_to_proto(made).SerializeToString()
    copy = context_from_proto(context_pb2.UserExecutionContext.FromString(data))
    assert copy == made
    copy.verify_isolation(made)


def test_every_scope_travels() -> None:
    for made in (UserExecutionContext.for_session("alice"), UserExecutionContext.for_service("execution")):
        assert context_from_proto(context_to_proto(made)) == made


def test_integers_stay_integers_and_huge_numbers_stay_floats() -> None:
    made = context(agent_context={"i": 3, "f": 1.5, "big": 1e300, "edge": 2**53, "t": True, "empty": {}, "list": []})
    got = context_from_proto(context_to_proto(made)).to_dict()["agent_context"]
    assert got == {"i": 3, "f": 1.5, "big": 1e300, "edge": 2**53, "t": True, "empty": {}, "list": []}
    assert {name: type(value) for name, value in got.items()} == {
        "i": int, "f": float, "big": float, "edge": int, "t": bool, "empty": dict, "list": list,
    }  # fmt: skip


def test_local_resources_are_not_in_the_message() -> None:
    bound = context().with_db_session(object())
    assert context_to_proto(bound) == context_to_proto(bound.with_db_session(None))


def test_every_field_of_the_message_is_used() -> None:
    made = context(
        agent_context={"a": 1}, audit_metadata={"b": 1}, websocket_client_id="ws-1", ticket="t"
    ).create_child_context("part")
    fields: list[descriptor.FieldDescriptor] = list(context_pb2.UserExecutionContext.DESCRIPTOR.fields)
    assert {name.name for name, _ in context_to_proto(made).ListFields()} == {item.name for item in fields}


def test_a_message_without_a_time_was_created_now() -> None:
    message = context_to_proto(context())
    message.ClearField("created_at")
    assert (datetime.now(UTC) - context_from_proto(message).created_at).total_seconds() < 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: setattr(m, "user_id", ""),
        lambda m: setattr(m, "run_id", "default"),
        lambda m: setattr(m, "operation_depth", 17),
        lambda m: setattr(m, "operation_depth", 1),
        lambda m: setattr(m, "parent_request_id", "other"),
        lambda m: setattr(m.created_at, "seconds", 2**62),
        lambda m: m.agent_context.update({"a": "x" * 20_000}),
        lambda m: m.agent_context.update({"a": float("nan")}),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused(spoil: Any) -> None:
    message = context_to_proto(context())
    spoil(message)
    with pytest.raises(InvalidContextError):
        context_from_proto(message)


def test_deeply_nested_metadata_is_refused() -> None:
    message = context_to_proto(context())
    inner = message.agent_context
    for _ in range(40):
        inner = inner.fields["a"].struct_value
        inner.SetInParent()
    with pytest.raises(InvalidContextError, match="nests"):
        context_from_proto(message)


def test_a_typical_context_is_below_one_kilobyte() -> None:
    made = UserExecutionContext(
        user_id="auth0|5f7c8ec7c33c6c004bbafe82",
        thread_id="thread-01a1f81a3974000f8ef6f87da71f",
        run_id="run-01a1f81a3974000f8ef6f87da71f",
        request_id="req-01a1f81a3974000f8ef6f87da71f",
        websocket_client_id="ws-01a1f81a3974000f8ef6f87da71f",
        agent_context={"agent_name": "supervisor"},
        audit_metadata={"source": "ws", "received_at": "2026-11-20T08:40:15.277292Z"},
    ).create_child_context("validation")
    assert context_to_proto(made).ByteSize() <= 1024


@given(
    cls=st.sampled_from([c for c in error_codes().values() if c.__module__.startswith("carrel.error")]),
    message=WORDS,
    advice=WORDS,
    delay=st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000),
    details=MAPS.filter(lambda m: not m.keys() & {"self", "message", "advice", "retry_after_s"}),
)
@example(cls=LimitExceededError, message="", advice="", delay=1.36, details={})
def test_every_error_comes_back_from_its_message(
    cls: type[CarrelError], message: str, advice: str, delay: float | None, details: dict[str, Any]
) -> None:
    error = cls(message, advice=advice, retry_after_s=delay, **details)
    data = error_to_proto(error).SerializeToString()
    copy = error_from_proto(context_pb2.ErrorDetail.FromString(data))
    assert type(copy) is cls
    assert copy.to_dict() == error.to_dict()


def test_a_foreign_or_broken_error_message_is_still_an_error() -> None:
    foreign = context_pb2.ErrorDetail(code="NEW_LIMIT", status=8, message="m", details_json=b"{broken")
    assert type(error_from_proto(foreign)) is LimitExceededError
    assert type(error_from_proto(context_pb2.ErrorDetail(status=4711))) is CarrelError
    endless = error_from_proto(error_to_proto(EnginesLimitError("m", retry_after_s=1e300)))
    assert endless.retry_after_s == 366 * 86_400
    deep = context_pb2.ErrorDetail(code="CONFLICT", status=10, details_json=b"[" * 100_000)
    assert error_from_proto(deep).details == {}
