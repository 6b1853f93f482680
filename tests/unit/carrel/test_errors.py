"""The tree of errors: drawn as it is, rebuilt from its codes, translated to HTTP."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import errors
from carrel.error_base import HTTP_STATUS
from carrel.errors import (
    CarrelError,
    EnginesLimitError,
    InvalidRequestError,
    LimitExceededError,
    Status,
    ThreadBusyError,
    ToolArgumentsError,
    ToolError,
    error_class,
    error_codes,
    from_dict,
    http_status,
)

TREE = {name: cls for name, cls in error_codes().items() if cls.__module__.startswith("carrel.error")}
CLASSES = st.sampled_from(sorted(TREE.values(), key=lambda cls: cls.__name__))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def drawn_tree() -> list[tuple[int, str, str, bool, bool]]:
    lines = re.findall(
        r"^    ((?:[│ ] {3})*)(?:├── |└── )?(\w+Error) +([A-Z_]+)(.*)$", errors.__doc__ or "", re.MULTILINE
    )
    return [
        (len(indent) // 4, name, status, "retryable" in rest, "ToolError" in rest)
        for indent, name, status, rest in lines
    ]


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = drawn_tree()
    assert sorted(name for _, name, *_ in drawn) == sorted(cls.__name__ for cls in TREE.values())
    trail: list[str] = []
    for depth, name, status, retryable, tool_error in drawn:
        cls: type[CarrelError] = getattr(errors, name)
        # The branches below the root are drawn at the same indent as the root's name.
        level = 0 if name == "CarrelError" else depth + 1
        trail[level:] = [name]
        if level:
            assert cls.__mro__[1].__name__ == trail[level - 1], name
        assert cls.status.name == status, name
        assert cls.retryable is retryable, name
        assert (ToolError in cls.__mro__[2:-3]) is tool_error or cls.__mro__[1] is ToolError, name


def test_codes_are_the_names_and_never_change() -> None:
    assert ThreadBusyError.code == "THREAD_BUSY"
    assert errors.AgentIdleTimeoutError.code == "AGENT_IDLE_TIMEOUT"
    for code, cls in TREE.items():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)
        assert code.replace("_", "").lower() == cls.__name__.removesuffix("Error").lower()


def test_authentication_permission_and_limits_are_never_mixed_up() -> None:
    for status, root in (
        (Status.UNAUTHENTICATED, errors.UnauthenticatedError),
        (Status.PERMISSION_DENIED, errors.PermissionDeniedError),
        (Status.RESOURCE_EXHAUSTED, LimitExceededError),
    ):
        for cls in TREE.values():
            assert (cls.status is status) == issubclass(cls, root), cls


@given(
    cls=CLASSES,
    message=st.text(),
    advice=st.text(),
    delay=st.none() | st.floats(0, 1e6),
    details=st.dictionaries(
        st.text().filter(lambda n: n not in ("self", "message", "advice", "retry_after_s")), JSON_VALUES
    ),
)
def test_every_class_survives_dict_json_and_pickle(
    cls: type[CarrelError], message: str, advice: str, delay: float | None, details: dict[str, object]
) -> None:
    error = cls(message, advice=advice, retry_after_s=delay, **details)
    for copy in (
        from_dict(error.to_dict()),
        from_dict(json.loads(json.dumps(error.to_dict()))),
        pickle.loads(pickle.dumps(error)),
    ):
        assert type(copy) is cls
        assert copy.to_dict() == error.to_dict()
        assert copy.args == error.args


@given(
    st.dictionaries(st.sampled_from(["code", "status", "message", "advice", "retry_after_s", "details"]), JSON_VALUES)
)
def test_whatever_a_peer_sends_becomes_an_error(data: dict[str, object]) -> None:
    assert isinstance(from_dict(data), CarrelError)


def test_unknown_code_becomes_nearest_class_and_keeps_its_own_word() -> None:
    error = from_dict({"code": "FUTURE_LIMIT", "status": "RESOURCE_EXHAUSTED", "message": "m", "retryable": False})
    assert type(error) is LimitExceededError
    assert error.code == "FUTURE_LIMIT"
    assert error.retryable is False
    assert LimitExceededError.code == "LIMIT_EXCEEDED"
    assert from_dict(error.to_dict()).code == "FUTURE_LIMIT"
    assert error_class("NO_SUCH", Status.OK) is CarrelError


def test_every_status_but_ok_and_unknown_has_a_nearest_class_of_that_kind() -> None:
    for status in Status:
        cls = error_class("NO_SUCH_CODE", status)
        assert (cls is CarrelError) == (status in (Status.OK, Status.UNKNOWN))


def test_an_authors_error_has_a_code_of_its_own_but_cannot_take_ours() -> None:
    class PriceTableMissingError(ToolError):
        def __init__(self, table: str) -> None:
            super().__init__(f"no table {table}", table=table)

    error = PriceTableMissingError("a")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is PriceTableMissingError
    assert copy.details == {"table": "a"}
    with pytest.raises(TypeError, match="taken"):
        type("ThreadBusyError", (CarrelError,), {})


def test_limits_and_fields_are_readable() -> None:
    error = EnginesLimitError("two are active", limit="max_engines_per_user", limit_value=2, use=2, retry_after_s=1.5)
    assert (error.limit, error.limit_value, error.use, error.retry_after_s) == ("max_engines_per_user", 2, 2, 1.5)
    assert InvalidRequestError("m", fields={"a": "b"}).fields == {"a": "b"}
    assert InvalidRequestError("m", fields="nonsense").fields == {}
    assert issubclass(ToolArgumentsError, InvalidRequestError)
    assert issubclass(ToolArgumentsError, ToolError)


def test_a_retry_delay_comes_back_only_when_it_makes_sense() -> None:
    assert from_dict({"code": "UNAVAILABLE", "retry_after_s": -1}).retry_after_s is None
    assert from_dict({"code": "UNAVAILABLE", "retry_after_s": True}).retry_after_s is None
    assert from_dict({"code": "UNAVAILABLE", "retry_after_s": 2}).retry_after_s == 2.0


def test_what_is_no_json_or_no_text_is_made_so() -> None:
    error = CarrelError("bad \ud800", path=pattern_like(), number=float("inf"), both=(1, {2}))
    assert error.message == "bad ?"
    assert error.details == {"path": "re", "number": "inf", "both": [1, [2]]}
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]
    assert "…" in str(CarrelError("m", deep=deep).details)


class pattern_like:  # noqa: N801
    def __str__(self) -> str:
        return "re"


def test_http_statuses() -> None:
    assert set(HTTP_STATUS) == set(Status)
    assert http_status(errors.TooLargeError("m")) == 413
    assert http_status(errors.QuotaError("m")) == 429
    assert http_status(errors.TokenError("m")) == 401
    assert http_status(errors.ScopeError("m")) == 403
    assert http_status(ThreadBusyError("m")) == 409


def test_text_says_the_advice() -> None:
    assert str(errors.TokenError("no token")) == "no token (log in again)"
    assert str(errors.TokenError("no token", advice="do x")) == "no token (do x)"
