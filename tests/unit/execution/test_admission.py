"""What admits a run and what refuses it."""

import pytest

from carrel.errors import (
    AlreadyExistsError,
    EnginesLimitError,
    IdempotencyConflictError,
    InvalidRequestError,
    NotImplementedYetError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownEngineError,
)
from services.execution.domain.admission import (
    Facts,
    UserLimits,
    check_repeat,
    check_room,
    check_strategy,
    content_hash,
    parse_params,
)
from services.execution.models import ThreadStrategy

FREE = Facts(engines=1, unended=1, busy_run_id="", first_expiry=None, now=0)
LIMITS = UserLimits(2, 5)


def facts(engines: int = 0, unended: int = 0, busy: str = "", first_expiry: int | None = None) -> Facts:
    return Facts(engines, unended, busy, first_expiry, now=0)


@pytest.mark.parametrize(
    ("state", "reserved", "error"),
    [
        (facts(), None, None),
        (facts(engines=1, unended=4), None, None),
        (facts(engines=2), None, EnginesLimitError),
        (facts(engines=2), True, None),  # its own reservation is one of the two
        (facts(), False, UnknownEngineError),
        (facts(unended=5), None, UnendedRunsError),
        (facts(unended=5), True, UnendedRunsError),
        (facts(busy="run-1", engines=2, unended=5), None, ThreadBusyError),
    ],
)
def test_room_for_a_run(state: Facts, reserved: bool | None, error: type[Exception] | None) -> None:
    if error is None:
        check_room(state, LIMITS, reserved=reserved)
        return
    with pytest.raises(error):
        check_room(state, LIMITS, reserved=reserved)


def test_refusal_names_limit_use_and_when_to_try_again() -> None:
    with pytest.raises(EnginesLimitError) as raised:
        check_room(facts(engines=2, first_expiry=3_000_000), LIMITS, reserved=None)
    error = raised.value
    assert (error.limit, error.limit_value, error.use, error.retry_after_s) == ("max_engines_per_user", 2, 2, 3.0)


@pytest.mark.parametrize(("expiry", "wait"), [(None, 1.0), (1, 1.0), (300_000_000, 5.0)])
def test_time_to_try_again_is_bounded(expiry: int | None, wait: float) -> None:
    with pytest.raises(EnginesLimitError) as raised:
        check_room(facts(engines=2, first_expiry=expiry), LIMITS, reserved=None)
    assert raised.value.retry_after_s == wait


def test_claims_override_limits_one_by_one() -> None:
    assert LIMITS.claimed({"max_engines_per_user": 9}) == UserLimits(9, 5)
    assert LIMITS.claimed({"max_unended_runs_per_user": 1, "other": 3}) == UserLimits(2, 1)


@pytest.mark.parametrize(
    ("same_content", "same_ref", "error"),
    [
        (True, True, None),
        (False, True, IdempotencyConflictError),
        (True, False, AlreadyExistsError),
        (False, False, AlreadyExistsError),
    ],
)
def test_known_names_are_the_same_request_or_a_conflict(
    same_content: bool, same_ref: bool, error: type[Exception] | None
) -> None:
    if error is None:
        check_repeat(same_content=same_content, same_ref=same_ref, run_id="r")
        return
    with pytest.raises(error):
        check_repeat(same_content=same_content, same_ref=same_ref, run_id="r")


def test_content_is_what_the_request_means_not_how_it_is_written() -> None:
    base = content_hash("m", {"a": 1, "b": 2}, ["x"], ThreadStrategy.REJECT)
    assert content_hash("m", {"b": 2, "a": 1}, ("x",), ThreadStrategy.REJECT) == base
    for other in (
        content_hash("n", {"a": 1, "b": 2}, ["x"], ThreadStrategy.REJECT),
        content_hash("m", {"a": 1}, ["x"], ThreadStrategy.REJECT),
        content_hash("m", {"a": 1, "b": 2}, ["y"], ThreadStrategy.REJECT),
        content_hash("m", {"a": 1, "b": 2}, ["x"], ThreadStrategy.ENQUEUE),
    ):
        assert other != base


@pytest.mark.parametrize("bad", [b"[]", b"1", b"{", b"\xff", b'{"a":NaN}'])
def test_params_are_a_json_object(bad: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_params(bad)


def test_empty_params_are_an_empty_object() -> None:
    assert parse_params(b"") == {}


@pytest.mark.parametrize("strategy", sorted(set(ThreadStrategy) - {ThreadStrategy.REJECT}))
def test_other_strategies_say_that_they_are_not_there_yet(strategy: ThreadStrategy) -> None:
    with pytest.raises(NotImplementedYetError):
        check_strategy(strategy)


def test_params_nest_as_deep_as_agents_take_and_no_deeper() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    assert "a" in parse_params(nested(32))
    for depth in (33, 900):
        with pytest.raises(InvalidRequestError, match="nests more than 32") as caught:
            parse_params(nested(depth))
        assert caught.value.advice
