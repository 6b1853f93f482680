"""``UserExecutionContext``: every rule of its fields, lineage, isolation and what never leaves the process."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.context import MAX_DEPTH, MAX_METADATA_BYTES, UserContextFactory, UserExecutionContext
from carrel.errors import ContextIsolationError, InvalidContextError
from carrel.frozen import FrozenDict

IDS = {"user_id": "alice", "thread_id": "t1", "run_id": "run-1", "request_id": "req-1"}
EPOCH = datetime.fromisoformat("1970-01-01")  # naive, as hypothesis wants its bounds
OPERATIONS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,6}[A-Za-z0-9.-])?", fullmatch=True)


def context(**fields: Any) -> UserExecutionContext:
    return UserExecutionContext(**{**IDS, **fields})


@pytest.mark.parametrize("name", ["thread_id", "run_id", "request_id"])
@pytest.mark.parametrize("value", ["", "default", "temp_1", "a/b", "a b", None, 5, "x" * 1000])
def test_a_bad_id_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidContextError, match=name):
        context(**{name: value})


@pytest.mark.parametrize("value", ["", None, "a/b", "x" * 129])
def test_a_run_needs_a_user(value: object) -> None:
    with pytest.raises(InvalidContextError, match="user_id"):
        context(user_id=value)


@pytest.mark.parametrize("value", ["default", "example_user", "auth0|1", "a@b.example"])
def test_users_may_be_called_what_their_login_says(value: str) -> None:
    assert context(user_id=value).user_id == value


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"websocket_client_id": ""}, "websocket_client_id"),
        ({"websocket_client_id": "null"}, "websocket_client_id"),
        ({"created_at": datetime(2026, 1, 1)}, "created_at"),  # noqa: DTZ001  (what is refused)
        ({"created_at": "2026-01-01"}, "created_at"),
        ({"created_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, "created_at"),
        ({"agent_context": [1]}, "agent_context"),
        ({"audit_metadata": {"a": object()}}, "audit_metadata"),
        ({"agent_context": {"n": 2**53 + 1}}, "agent_context"),
        ({"agent_context": {"n": float("inf")}}, "agent_context"),
        ({"operation_depth": 1}, "parent_request_id"),
        ({"parent_request_id": "req-0"}, "parent_request_id"),
        ({"operation_depth": True}, "operation_depth"),
        ({"operation_depth": -1}, "operation_depth"),
        ({"operation_depth": 1, "parent_request_id": "req-0"}, "request_id"),
        ({"operation_depth": 1, "parent_request_id": "req-1"}, "request_id"),
        ({"operation_depth": 1, "parent_request_id": "req-1", "request_id": "req-1_"}, "request_id"),
        ({"ticket": b"x"}, "ticket"),
    ],
)
def test_inconsistent_fields_are_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidContextError) as caught:
        context(**fields)
    assert name in caught.value.message
    assert any(name in key for key in caught.value.fields)


def test_metadata_over_its_bound_is_refused_with_the_figures() -> None:
    half = "x" * (MAX_METADATA_BYTES // 2)
    context(agent_context={"a": half})
    with pytest.raises(InvalidContextError, match=rf"bytes of JSON; at most {MAX_METADATA_BYTES}"):
        context(agent_context={"a": half}, audit_metadata={"a": half})


def test_scopes_follow_from_the_ids() -> None:
    session = UserExecutionContext.for_session("alice", websocket_client_id="ws-1")
    service = UserExecutionContext.for_service("execution")
    assert (context().scope, session.scope, service.scope) == ("run", "session", "service")
    assert (session.user_id, session.thread_id, session.run_id) == ("alice", "", "")
    assert (service.user_id, service.audit_metadata["service"]) == ("", "execution")
    assert (session.request_id, service.request_id) == ("", "")
    for wrong in ({"run_id": ""}, {"thread_id": ""}, {"user_id": "", "run_id": ""}, {"request_id": ""}):
        with pytest.raises(InvalidContextError):
            context(**wrong)
    with pytest.raises(InvalidContextError):
        UserExecutionContext(user_id=None, request_id="r")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(InvalidContextError):
        UserExecutionContext.for_session("")


@pytest.mark.parametrize(
    "made", [UserExecutionContext.for_session("alice"), UserExecutionContext.for_service("execution")]
)
def test_a_context_without_a_request_opens_no_children(made: UserExecutionContext) -> None:
    with pytest.raises(InvalidContextError, match=f"a {made.scope} context has none"):
        made.create_child_context("part")


def test_a_context_cannot_be_changed() -> None:
    made = context(agent_context={"a": {"b": [1]}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.user_id = "bob"  # type: ignore[misc]  # what is refused
    with pytest.raises((AttributeError, TypeError)):
        made.extra = 1  # type: ignore[attr-defined]  # what is refused
    with pytest.raises(TypeError):
        made.agent_context["a"]["b2"] = 1
    assert made.verify_isolation()


def test_two_contexts_never_share_a_mutable_object() -> None:
    shared: dict[str, Any] = {"list": [1], "map": {"x": 1}}
    first, second = context(agent_context=shared), context(user_id="bob", agent_context=shared)
    shared["list"].append(2)
    shared["map"]["x"] = 2
    assert first.to_dict()["agent_context"] == second.to_dict()["agent_context"] == {"list": [1], "map": {"x": 1}}
    assert first.verify_isolation(second)
    first.to_dict()["agent_context"]["list"].append(3)
    assert first.to_dict()["agent_context"]["list"] == [1]


def test_isolation_broken_by_force_is_found() -> None:
    made = context()
    object.__setattr__(made, "agent_context", {"a": 1})
    with pytest.raises(ContextIsolationError, match="agent_context"):
        made.verify_isolation()
    object.__setattr__(made, "agent_context", FrozenDict(a=[1]))
    with pytest.raises(ContextIsolationError):
        UserContextFactory.validate(made)


def test_local_resources_stay_local() -> None:
    session, socket = object(), object()
    plain = context(ticket="t")
    bound = plain.with_db_session(session).with_websocket_connection(socket)
    assert (bound.db_session, bound.websocket_connection) == (session, socket)
    assert (plain.db_session, plain.websocket_connection) == (None, None)
    assert bound == plain
    assert hash(bound) == hash(plain)
    assert bound.to_dict() == plain.to_dict()
    assert "object" not in repr(bound)
    fresh = bound.with_ticket("u")
    assert (fresh.db_session, fresh.websocket_connection, fresh.ticket) == (session, socket, "u")
    for copied in (pickle.loads(pickle.dumps(bound.with_db_session(1))), copy.copy(bound), copy.deepcopy(bound)):
        assert copied == plain
        assert copied.db_session is None
    assert bound.create_child_context("a").db_session is None


def test_a_session_bound_to_two_requests_is_found() -> None:
    session = object()
    alice = context().with_db_session(session)
    assert alice.verify_isolation(context().with_db_session(session))
    with pytest.raises(ContextIsolationError, match="database session"):
        alice.verify_isolation(context(user_id="bob").with_db_session(session))
    early, late = (
        UserExecutionContext(user_id="alice", request_id="", created_at=datetime(2026, 1, day, tzinfo=UTC))
        for day in (1, 2)
    )
    assert early.with_db_session(session).verify_isolation(early.with_db_session(session).with_ticket("t"))
    with pytest.raises(ContextIsolationError, match="database session"):
        early.with_db_session(session).verify_isolation(late.with_db_session(session))
    with pytest.raises(ContextIsolationError, match="WebSocket"):
        context().with_websocket_connection(session).verify_isolation(
            context(run_id="run-2").with_websocket_connection(session)
        )


def test_the_ticket_is_never_shown() -> None:
    made = context(ticket="eyJ.secret")
    assert "secret" not in repr(made)
    assert "****" in repr(made)
    assert "ticket" not in made.to_dict()
    assert "secret" not in json.dumps(made.get_audit_trail())
    assert made.to_dict(with_ticket=True)["ticket"] == "eyJ.secret"
    assert pickle.loads(pickle.dumps(made)).ticket == "eyJ.secret"


def test_children_extend_their_parent() -> None:
    root = context(agent_context={"a": [1]}, audit_metadata={"route": "/ws"}, ticket="t", websocket_client_id="ws-1")
    child = root.create_child_context("validation", table="trace")
    grandchild = child.create_child_context("rows")
    assert child.request_id == "req-1_validation"
    assert grandchild.request_id == "req-1_validation_rows"
    assert (child.parent_request_id, grandchild.parent_request_id) == ("req-1", "req-1_validation")
    assert (root.operation_depth, child.operation_depth, grandchild.operation_depth) == (0, 1, 2)
    for made in (child, grandchild):
        assert (made.user_id, made.thread_id, made.run_id, made.ticket) == ("alice", "t1", "run-1", "t")
        assert made.websocket_client_id == "ws-1"
        assert made.agent_context["table"] == "trace"
        assert made.audit_metadata["route"] == "/ws"
        assert made.verify_isolation(root)
    assert child.agent_context["operation_name"] == "validation"
    assert grandchild.audit_metadata["operation_name"] == "rows"
    assert grandchild.audit_metadata["parent_operation"] == "validation"
    assert root.agent_context == {"a": (1,)}


def test_children_nest_to_a_bound() -> None:
    made = context()
    for _ in range(MAX_DEPTH):
        made = made.create_child_context("x")
    with pytest.raises(InvalidContextError, match=f"at most {MAX_DEPTH} levels"):
        made.create_child_context("x")
    with pytest.raises(InvalidContextError, match="operation_depth"):
        context(operation_depth=MAX_DEPTH + 1, parent_request_id="req-0", request_id="req-0_a")


def test_a_request_id_cannot_grow_without_end() -> None:
    made = context()
    for _ in range(10):
        made = made.create_child_context("x" * 48)
    with pytest.raises(InvalidContextError, match="at most 512"):
        made.create_child_context("x" * 48)


@pytest.mark.parametrize("name", ["", "a b", "_a", "a/b", None])
def test_a_child_needs_a_proper_name(name: Any) -> None:
    with pytest.raises(InvalidContextError, match="operation_name"):
        context().create_child_context(name)


@given(
    metadata=st.dictionaries(
        st.text(max_size=9).filter(lambda n: n not in ("self", "operation_name")),
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9) | st.lists(st.text(max_size=3)),
        max_size=5,
    ),
    created=st.datetimes(min_value=EPOCH, timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))])),
    operations=st.lists(OPERATIONS, max_size=4),
)
def test_dict_json_and_pickle_give_the_same_context_back(
    metadata: dict[str, Any], created: datetime, operations: list[str]
) -> None:
    made = context(agent_context=metadata, created_at=created, ticket="t")
    for operation in operations:
        made = made.create_child_context(operation, **metadata)
    data = json.loads(json.dumps(made.to_dict(with_ticket=True)))
    assert UserExecutionContext.from_dict(data) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.created_at.tzinfo is UTC
    made.verify_isolation()


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": None},
        {"extra": 1},
        {"db_session": 1},
        {"_db_session": 1},
        {"created_at": 5},
        {"created_at": "soon"},
    ],
)
def test_a_dict_that_is_no_context_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidContextError):
        UserExecutionContext.from_dict({**context().to_dict(), **change})
    with pytest.raises(InvalidContextError, match="request_id is required"):
        UserExecutionContext.from_dict({"user_id": "a"})


def test_correlation_id_ties_logs_together_without_the_users_name() -> None:
    assert context().get_correlation_id().endswith(":t1:run-1:req-1")
    assert "alice" not in context().get_correlation_id()
    assert context().get_correlation_id() != context(user_id="bob").get_correlation_id()
    assert UserExecutionContext.for_service("execution").get_correlation_id() == "execution:-:-:-"
    session = UserExecutionContext.for_session("alice", websocket_client_id="ws-1")
    assert session.get_correlation_id() == context().get_correlation_id().partition(":")[0] + ":-:-:ws-1"


def test_audit_trail_says_who_what_and_since_when() -> None:
    made = context(created_at=datetime.now(UTC) - timedelta(seconds=5)).create_child_context("check")
    trail = made.with_db_session(object()).get_audit_trail()
    assert (trail["operation_name"], trail["operation_depth"], trail["parent_request_id"]) == ("check", 1, "req-1")
    assert (trail["has_db_session"], trail["has_websocket_connection"]) == (True, False)
    assert 0 <= trail["context_age_s"] < 5
    assert trail["created_at"].endswith("Z")
    json.dumps(trail)


def test_factory_mints_what_is_missing() -> None:
    made = UserContextFactory.from_request("alice", audit={"route": "/ws"})
    assert made.thread_id.startswith("thread-")
    assert made.run_id.startswith("run-")
    assert made.request_id.startswith("req-")
    assert made.scope == "run"
    assert made.audit_metadata["route"] == "/ws"
    assert made.audit_metadata["received_at"].endswith("Z")
    given_ids = UserContextFactory.from_request("alice", thread_id="t", run_id="r-1", request_id="q-1")
    assert (given_ids.thread_id, given_ids.run_id, given_ids.request_id) == ("t", "r-1", "q-1")


@pytest.mark.parametrize(
    "ids", [{"thread_id": ""}, {"thread_id": "default"}, {"request_id": "a_b"}, {"run_id": "temp_1"}]
)
def test_factory_refuses_rather_than_replaces(ids: dict[str, str]) -> None:
    with pytest.raises(InvalidContextError):
        UserContextFactory.from_request("alice", **ids)  # type: ignore[arg-type]  # ids only


def test_factory_for_the_supervisor_splits_one_flat_map() -> None:
    made = UserContextFactory.from_request_supervisor("alice", {"audit_route": "/ws", "topic": "costs"}, thread_id="t9")
    assert made.agent_context == {"agent_name": "supervisor", "topic": "costs"}
    assert made.audit_metadata["route"] == "/ws"
    assert made.audit_metadata["source"] == "supervisor"
    assert made.thread_id == "t9"
    with pytest.raises(TypeError):
        UserContextFactory.from_request_supervisor("alice", {}, user="x")


def test_factory_makes_children_and_validates() -> None:
    child = UserContextFactory.create_child(context(), "check", a=1)
    assert child.request_id == "req-1_check"
    assert UserContextFactory.validate(child) is child
