"""What a user's model calls may use: tokens, as execution grants them, and calls at once, over all runs of the process.

Tokens are checked before a call and counted after it, so calls under way may go past the end of a budget by what they
use themselves; the next call is refused then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from carrel.errors import ModelBudgetError, ModelBusyError
from services.agent_instance.models import BudgetGrant

__all__ = ["StageBudget", "UserGates"]

_BUSY_RETRY_S: Final = 1.0


class StageBudget:
    """The tokens of one stage's calls, or of a sub-agent's within it (``part``).

    A grant says what was left when execution wrote it. Uses that it cannot know of yet are taken off here.
    """

    def __init__(self, grant: BudgetGrant | None = None, *, unix: Callable[[], float] = time.time) -> None:
        self._grant = grant
        self._first = grant
        self._unix = unix
        self._unanswered: deque[int] = deque()
        self._parent: StageBudget | None = None
        self._limit: int | None = None
        self.used = 0

    @property
    def concurrency(self) -> int | None:
        """Calls at once that the grant allows; None when it says nothing."""
        if self._parent is not None:
            return self._parent.concurrency
        return None if self._grant is None else self._grant.concurrency

    @property
    def left(self) -> int | None:
        """Tokens that may still be used; None for any number."""
        own = None if self._limit is None else max(0, self._limit - self.used)
        if self._parent is not None:
            above = self._parent.left
            return own if above is None else above if own is None else min(own, above)
        return None if self._grant is None else max(0, self._grant.tokens - sum(self._unanswered))

    def part(self, limit: int | None) -> StageBudget:
        """A budget within this one, of at most ``limit`` tokens."""
        part = StageBudget(unix=self._unix)
        part._parent, part._limit = self, limit
        return part

    def renew(self, grant: BudgetGrant) -> None:
        """Execution answers the oldest use that it had not answered, or grants anew."""
        if self._unanswered:
            self._unanswered.popleft()
        self._first = self._first or grant
        self._grant = grant

    def spend(self, tokens: int) -> None:
        """A call has used these; execution is told at the same time, and will answer with a grant."""
        self.used += tokens
        if self._parent is not None:
            self._parent.spend(tokens)
        elif self._grant is not None:
            self._unanswered.append(tokens)

    def require(self) -> None:
        """Do nothing while tokens are left.

        Raises:
            ModelBudgetError: There are none.
        """
        if self.left != 0:
            return
        if self._parent is not None and self._parent.left != 0:
            raise ModelBudgetError(
                f"the sub-agent's {self._limit} tokens for models are used up",
                advice="give run_agent more model_tokens, or ask for less",
                limit="model_tokens",
                limit_value=self._limit,
                use=self.used,
            )
        if self._parent is not None:
            self._parent.require()
        assert self._grant is not None
        renews = self._grant.renews_at
        wait = max(0.0, renews - self._unix()) if renews else None
        when = "" if wait is None else f"; there are new ones in {round(wait)} s"
        raise ModelBudgetError(
            f"the user's tokens for models are used up{when}",
            advice="wait for new ones, or have the operator raise the budget",
            retry_after_s=wait,
            limit="model_tokens",
            limit_value=0 if self._first is None else self._first.tokens,
            use=self.used,
            renews_at=renews or None,
        )


@dataclass(slots=True)
class _Gate:
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    limit: int = 1

    def open(self) -> None:
        """Let in who is first in line, while there is room."""
        while self.waiting and self.running < self.limit:
            first = self.waiting.popleft()
            if not first.done():
                self.running += 1
                first.set_result(None)


class UserGates:
    """Lets each user's calls in, first come first served, so many at once. No user waits for another.

    Args:
        limit: Calls at once, less when a grant says less.
        max_waiting: How many of a user's may wait.
        wait_s: How long one may wait.
    """

    def __init__(self, limit: int, *, max_waiting: int, wait_s: float) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._gates: dict[str, _Gate] = {}

    @property
    def running(self) -> int:
        """Calls under way, of all users."""
        return sum(gate.running for gate in self._gates.values())

    @property
    def waiting(self) -> int:
        """Calls that wait, of all users."""
        return sum(len(gate.waiting) for gate in self._gates.values())

    @asynccontextmanager
    async def turn(self, user_id: str, granted: int | None) -> AsyncIterator[None]:
        """The block runs when it is the call's turn.

        Args:
            granted: Calls at once that execution allows the user; None for no opinion.

        Raises:
            ModelBusyError: Too many wait already, or it has waited too long.
        """
        gate = self._gates.setdefault(user_id, _Gate())
        gate.limit = max(1, self._limit if granted is None else min(self._limit, granted))
        try:
            await self._enter(gate)
        except BaseException:
            self._tidy(user_id, gate)
            raise
        try:
            yield
        finally:
            gate.running -= 1
            gate.open()
            self._tidy(user_id, gate)

    async def _enter(self, gate: _Gate) -> None:
        if not gate.waiting and gate.running < gate.limit:
            gate.running += 1
            return
        if len(gate.waiting) >= self._max_waiting:
            raise _busy("wait for their turn already", "max_waiting_per_user", self._max_waiting, len(gate.waiting))
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gate.waiting.append(place)
        gate.open()
        try:
            async with asyncio.timeout(self._wait_s):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                gate.running -= 1  # let in, and left in the same moment
            else:
                place.cancel()
                with suppress(ValueError):
                    gate.waiting.remove(place)
            gate.open()
            if isinstance(error, TimeoutError):
                problem = f"are under way, and none ended within {self._wait_s:g} s"
                raise _busy(problem, "concurrency_per_user", gate.limit, gate.running) from None
            raise

    def _tidy(self, user_id: str, gate: _Gate) -> None:
        if not gate.running and not gate.waiting and self._gates.get(user_id) is gate:
            del self._gates[user_id]


def _busy(problem: str, limit: str, value: int, use: int) -> ModelBusyError:
    return ModelBusyError(
        f"{use} model calls of the user {problem}", retry_after_s=_BUSY_RETRY_S, limit=limit, limit_value=value, use=use
    )
