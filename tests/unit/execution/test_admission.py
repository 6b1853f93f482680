"""What admits a run and what refuses it."""

import pytest

from carrel.errors import (
    ActiveRunsError,
    AlreadyExistsError,
    EnginesLimitError,
    IdempotencyConflictError,
    InvalidRequestError,
    LimitExceededError,
    RateLimitError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownEngineError,
)
from services.execution.domain.admission import (
    Bucket,
    Facts,
    UserLimits,
    check_active,
    check_engines,
    check_repeat,
    check_reservation,
    check_room,
    check_thread,
    content_hash,
    parse_params,
    take_from_bucket,
)
from services.execution.models import ThreadStrategy

SECOND = 1_000_000
LIMITS = UserLimits(2, 5)


def facts(
    engines: int = 0, unended: int = 0, busy: str = "", first_expiry: int | None = None, **all_users: int
) -> Facts:
    return Facts(engines, unended, busy, first_expiry, 0, **all_users)


def test_reject_needs_an_idle_thread() -> None:
    check_thread(facts())
    with pytest.raises(ThreadBusyError) as raised:
        check_thread(facts(busy="run-1", first_expiry=3_000_000))
    assert raised.value.details["run_id"] == "run-1"
    assert raised.value.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("state", "total", "limit"),
    [
        (facts(unended=4), 0, None),
        (facts(unended=5), 0, ("max_unended_runs_per_user", 5, 5)),
        (facts(unended=4, all_unended=9), 10, None),
        (facts(unended=4, all_unended=10), 10, ("max_unended_runs", 10, 10)),
        (facts(unended=4, all_unended=10), 0, None),  # no such limit
    ],
)
def test_room_for_another_unended_run(state: Facts, total: int, limit: tuple[str, int, int] | None) -> None:
    if limit is None:
        check_room(state, LIMITS, total)
        return
    error: type[LimitExceededError] = ActiveRunsError if total else UnendedRunsError
    with pytest.raises(error) as raised:
        check_room(state, LIMITS, total)
    assert raised.value.retry_after_s == 1.0
    assert (raised.value.limit, raised.value.limit_value, raised.value.use) == limit


def test_another_engine_of_the_users_and_of_all() -> None:
    check_engines(facts(engines=1), 2)
    check_active(facts(all_engines=9), 10)
    check_active(facts(all_engines=9), 0)
    with pytest.raises(EnginesLimitError) as raised:
        check_engines(facts(engines=2, first_expiry=3_000_000), 2)
    error = raised.value
    assert (error.limit, error.limit_value, error.use, error.retry_after_s) == ("max_engines_per_user", 2, 2, 3.0)
    with pytest.raises(ActiveRunsError) as full:
        check_active(facts(all_engines=10), 10)
    assert (full.value.limit, full.value.limit_value, full.value.use) == ("max_active_runs", 10, 10)


def test_a_reservation_must_be_there_and_free() -> None:
    check_reservation(found=True)
    with pytest.raises(UnknownEngineError):
        check_reservation(found=False)


@pytest.mark.parametrize(("expiry", "wait"), [(None, 1.0), (1, 1.0), (300_000_000, 5.0)])
def test_time_to_try_again_is_bounded(expiry: int | None, wait: float) -> None:
    with pytest.raises(EnginesLimitError) as raised:
        check_engines(facts(engines=2, first_expiry=expiry), 2)
    assert raised.value.retry_after_s == wait


# The rate


def taken(bucket: Bucket, now: float, count: int, per_minute: float = 60, burst: int = 3) -> Bucket:
    for _ in range(count):
        bucket = take_from_bucket(bucket, per_minute, burst, round(now * SECOND))
    return bucket


def test_a_quiet_users_bucket_is_full_and_no_fuller() -> None:
    bucket = taken(Bucket(), 1_700_000_000, 3)
    with pytest.raises(RateLimitError) as raised:
        taken(bucket, 1_700_000_000, 1)
    error = raised.value
    assert (error.limit, error.limit_value, error.retry_after_s) == ("runs_per_minute_per_user", 60, 1.0)
    bucket = taken(bucket, 1_700_009_999, 3)
    with pytest.raises(RateLimitError):
        taken(bucket, 1_700_009_999, 1)


def test_bucket_fills_at_its_rate_and_the_error_says_when() -> None:
    bucket = taken(Bucket(), 1_000, 3)
    with pytest.raises(RateLimitError) as raised:
        taken(bucket, 1_000.25, 1)
    assert raised.value.retry_after_s == 0.75
    bucket = taken(bucket, 1_001, 1)
    with pytest.raises(RateLimitError):
        taken(bucket, 1_001, 1)


def test_many_small_waits_fill_as_one_long_one() -> None:
    bucket = taken(Bucket(), 1_000, 3)
    for tenth in range(1, 10):
        with pytest.raises(RateLimitError):
            taken(bucket, 1_000 + tenth / 10, 1)
    taken(bucket, 1_001, 1)


def test_clock_that_is_set_back_gives_nothing_and_takes_nothing() -> None:
    bucket = taken(Bucket(), 1_000, 2)
    bucket = taken(bucket, 10, 1)
    with pytest.raises(RateLimitError):
        taken(bucket, 1_000.5, 1)
    taken(bucket, 1_001, 1)


def test_no_rate_is_no_limit_and_no_burst_is_one_at_a_time() -> None:
    assert taken(Bucket(), 0, 1_000, per_minute=0) == Bucket()
    bucket = taken(Bucket(), 1_000, 1, burst=0)
    with pytest.raises(RateLimitError):
        taken(bucket, 1_000, 1, burst=0)


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


def test_params_nest_as_deep_as_agents_take_and_no_deeper() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    assert "a" in parse_params(nested(32))
    for depth in (33, 900):
        with pytest.raises(InvalidRequestError, match="nests more than 32") as caught:
            parse_params(nested(depth))
        assert caught.value.advice
