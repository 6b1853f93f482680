"""Moving an existing application over: route by route, by a share of its users, back at once.

    adapters = migrate_to_factory_pattern(
        old={"POST /quote": quote_in_process}, new={"POST /quote": quote_on_the_chain},
        rollout=FileRollout(Path("rollout.json")), idempotent={"POST /quote"},
    )
    async with adapters["POST /quote"] as quote:
        answer = await quote("alice", request)

A ``FactoryAdapter`` stands where the old handler stood. At each call it asks the rollout which way this user goes: a
change of the rollout is felt by the next call, and nothing has to be restarted or undone. What has begun ends where it
began. Neither a proxy nor a queue: it calls one of two functions in the caller's task. It loads no gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar

from carrel.errors import CarrelError, InvalidConfigurationError, UnavailableError, from_dict
from carrel.ids import new_id
from carrel.migration_rollout import FileRollout, Rollout, RolloutTable, Share
from carrel.pseudonyms import hash_user

if TYPE_CHECKING:
    from carrel.client.http import GatewayHttp

__all__ = [
    "Attempt",
    "FactoryAdapter",
    "FileRollout",
    "Path",
    "Rollout",
    "RolloutTable",
    "Served",
    "Share",
    "ask_chain",
    "migrate_to_factory_pattern",
]

Q = TypeVar("Q")
A = TypeVar("A")
# Which way a call went. ``fallback``: the chain was away, and the old handler answered; ``shadow``: the new one was run
# beside, and its answer compared and thrown away.
Path = Literal["old", "new", "fallback", "shadow"]

_log: Final = logging.getLogger("carrel.migration")
_SHADOWS: Final = 16
_REST_S: Final = 2.0
_LONGEST_REST_S: Final = 30.0
_ENDED_WELL: Final = "SUCCEEDED"


@dataclass(slots=True)
class Attempt:
    """One call of a new handler: whom it is for, and whether anything has begun for it.

    Args:
        user_id: Whom it is for.
        route: The adapter's.
        ref: Names it: as ``client_ref`` of a run, asking twice begins one run.
        begun: Set by the handler once something was begun that the old handler must not do again by itself.
    """

    user_id: str
    route: str
    ref: str = field(default_factory=lambda: new_id("ref"))
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What an adapter tells of a call, for logs and metrics. It names no user.

    Args:
        route: The adapter's.
        path: Which way it went.
        seconds: How long the handler took.
        error: The class of what it raised; empty if it answered.
        user: The user's pseudonym.
        same: Of a shadow: whether its answer was the old one's; None if there was none to compare.
    """

    route: str
    path: Path
    seconds: float
    error: str
    user: str
    same: bool | None = None


Old = Callable[[str, Q], Awaitable[A]]
New = Callable[[Attempt, Q], Awaitable[A]]


class FactoryAdapter(Generic[Q, A]):
    """One route of an application, with two handlers.

    Args:
        route: Its name, as the rollout has it.
        old: The application's own handler: ``await old(user_id, request)``.
        new: The one over the chain: ``await new(attempt, request)``.
        rollout: Says at each call which share of users goes the new way.
        idempotent: Doing a request twice does no harm. Only then does the old handler answer when the chain is away
            (an answer that was lost on its way can't be told from a request that was), and only then are there shadows.
        same: Whether the new handler's answer is as good as the old one's, for shadows.
        served: Told of every call, beside the log and ``counts``. Must not block; what it raises is logged.

    Raises:
        ValueError: The route has no name.
    """

    def __init__(
        self,
        route: str,
        old: Old[Q, A],
        new: New[Q, A],
        rollout: Rollout,
        *,
        idempotent: bool = False,
        same: Callable[[A, A], bool] = operator.eq,
        served: Callable[[Served], None] | None = None,
    ) -> None:
        if not route:
            raise ValueError("a route needs a name")
        self.route = route
        self.counts: Counter[Path] = Counter()
        self._old = old
        self._new = new
        self._rollout = rollout
        self._idempotent = idempotent
        self._same = same
        self._served = served
        self._shadows: set[asyncio.Task[None]] = set()
        self._rests_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End shadows that are under way. Calls are their callers'. Idempotent."""
        shadows = list(self._shadows)
        for shadow in shadows:
            shadow.cancel()
        await asyncio.gather(*shadows, return_exceptions=True)

    async def __call__(self, user_id: str, request: Q) -> A:
        """Answer a request the old way or the new.

        Raises:
            Exception: Whatever the handler raised whose turn it was. That the chain is away: only where the old handler
                may not answer instead.
        """
        share = self._rollout(self.route)
        if not share.has(user_id):
            return await self._answer_old(user_id, request, share, "old")
        if self._rests():
            return await self._answer_old(user_id, request, share, "fallback")
        attempt, began = Attempt(user_id, self.route), time.monotonic()
        try:
            answer = await self._new(attempt, request)
        except UnavailableError as error:
            self._tell("new", began, user_id, error)
            if attempt.begun or not self._idempotent:
                raise
            self._rests_until = time.monotonic() + min(error.retry_after_s or _REST_S, _LONGEST_REST_S)
            return await self._answer_old(user_id, request, share, "fallback")
        except Exception as error:
            self._tell("new", began, user_id, error)
            raise
        self._tell("new", began, user_id)
        return answer

    def _rests(self) -> bool:
        """Whether the chain was away a moment ago: then not every caller waits to find that out."""
        return self._idempotent and time.monotonic() < self._rests_until

    async def _answer_old(self, user_id: str, request: Q, share: Share, path: Path) -> A:
        began = time.monotonic()
        try:
            answer = await self._old(user_id, request)
        except Exception as error:
            self._tell(path, began, user_id, error)
            raise
        self._tell(path, began, user_id)
        if path == "old" and share.shadows(user_id) and self._idempotent and len(self._shadows) < _SHADOWS:
            task = asyncio.create_task(self._shadow(user_id, request, answer), name=f"shadow of {self.route}")
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return answer

    async def _shadow(self, user_id: str, request: Q, answer: A) -> None:
        began = time.monotonic()
        try:
            same = bool(self._same(answer, await self._new(Attempt(user_id, self.route), request)))
        except Exception as error:  # noqa: BLE001 -- nobody waits for it: it is told, and that is all
            self._tell("shadow", began, user_id, error)
        else:
            self._tell("shadow", began, user_id, same=same)

    def _tell(
        self, path: Path, began: float, user_id: str, error: Exception | None = None, *, same: bool | None = None
    ) -> None:
        self.counts[path] += 1
        served = Served(
            self.route,
            path,
            time.monotonic() - began,
            type(error).__name__ if error is not None else "",
            hash_user(user_id),
            same,
        )
        notable = path == "fallback" or same is False or error is not None
        fields = {"route": served.route, "path": path, "seconds": round(served.seconds, 4), "error_type": served.error}
        _log.log(
            logging.WARNING if notable else logging.DEBUG,
            "a shadow's answer differs" if same is False else "a call was served",
            extra={**fields, "user": served.user},
        )
        if self._served is not None:
            try:
                self._served(served)
            except Exception:  # noqa: BLE001 -- the call was answered, whatever becomes of what is told of it
                _log.exception("what was told of a call failed")


def migrate_to_factory_pattern(
    old: Mapping[str, Old[Any, Any]],
    new: Mapping[str, New[Any, Any]],
    rollout: Rollout,
    *,
    idempotent: Collection[str] = (),
    same: Callable[[Any, Any], bool] = operator.eq,
    served: Callable[[Served], None] | None = None,
) -> dict[str, FactoryAdapter[Any, Any]]:
    """An adapter for each route of an application that has a new handler.

    Args:
        old: The application's handlers by route. Those without a new one are left as they are: they get no adapter.
        new: The handlers over the chain by route.
        rollout: One switch for all of them.
        idempotent: Routes where doing a request twice does no harm.
        same, served: As ``FactoryAdapter``.

    Raises:
        InvalidConfigurationError: A route of ``new``, ``idempotent`` or the rollout is none of ``old``.
    """
    unknown = sorted((set(new) | set(idempotent) | set(rollout.routes())) - set(old))
    if unknown:
        raise InvalidConfigurationError(
            f"the application has no route {', '.join(unknown)}", advice=f"there are {', '.join(sorted(old))}"
        )
    return {
        route: FactoryAdapter(
            route, old[route], handler, rollout, idempotent=route in idempotent, same=same, served=served
        )
        for route, handler in new.items()
    }


async def ask_chain(
    gateway: GatewayHttp,
    attempt: Attempt,
    message: str,
    *,
    pipeline: Collection[str] = (),
    params: Mapping[str, Any] | None = None,
    thread_id: str = "",
    timeout_s: float = 60.0,
) -> Any:
    """What a new handler does: one run for the user, and its result.

    A run that is admitted is the attempt's: from then on the old handler does not answer instead. When the time is up,
    or the caller is cancelled, the run is cancelled too.

    Args:
        gateway: The user's calls, under the user's token.
        attempt: As the handler was given it.
        message, pipeline, params, thread_id: As ``GatewayHttp.execute``.
        timeout_s: How long the run may take.

    Raises:
        UnavailableError: The chain is away.
        TimeoutError: The run took too long.
        CarrelError: The run was refused, or what it failed with.
    """
    # Loads more than the rest of this module; whoever has a GatewayHttp has it already.
    from carrel.client.models import Event

    run = await gateway.execute(
        message,
        pipeline=tuple(pipeline),
        params=params,
        thread_id=thread_id,
        client_ref=attempt.ref,
        wait_s=0,
    )
    attempt.begun = True
    run_id, status = str(run["run_id"]), ""
    try:
        async with asyncio.timeout(timeout_s):
            async for item in gateway.run_events(run_id):
                if isinstance(item, Event) and item.terminal:
                    status = str(item.data.get("status", ""))
            run = await gateway.run(run_id)
    except (TimeoutError, asyncio.CancelledError):
        await _cancel(gateway, run_id)
        raise
    # The log has the end a moment before the run's row says so.
    if (status or run.get("status")) == _ENDED_WELL:
        return run.get("result")
    error = run.get("error")
    raise from_dict(error) if isinstance(error, Mapping) else CarrelError(f"the run ended {run.get('status')}")


async def _cancel(gateway: GatewayHttp, run_id: str) -> None:
    try:
        async with asyncio.timeout(5.0):
            await gateway.cancel(run_id, "nobody waits for it any more")
    except (CarrelError, TimeoutError):
        _log.warning("a run that nobody waits for could not be cancelled", extra={"run_id": run_id})
