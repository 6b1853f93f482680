"""Which tickets are worth nothing any more, in services that are told of it and keep no record: emitter and bridge.

Execution tells (``Revoke``), again after each start of who is told. Pure Python, so that domains may import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from servicekit.identity.principals import Principal, RunPrincipal, ServicePrincipal

__all__ = ["RevokedTickets"]

_MOST: Final = 500_000


class RevokedTickets:
    """What was told. Times are seconds since the epoch.

    At ``most`` users, and as many logins, those are forgotten that matter least: users revoked longest ago, logins that
    end soonest.
    """

    def __init__(self, most: int = _MOST, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._logins: dict[str, float] = {}
        self._listeners: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._not_before) + len(self._logins)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call it each time when something was revoked: what is open may have to end."""
        self._listeners.append(listener)

    def learn(self, users: Iterable[tuple[str, float]], logins: Iterable[tuple[str, float]]) -> None:
        """Take in users with the moment from which on their tickets are good, and logins with their ends."""
        for user, not_before in users:
            if self._not_before.get(user, 0.0) < not_before:
                self._not_before[user] = not_before
        self._logins.update(logins)
        self._make_room()
        for listener in self._listeners:
            listener()

    def refuses(self, principal: Principal) -> bool:
        """Whether a ticket is revoked: issued before its user was, or minted from a login that was signed out."""
        if isinstance(principal, ServicePrincipal):
            return False
        if principal.login and principal.login in self._logins:
            return True
        not_before = self._not_before.get(principal.user_id)
        # A ticket's time is in whole seconds: one of the same second is refused too.
        return not_before is not None and principal.issued_at < not_before

    def refuses_event(self, principal: Principal) -> bool:
        """The same for what a run emits. Under execution's own tickets its last events still pass: it is cancelled, and
        the log takes nothing after its terminal event."""
        if isinstance(principal, RunPrincipal) and principal.issuer == "execution":
            return False
        return self.refuses(principal)

    def _make_room(self) -> None:
        if len(self._logins) > self._most:
            now = self._clock()
            left = sorted(((ends, login) for login, ends in self._logins.items() if ends > now), reverse=True)
            # A tenth more than must be, so that it is not sorted again at once.
            self._logins = {login: ends for ends, login in left[: self._most * 9 // 10]}
        if len(self._not_before) > self._most:
            newest = sorted(self._not_before.items(), key=lambda item: item[1], reverse=True)
            self._not_before = dict(newest[: self._most * 9 // 10])
