"""What admits a run and what refuses it: pure decisions over facts that the store read under the user's lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

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
from carrel.frozen import MAX_NESTING, nests_too_deep
from services.execution.models import Micros, ThreadStrategy

__all__ = [
    "CLIENT_REF_LIFETIME_US",
    "Facts",
    "UserLimits",
    "check_engines",
    "check_repeat",
    "check_room",
    "check_strategy",
    "content_hash",
    "parse_params",
]

CLIENT_REF_LIFETIME_US: Final = 24 * 3600 * 1_000_000
_SECOND: Final = 1_000_000


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
    """What the store knows of the user at the moment of admission."""

    engines: int
    unended: int
    busy_run_id: str
    first_expiry: Micros | None
    now: Micros


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


def check_strategy(strategy: ThreadStrategy) -> None:
    """Refuse the thread strategies that this version does not fill.

    Raises:
        NotImplementedYetError: It is not ``reject``.
    """
    if strategy is not ThreadStrategy.REJECT:
        raise NotImplementedYetError(
            f"the thread strategy {strategy.value!r} is not available yet", advice="use 'reject', or another thread"
        )


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


def check_room(facts: Facts, limits: UserLimits, *, reserved: bool | None) -> None:
    """Decide whether a new run fits. ``reserved``: None without a reservation, else whether it is there and free.

    Raises:
        ThreadBusyError, UnknownEngineError, EnginesLimitError, UnendedRunsError: Limit, use and when to try again.
    """
    if facts.busy_run_id:
        raise ThreadBusyError(
            "the thread has a run that has not ended", retry_after_s=_retry_after(facts), run_id=facts.busy_run_id
        )
    if reserved is False:
        raise UnknownEngineError("no free reserved engine of that id", advice="reserve one, or leave engine_id empty")
    if reserved is None:
        check_engines(facts, limits.max_engines)
    if facts.unended >= limits.max_unended:
        raise UnendedRunsError(
            f"{facts.unended} of your {limits.max_unended} unended runs are in use",
            advice="wait for a run to end, or cancel one",
            retry_after_s=_retry_after(facts),
            limit="max_unended_runs_per_user",
            limit_value=limits.max_unended,
            use=facts.unended,
        )


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


def _retry_after(facts: Facts) -> float:
    # Most runs end long before their engine's time; asking every few seconds is cheap, later than expiry is useless.
    if facts.first_expiry is None:
        return 1.0
    return min(5.0, max(1.0, (facts.first_expiry - facts.now) / _SECOND))
