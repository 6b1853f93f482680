"""Users whose logins were revoked: what they have begun ends, and what was issued before that is refused.

The record is in the run store, which all replicas share; each keeps a copy and looks again every two seconds. What is
refused here is refused by gateways too, each from the same record. Emitter and bridge do not look: a ticket handed out
before reads events at the bridge until it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

from carrel.errors import CarrelError, StoreUnavailableError
from servicekit.identity.principals import Principal, ServicePrincipal
from servicekit.logs import get_logger, hash_user
from services.execution.models import UNENDED_STATES, Micros, RunRecord, UserKey
from services.execution.store import RunStore

__all__ = ["RevokedUsers", "RunEnder"]

_log = get_logger("execution.revocations")
_LOOK_S: Final = 2.0
_PAGE: Final = 100


class RunEnder(Protocol):
    """What ends runs: the factory."""

    async def cancel(self, user: UserKey, run_id: str, reason: str) -> RunRecord:
        """End a run; one that has ended stays as it ended."""
        ...


class RevokedUsers:
    """The copy, and what follows from a change of it.

    Args:
        store: Where the record is.
        runs: Ends what a user has begun.
    """

    def __init__(self, store: RunStore, runs: RunEnder) -> None:
        self._store = store
        self._runs = runs
        self._not_before: dict[UserKey, Micros] = {}
        self._as_of: Micros = 0
        self._looked = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the record was last read."""
        return time.monotonic() - self._looked

    @property
    def known(self) -> Mapping[UserKey, Micros]:
        """Since when each user's logins are good again."""
        return self._not_before

    def refuses(self, principal: Principal) -> bool:
        """Whether the principal's ticket was issued before its user was revoked."""
        if not self._not_before or isinstance(principal, ServicePrincipal):
            return False
        not_before = self._not_before.get(UserKey(principal.user_id))
        # A ticket's time is in whole seconds: one of the same second is refused too.
        return not_before is not None and principal.issued_at * 1_000_000 < not_before

    async def revoke(self, user: UserKey, reason: str) -> tuple[Micros, int]:
        """Record that the user is revoked and cancel what runs: from when on logins are good, and how many runs ended.

        Raises:
            StoreUnavailableError: It cannot be recorded.
        """
        not_before = await self._store.revoke_user(user, reason)
        self._not_before[user] = not_before
        return not_before, await self._end_runs(user, reason)

    async def look(self) -> None:
        """Learn what other replicas have recorded, and end what was begun here while they did.

        Raises:
            StoreUnavailableError: The store cannot be read.
        """
        first = self._as_of == 0
        found = await self._store.revocations(self._as_of)
        for item in found.items:
            if self._not_before.get(item.user, 0) >= item.not_before:
                continue
            self._not_before[item.user] = item.not_before
            if not first:
                await self._end_runs(item.user, "")
        self._as_of = found.as_of
        self._looked = time.monotonic()

    async def look_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except StoreUnavailableError as error:
                _log.warning("revocations cannot be read", reason=error.message)

    async def _end_runs(self, user: UserKey, reason: str) -> int:
        ended, why = 0, f"the user was revoked{': ' + reason if reason else ''}"
        page = await self._store.list_runs(user, "", UNENDED_STATES, _PAGE, None)
        for run in page.items:
            with suppress(CarrelError):
                await self._runs.cancel(user, run.identity.run_id, why)
                ended += 1
        _log.info("a user was revoked", user=hash_user(user), runs=ended)
        return ended
