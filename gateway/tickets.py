"""Tickets that the gateway mints: session tickets for its users' calls (cached), run tickets for new runs, its own.

Whoever asks has verified a login; permissions and limits come from that login and from nowhere else.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

from carrel.context import UserExecutionContext
from carrel.v1 import context_pb2 as pb
from gateway.login import LEEWAY_S, Login
from servicekit.identity.principals import AUDIT_WRITE, OPERATOR_READ
from servicekit.identity.tickets import TicketMinter

__all__ = ["ISSUER", "SESSION_S", "TicketDesk"]

ISSUER: Final = "gateway"
SESSION_S: Final = 600.0
_SERVICE_S: Final = 600.0
# A ticket in use must outlast the calls that it is put into.
_LEAST_LEFT_S: Final = 120.0
_CACHED: Final = 20_000

_Key = tuple[str, frozenset[str], tuple[tuple[str, int], ...], str]


class TicketDesk:
    """Mints, and remembers session tickets until they near their end: one signature takes 50 µs, a look-up none.

    Args:
        minter: Signs in the gateway's name.
        run_lifetime_s: How long a run ticket lives: the engine's longest time and the grace after it.
    """

    def __init__(self, minter: TicketMinter, run_lifetime_s: float) -> None:
        self._minter = minter
        self._run_lifetime_s = run_lifetime_s
        # With the time since when each is good: after a clock was set back, one of before is not valid yet.
        self._sessions: OrderedDict[_Key, tuple[str, float, float]] = OrderedDict()
        self._service: tuple[str, float, float] = ("", 0.0, 0.0)
        self._kid = minter.kid

    def _look_at_key(self) -> None:
        """Forget what another key signed: a key that was stolen is taken out of the public ones within seconds."""
        if self._minter.kid != self._kid:
            self._kid = self._minter.kid
            self._sessions.clear()
            self._service = ("", 0.0, 0.0)

    def session(self, login: Login) -> pb.UserExecutionContext:
        """The context of a call by this user, under a session ticket that ends no later than the login."""
        self._look_at_key()
        now = time.time()
        key: _Key = (login.user_id, login.permissions, tuple(sorted(login.limits.items())), login.name)
        ticket, since, ends = self._sessions.get(key, ("", 0.0, 0.0))
        short = ends < min(now + _LEAST_LEFT_S, login.expires_at) or ends > login.expires_at + LEEWAY_S
        if short or now < since:
            ticket, ends = self.mint_session(login, SESSION_S)
            self._sessions[key] = (ticket, now, ends)
            self._sessions.move_to_end(key)
            if len(self._sessions) > _CACHED:
                self._sessions.popitem(last=False)
        return pb.UserExecutionContext(user_id=login.user_id, ticket=ticket)

    def forget(self, user_id: str) -> None:
        """Use no ticket again that was minted for the user until now."""
        for key in [key for key in self._sessions if key[0] == user_id]:
            del self._sessions[key]

    def forget_login(self, name: str) -> None:
        """Use no ticket again that was minted from this login."""
        for key in [key for key in self._sessions if key[3] == name]:
            del self._sessions[key]

    def mint_session(self, login: Login, lifetime_s: float) -> tuple[str, float]:
        """A new session ticket and when it ends."""
        now = time.time()
        lifetime = max(1.0, min(lifetime_s, login.expires_at - now))
        ticket = self._minter.mint_session(login.user_id, login.permissions, login.limits, lifetime, login=login.name)
        return ticket, now + lifetime

    def mint_run(self, login: Login, context: UserExecutionContext) -> tuple[str, float]:
        """A ticket for the run of a context, and when it ends. It outlives the login: the run goes on."""
        ticket = self._minter.mint_run(
            context.user_id,
            context.thread_id,
            context.run_id,
            context.request_id,
            login.permissions,
            login.limits,
            self._run_lifetime_s,
            login=login.name,
        )
        return ticket, time.time() + self._run_lifetime_s

    def mint_service(self, service: str, permissions: Collection[str], lifetime_s: float) -> tuple[str, float]:
        """A service ticket and when it ends."""
        return self._minter.mint_service(service, permissions, lifetime_s), time.time() + lifetime_s

    def own(self) -> pb.UserExecutionContext:
        """The gateway's own context, for what it asks as a service."""
        self._look_at_key()
        now = time.time()
        ticket, since, ends = self._service
        if not since <= now < ends - _LEAST_LEFT_S:
            ticket, ends = self.mint_service(ISSUER, (OPERATOR_READ, AUDIT_WRITE), _SERVICE_S)
            self._service = ticket, now, ends
        return pb.UserExecutionContext(ticket=ticket)
