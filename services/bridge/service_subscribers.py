"""Under whose ticket each subscription of an Attach stream is, so that it ends when that ticket ends or is revoked.

A gateway shows a fresh ticket in time (``renew``); one that does not is told that the subscription is over, and may ask
for it again. Not what is queued for whom: that is the hub's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from carrel.errors import TicketError
from servicekit.identity.principals import UserPrincipal
from servicekit.identity.tickets import expired_ticket, revoked_ticket
from services.bridge.domain.hub import Hub
from services.bridge.domain.links import GatewayLink

__all__ = ["Subscribers"]

_LOOK_S: Final = 1.0
# Renewals come before the end; this is for one that is on its way.
_GRACE_S: Final = 10.0


@dataclass(slots=True)
class _Subscriber:
    generation: int
    principal: UserPrincipal


class Subscribers:
    """Args:
    hub: Where subscriptions end.
    is_revoked: Whether a principal's ticket is worth nothing any more.
    """

    def __init__(
        self,
        hub: Hub,
        is_revoked: Callable[[UserPrincipal], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._is_revoked = is_revoked
        self._clock = clock
        self._known: dict[GatewayLink, dict[str, _Subscriber]] = {}

    def add(self, link: GatewayLink, generation: int, principal: UserPrincipal) -> None:
        """A subscription has begun under this principal's ticket."""
        self._known.setdefault(link, {})[principal.user_id] = _Subscriber(generation, principal)

    def renew(self, link: GatewayLink, generation: int, principal: UserPrincipal) -> None:
        """It goes on under this one's."""
        known = self._known.get(link, {}).get(principal.user_id)
        if known is not None and known.generation == generation:
            known.principal = principal

    def remove(self, link: GatewayLink, generation: int, user: str) -> None:
        """It has ended."""
        known = self._known.get(link, {})
        if (found := known.get(user)) is not None and found.generation == generation:
            del known[user]

    def detach(self, link: GatewayLink) -> None:
        """All of a gateway's have."""
        self._known.pop(link, None)

    def look(self) -> None:
        """End those whose ticket has ended or was revoked, and tell their gateways."""
        oldest = self._clock() - _GRACE_S
        for link, known in self._known.items():
            for user, subscriber in list(known.items()):
                if self._is_revoked(subscriber.principal):
                    self._end(link, user, revoked_ticket())
                elif subscriber.principal.expires_at < oldest:
                    self._end(link, user, expired_ticket())

    async def look_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def _end(self, link: GatewayLink, user: str, error: TicketError) -> None:
        subscriber = self._known[link].pop(user)
        self._hub.unsubscribe(link, user, subscriber.generation)
        self._hub.refuse(link, user, subscriber.generation, error)
