"""Users whose logins were revoked, and single logins that were signed out: what comes from them is refused.

What a revoked user has begun ends; what a signed-out login has begun goes on, since its user is only elsewhere.

The record is in the run store, which all replicas share; each keeps a copy and looks again every two seconds. What is
refused here is refused by gateways too, each from the same record. Emitters and bridges are told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from carrel.errors import CarrelError, StoreUnavailableError
from servicekit.identity.principals import Principal, ServicePrincipal
from servicekit.logs import get_logger, hash_user
from services.execution.models import UNENDED_STATES, Micros, RunRecord, UserKey
from services.execution.models_steps import SignedOut
from services.execution.store import PageKey, RunStore

__all__ = ["RevokedUsers", "RunEnder"]

_log = get_logger("execution.revocations")
_LOOK_S: Final = 2.0
_PAGE: Final = 100
_LOGINS: Final = 5000
_FORGET_US: Final = 60_000_000


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
        self._signed_out: dict[str, SignedOut] = {}
        self._as_of: Micros = 0
        self._forgot: Micros = 0
        self._looked = time.monotonic()
        # Called when something was revoked: what is open may have to end.
        self.on_change: Callable[[], None] = _nothing

    @property
    def signed_out(self) -> Mapping[str, SignedOut]:
        """Logins that are worth nothing, by name."""
        return self._signed_out

    @property
    def age_s(self) -> float:
        """Seconds since the record was last read."""
        return time.monotonic() - self._looked

    @property
    def known(self) -> Mapping[UserKey, Micros]:
        """Since when each user's logins are good again."""
        return self._not_before

    def refuses(self, principal: Principal) -> bool:
        """Whether the principal's ticket was issued before its user was revoked, or comes from a signed-out login."""
        if isinstance(principal, ServicePrincipal):
            return False
        if principal.login and principal.login in self._signed_out:
            return True
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
        self.on_change()
        return not_before, await self._end_runs(user, reason)

    async def sign_out(self, user: UserKey, login: str, expires_at: Micros) -> None:
        """Record that a login is worth nothing any more.

        Raises:
            StoreUnavailableError: It cannot be recorded.
            LimitExceededError: Too many of the user's are.
        """
        await self._store.sign_out(user, login, expires_at)
        self._signed_out[login] = SignedOut(login, user, expires_at)
        self.on_change()

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
        await self._look_for_logins()
        # Before the logins were read: those of in between are told again.
        self._as_of = found.as_of
        self._looked = time.monotonic()
        self.on_change()

    async def _look_for_logins(self) -> None:
        page: PageKey | None = None
        while True:
            found = await self._store.signed_out(self._as_of, _LOGINS, page)
            self._signed_out |= {item.login: item for item in found.items}
            page = found.next
            if page is None:
                break
        now = self._store.now()
        if self._forgot + _FORGET_US <= now:
            self._forgot = now
            self._signed_out = {name: item for name, item in self._signed_out.items() if item.expires_at > now}

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


def _nothing() -> None:
    """Nobody listens."""
