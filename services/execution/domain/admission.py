"""What admits a run and what refuses it: pure decisions over facts that the store read under the user's lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from carrel.errors import (
    ActiveRunsError,
    AlreadyExistsError,
    EnginesLimitError,
    IdempotencyConflictError,
    InvalidRequestError,
    RateLimitError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownEngineError,
)
from carrel.frozen import MAX_NESTING, nests_too_deep
from services.execution.models import Micros, ThreadStrategy

__all__ = [
    "CLIENT_REF_LIFETIME_US",
    "Bucket",
    "Facts",
    "UserLimits",
    "check_active",
    "check_engines",
    "check_repeat",
    "check_reservation",
    "check_room",
    "check_thread",
    "content_hash",
    "parse_params",
    "take_from_bucket",
]

CLIENT_REF_LIFETIME_US: Final = 24 * 3600 * 1_000_000
_SECOND: Final = 1_000_000
# A run in the bucket. With millionths of runs and of seconds, a rate per second is a number of either.
_WHOLE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class UserLimits:
    """How much one user may have at once: the deployment's settings, or what the user's ticket claims instead."""

    max_engines: int = 2
    max_unended: int = 5

    def claimed(self, limits: Mapping[str, int]) -> UserLimits:
        """These limits with the ticket's own put over them."""
        return UserLimits(
            limits.get("max_engines_per_user", self.max_engines),
            limits.get("max_unended_runs_per_user", self.max_unended),
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knows at the moment of admission: of the user, and of all users where a total is limited."""

    engines: int
    unended: int
    busy_run_id: str
    first_expiry: Micros | None
    now: Micros
    all_engines: int = 0
    all_unended: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many runs a user may begin now, in millionths, as it was at a time; an empty one of long ago is full."""

    level: int = 0
    at: Micros = 0


def content_hash(message: str, params: Mapping[str, Any], pipeline: Sequence[str], strategy: ThreadStrategy) -> str:
    """What makes two requests the same one. Ids don't: a caller that tries again mints new ones."""
    content = json.dumps([message, params, list(pipeline), strategy], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def parse_params(params_json: bytes) -> dict[str, Any]:
    """The request's parameters.

    Raises:
        InvalidRequestError: They are no JSON object, or nest deeper than agents take.
    """
    if not params_json:
        return {}
    try:
        params = orjson.loads(params_json)
    except orjson.JSONDecodeError:
        params = None
    if not isinstance(params, dict):
        raise InvalidRequestError(
            "params_json is no JSON object", fields={"params_json": "must be a UTF-8 JSON object, or empty"}
        )
    if nests_too_deep(params):
        problem = f"nests more than {MAX_NESTING} levels deep"
        raise InvalidRequestError(
            f"params_json {problem}",
            advice="send flatter values, or the inner ones as JSON text",
            fields={"params_json": problem},
        )
    return params


def check_repeat(*, same_content: bool, same_ref: bool, run_id: str) -> None:
    """Decide about a request whose ``client_ref`` or run id is known: return when it is the same request.

    Raises:
        IdempotencyConflictError: The ``client_ref`` names a request with other content.
        AlreadyExistsError: The run id is taken by another request.
    """
    if same_ref and same_content:
        return
    if same_ref:
        raise IdempotencyConflictError("this client_ref was used for a request with other content", run_id=run_id)
    raise AlreadyExistsError("this run_id is taken by another request", advice="mint a new run_id", run_id=run_id)


def check_thread(facts: Facts) -> None:
    """Decide about a thread that ``reject`` must find idle.

    Raises:
        ThreadBusyError: It has a run that has not ended.
    """
    if facts.busy_run_id:
        raise ThreadBusyError(
            "the thread has a run that has not ended",
            advice="wait for it, or choose a strategy: enqueue, interrupt or rollback",
            retry_after_s=_retry_after(facts),
            run_id=facts.busy_run_id,
        )


def check_room(facts: Facts, limits: UserLimits, max_unended_total: int = 0) -> None:
    """Decide whether another unended run fits, of the user's and of all users'; a total of 0 is no limit.

    Raises:
        UnendedRunsError, ActiveRunsError: With the limit, its use and when to try again.
    """
    if facts.unended >= limits.max_unended:
        raise UnendedRunsError(
            f"{facts.unended} of your {limits.max_unended} unended runs are in use",
            advice="wait for a run to end, or cancel one",
            retry_after_s=_retry_after(facts),
            limit="max_unended_runs_per_user",
            limit_value=limits.max_unended,
            use=facts.unended,
        )
    if max_unended_total and facts.all_unended >= max_unended_total:
        raise ActiveRunsError(
            f"all {max_unended_total} places for runs that have not ended are taken",
            advice="try again in a moment",
            retry_after_s=_retry_after(facts),
            limit="max_unended_runs",
            limit_value=max_unended_total,
            use=facts.all_unended,
        )


def take_from_bucket(bucket: Bucket, per_minute: float, burst: int, now: Micros) -> Bucket:
    """Take one run out of the user's bucket, which fills at ``per_minute`` up to ``burst``.

    Raises:
        RateLimitError: There is not a whole one in it; says when there will be.
    """
    if per_minute <= 0:
        return bucket
    size = max(burst, 1) * _WHOLE
    # A clock that was set back must not empty it, nor let it fill twice.
    level = min(size, bucket.level + round(max(0, now - bucket.at) * per_minute / 60))
    if level < _WHOLE:
        raise RateLimitError(
            f"you may begin {per_minute:g} runs in a minute, and {max(burst, 1)} at once",
            retry_after_s=max(0.001, round((_WHOLE - level) * 60 / per_minute / _SECOND, 3)),
            limit="runs_per_minute_per_user",
            limit_value=per_minute,
            use=per_minute,
        )
    return Bucket(level - _WHOLE, max(now, bucket.at))


def check_reservation(*, found: bool) -> None:
    """Decide about a run that names an engine.

    Raises:
        UnknownEngineError: It is no free reservation of the user's.
    """
    if not found:
        raise UnknownEngineError("no free reserved engine of that id", advice="reserve one, or leave engine_id empty")


def check_engines(facts: Facts, max_engines: int) -> None:
    """Decide whether another engine fits.

    Raises:
        EnginesLimitError: All are in use.
    """
    if facts.engines >= max_engines:
        raise EnginesLimitError(
            f"{facts.engines} of your {max_engines} engines are in use",
            advice="wait for a run to end, cancel one, or clean up a reserved engine",
            retry_after_s=_retry_after(facts),
            limit="max_engines_per_user",
            limit_value=max_engines,
            use=facts.engines,
        )


def check_active(facts: Facts, max_active_total: int) -> None:
    """Decide whether another engine fits into the deployment; 0 is no limit.

    Raises:
        ActiveRunsError: All are in use.
    """
    if max_active_total and facts.all_engines >= max_active_total:
        raise ActiveRunsError(
            f"all {max_active_total} engines of this deployment are in use",
            advice="try again in a moment, or let the run wait its turn (strategy enqueue)",
            retry_after_s=_retry_after(facts),
            limit="max_active_runs",
            limit_value=max_active_total,
            use=facts.all_engines,
        )


def _retry_after(facts: Facts) -> float:
    # Most runs end long before their engine's time; asking every few seconds is cheap, later than expiry is useless.
    if facts.first_expiry is None:
        return 1.0
    return min(5.0, max(1.0, (facts.first_expiry - facts.now) / _SECOND))
