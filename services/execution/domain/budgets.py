"""What a user may still use of models, as this process knows it: read once in a while, right after each use."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from services.execution.domain.limits import ModelLimits
from services.execution.domain.retry import insist
from services.execution.domain.services import RunServices
from services.execution.models import RunIdentity, RunRef, UserKey
from services.execution.models_steps import Budget

__all__ = ["Budgets"]

# Every use tells the truth anew, so this only bounds what other processes used meanwhile: a call or two of one user.
_FRESH_S: Final = 30.0
_MAX_USERS: Final = 10_000


class Budgets:
    """Answers most attempts from memory: few agents use a model, and none of them should cost the others a read."""

    def __init__(self, services: RunServices) -> None:
        self._services = services
        self._known: OrderedDict[UserKey, tuple[ModelLimits, Budget, float]] = OrderedDict()

    async def of(self, identity: RunIdentity) -> Budget:
        """What the run's user may use now."""
        limits = self._limits(identity)
        known = self._fresh(identity, limits)
        if known is not None:
            return known
        store, user = self._services.store, identity.user
        budget = await self._insist(
            lambda: store.budget(user, limits.tokens, limits.concurrency, limits.period_s), identity.run_id
        )
        self._note(identity, limits, budget)
        return budget

    def warm(self, identity: RunIdentity) -> asyncio.Task[Budget] | None:
        """Read ahead, so that ``of`` costs the run no time; None when it costs none anyway."""
        if self._fresh(identity, self._limits(identity)) is not None:
            return None
        return self._services.start(self.of(identity), "budget of a user")

    async def use(self, ref: RunRef, identity: RunIdentity, used: int) -> Budget:
        """Count tokens that were used; what is left."""
        limits, store = self._limits(identity), self._services.store
        budget = await self._insist(
            lambda: store.use_budget(ref, used, limits.tokens, limits.concurrency, limits.period_s), identity.run_id
        )
        self._note(identity, limits, budget)
        return budget

    def _fresh(self, identity: RunIdentity, limits: ModelLimits) -> Budget | None:
        known, now = self._known.get(identity.user), asyncio.get_running_loop().time()
        if known is None or known[0] != limits or now >= known[2] + _FRESH_S:
            return None
        return known[1] if self._services.clock() < known[1].renews_at else None

    def _limits(self, identity: RunIdentity) -> ModelLimits:
        return self._services.options.models.claimed(identity.limits)

    def _note(self, identity: RunIdentity, limits: ModelLimits, budget: Budget) -> None:
        self._known[identity.user] = (limits, budget, asyncio.get_running_loop().time())
        self._known.move_to_end(identity.user)
        while len(self._known) > _MAX_USERS:
            self._known.popitem(last=False)

    async def _insist(self, write: Callable[[], Awaitable[Budget]], run_id: str) -> Budget:
        options = self._services.options
        return await insist(write, first_s=options.retry_first_s, max_s=options.retry_max_s, run_id=run_id)
