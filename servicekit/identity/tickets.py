"""Tickets: the signed proof, carried in every context, of who a call is for. Minted here and verified here.

A ticket is a JWT (EdDSA, ``typ`` ``txntoken+jwt``) of one of three scopes. A verifier takes a whole context message and
gives a principal, or an error: there is no way to have the ids of a message without the comparison. Not login tokens.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import jwt

from carrel.errors import IdentityMismatchError, ScopeError, TicketError, TicketExpiredError, TooLargeError
from servicekit.identity.claims import AUDIENCE, MAX_TICKET_BYTES, TYPE, principal_from_claims, read_claims
from servicekit.identity.keys import KeySet
from servicekit.identity.principals import ANY_SCOPE, Principal, RunPrincipal, Scope, ServicePrincipal, SessionPrincipal
from servicekit.identity.signing import Signer
from servicekit.logs import get_logger

__all__ = ["REFUSALS", "ContextMessage", "TicketMinter", "TicketVerifier", "expired_ticket", "revoked_ticket"]

_log = get_logger("servicekit.identity")

# A name of its own, so that tests can move this module's clock and no other.
_now = time.time
_CACHE_SIZE: Final = 20_000
_LOOK_S: Final = 1.0
# Why a ticket is refused: "invalid" is malformed, of an unknown key, or with a wrong signature; "retired_key" names a
# key that was taken out while this process ran (its signature is not looked at: there is nothing to check it with).
REFUSALS: Final = ("missing", "invalid", "retired_key", "expired", "revoked", "scope")
_E = TypeVar("_E", bound=Exception)
_NEW_TICKET: Final = "get a fresh ticket and send the call again"


class ContextMessage(Protocol):
    """The fields of ``carrel.v1.UserExecutionContext`` that say who a call is for."""

    @property
    def user_id(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def parent_request_id(self) -> str: ...
    @property
    def operation_depth(self) -> int: ...
    @property
    def ticket(self) -> str: ...


class TicketMinter:
    """Signs tickets in the name of ``issuer``, for callers that have authenticated the user and chosen permissions."""

    def __init__(self, signer: Signer, issuer: str) -> None:
        key = signer.current()
        if key.issuer and key.issuer != issuer:
            raise ValueError(f"the key {key.kid} belongs to {key.issuer}, not to {issuer}")
        self._signer = signer
        self._issuer = issuer

    @property
    def kid(self) -> str:
        """The key that signs now: whoever uses tickets again mints them anew when it is another, before the former
        is taken out of the public keys."""
        return self._signer.current().kid

    def mint_run(  # noqa: PLR0913, PLR0917 -- the four ids have one well-known order
        self,
        user_id: str,
        thread_id: str,
        run_id: str,
        request_id: str,
        permissions: Iterable[str] = (),
        limits: Mapping[str, int] | None = None,
        lifetime_s: float = 1200.0,
        *,
        login: str = "",
    ) -> str:
        """A ticket for one run; ``request_id`` is its root request's and holds no ``_``.

        ``login`` names the login that it is worth no more than.
        """
        if "_" in request_id:
            raise ValueError("a root request's id holds no '_'")
        ids = {"sub": user_id, "thread": thread_id, "run": run_id, "req": request_id}
        return self._mint(Scope.RUN, ids, permissions, limits, lifetime_s, login)

    def mint_session(
        self,
        user_id: str,
        permissions: Iterable[str] = (),
        limits: Mapping[str, int] | None = None,
        lifetime_s: float = 600.0,
        *,
        login: str = "",
    ) -> str:
        """A ticket for a user's connections and questions. ``login`` names the login that it is worth no more than."""
        return self._mint(Scope.SESSION, {"sub": user_id}, permissions, limits, lifetime_s, login)

    def mint_service(self, service: str, permissions: Iterable[str] = (), lifetime_s: float = 600.0) -> str:
        """A ticket for a service that acts for no user."""
        return self._mint(Scope.SERVICE, {"sub": service}, permissions, None, lifetime_s)

    def _mint(
        self,
        scope: Scope,
        ids: Mapping[str, str],
        permissions: Iterable[str],
        limits: Mapping[str, int] | None,
        lifetime_s: float,
        login: str = "",
    ) -> str:
        key = self._signer.current()
        if scope not in key.scopes:
            raise ValueError(f"the key {key.kid} may not sign tickets of the scope {scope.value}")
        if not all(ids.values()):
            raise ValueError(f"a {scope.value} ticket needs {', '.join(ids)}, none of them empty")
        now = int(_now())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + max(1, round(lifetime_s)),
            "txn": secrets.token_urlsafe(12),
            "scope": scope.value,
            **ids,
            "perms": sorted(set(permissions)),
        }
        if limits:
            claims["limits"] = dict(limits)
        if login:
            claims["lgn"] = login
        ticket = jwt.encode(claims, key.key, algorithm="EdDSA", headers={"typ": TYPE, "kid": key.kid})
        if len(ticket) > MAX_TICKET_BYTES:
            raise TooLargeError(
                "the permissions do not fit into a ticket",
                advice="grant fewer permissions, or ones with shorter names",
                limit="ticket",
                limit_value=MAX_TICKET_BYTES,
                use=len(ticket),
            )
        return ticket


@dataclass(slots=True)
class _Known:
    """A verified ticket, with its principal's fields at hand for the comparison."""

    principal: Principal
    scope: Scope
    ends: float
    user_id: str
    thread_id: str
    run_id: str
    request_id: str
    child_prefix: str


class TicketVerifier:
    """Turns a context message into a principal. Synchronous; a ticket's signature is checked once, its fields always.

    Not for use from several threads. ``identity_mismatch_total`` counts contexts that said another identity than their
    ticket, ``refused`` the tickets that were refused, by ``REFUSALS``.
    """

    def __init__(self, keyset: KeySet, leeway_s: float = 5.0, *, cache_size: int = _CACHE_SIZE) -> None:
        self._keys = keyset
        self._leeway = leeway_s
        self._cache: dict[str, _Known] = {}
        self._cache_size = cache_size
        self._generation = keyset.generation
        self._looked = 0.0
        self._next_line = 0.0
        self.identity_mismatch_total = 0
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self._counts = self
        # Asked of each call, since a ticket may be revoked after it was verified.
        self.is_revoked: Callable[[Principal], bool] | None = None

    @property
    def leeway_s(self) -> float:
        """How long a ticket is taken beyond its end, for clocks that differ."""
        return self._leeway

    def alike(self) -> TicketVerifier:
        """Another one with the same keys, which is told of revocations for itself. Refusals are counted here."""
        other = TicketVerifier(self._keys, self._leeway, cache_size=self._cache_size)
        other._counts = self._counts
        return other

    def verify(self, message: ContextMessage, allow: Collection[Scope] = ANY_SCOPE) -> Principal:
        """The verified principal of a context.

        Args:
            message: The context as it came.
            allow: The scopes that this call takes.

        Raises:
            TicketError: No ticket, or one that is malformed or not signed by a known key.
            TicketExpiredError: The ticket is past its end.
            ScopeError: The ticket is good, but of a scope that this call does not take.
            IdentityMismatchError: An identity field differs from the ticket.
        """
        # The hot path: every event passes here. Each attribute of a protobuf message costs about 80 ns.
        ticket = message.ticket
        now = _now()
        if not self._looked <= now < self._looked + _LOOK_S:
            self._look_at_keys(now)
        known = self._cache.get(ticket)
        if known is None:
            known = self._learn(ticket, now)
        elif now >= known.ends:
            del self._cache[ticket]
            raise self.refusal("expired", expired_ticket())
        if known.scope not in allow:
            raise self.refusal("scope", _wrong_scope(known.scope, allow))
        if self.is_revoked is not None and self.is_revoked(known.principal):
            raise self.refusal("revoked", revoked_ticket())
        if message.user_id != known.user_id:
            raise self._mismatch("user_id", known)
        if message.thread_id != known.thread_id:
            raise self._mismatch("thread_id", known)
        if message.run_id != known.run_id:
            raise self._mismatch("run_id", known)
        request_id = message.request_id
        if request_id == known.request_id:
            # The root request, or (session, service) none at all.
            if message.operation_depth:
                raise self._mismatch("operation_depth", known)
            if message.parent_request_id:
                raise self._mismatch("parent_request_id", known)
        else:
            self._check_child(message, request_id, known)
        return known.principal

    def verify_ticket(self, ticket: str) -> Principal:
        """The principal of a bare ticket, for those who build a context around one.

        Raises:
            TicketError: As ``verify``.
        """
        now = _now()
        if not self._looked <= now < self._looked + _LOOK_S:
            self._look_at_keys(now)
        known = self._cache.get(ticket) or self._learn(ticket, now)
        if now >= known.ends:
            raise self.refusal("expired", expired_ticket())
        if self.is_revoked is not None and self.is_revoked(known.principal):
            raise self.refusal("revoked", revoked_ticket())
        return known.principal

    def refusal(self, reason: str, error: _E) -> _E:
        """The error to raise; the refusal is counted under its reason, one of ``REFUSALS``."""
        self._counts.refused[reason] += 1
        return error

    def _check_child(self, message: ContextMessage, request_id: str, known: _Known) -> None:
        prefix = known.child_prefix
        if not prefix or not request_id.startswith(prefix) or len(request_id) == len(prefix):
            raise self._mismatch("request_id", known)
        depth, parent = message.operation_depth, message.parent_request_id
        if not depth:
            raise self._mismatch("operation_depth", known)
        if depth == 1:
            right = parent == known.request_id
        else:
            # An operation's name may hold "_", so the ids bound the depth from above and do not fix it.
            right = parent.startswith(prefix) and parent.count("_") >= depth - 1
        if not right or not request_id.startswith(parent + "_") or len(request_id) == len(parent) + 1:
            raise self._mismatch("parent_request_id", known)

    def _learn(self, ticket: str, now: float) -> _Known:
        if not ticket:
            raise self.refusal(
                "missing", TicketError("the context carries no ticket", advice="put a ticket into context.ticket")
            )
        try:
            principal = principal_from_claims(read_claims(ticket, self._keys, self._leeway))
        except TicketError as error:
            raise self.refusal(self._why(error), error) from None
        # A key that was unknown may have just been read from the file: what older keys signed is judged anew.
        self._forget_if_keys_changed()
        known = _known(principal, self._leeway)
        if now >= known.ends:
            raise self.refusal("expired", expired_ticket())
        if len(self._cache) >= self._cache_size:
            self._make_room(now)
        self._cache[ticket] = known
        return known

    def _why(self, error: TicketError) -> str:
        if isinstance(error, TicketExpiredError):
            return "expired"
        return "retired_key" if self._keys.retired(str(error.details.get("kid", ""))) else "invalid"

    def _make_room(self, now: float) -> None:
        live = {ticket: known for ticket, known in self._cache.items() if known.ends > now}
        if len(live) >= self._cache_size:
            # The oldest quarter in one go: dropping one at a time from a dict's front costs a scan each.
            live = dict(list(live.items())[self._cache_size // 4 or 1 :])
        self._cache = live

    def _look_at_keys(self, now: float) -> None:
        self._looked = now
        self._keys.refresh()
        self._forget_if_keys_changed()

    def _forget_if_keys_changed(self) -> None:
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._cache.clear()

    def _mismatch(self, field: str, known: _Known) -> IdentityMismatchError:
        self._counts.identity_mismatch_total += 1
        now = _now()
        if now >= self._next_line:
            # One line a second at most: a flood of wrong contexts must not become a flood of lines.
            self._next_line = now + 1.0
            _log.warning("identity mismatch", field=field, scope=known.scope.value, total=self.identity_mismatch_total)
        return IdentityMismatchError(
            f"the context's {field} is not its ticket's",
            advice=_ADVICE[known.scope],
            field=field,
            scope=known.scope.value,
        )


_ADVICE: Final[Mapping[Scope, str]] = {
    Scope.RUN: "send the ids that the run ticket was made for; a child's request_id extends its parent's",
    Scope.SESSION: "under a session ticket set user_id and no other id",
    Scope.SERVICE: "under a service ticket leave every id empty",
}


def _known(principal: Principal, leeway: float) -> _Known:
    ends = principal.expires_at + leeway
    match principal:
        case RunPrincipal(user_id=user, thread_id=thread, run_id=run, request_id=request):
            return _Known(principal, Scope.RUN, ends, user, thread, run, request, request + "_")
        case SessionPrincipal(user_id=user):
            return _Known(principal, Scope.SESSION, ends, user, "", "", "", "")
        case ServicePrincipal():
            return _Known(principal, Scope.SERVICE, ends, "", "", "", "", "")


def expired_ticket() -> TicketExpiredError:
    """What whoever comes with a ticket past its end is told."""
    return TicketExpiredError("the ticket has expired", advice=_NEW_TICKET)


def revoked_ticket() -> TicketError:
    """What whoever comes with a revoked ticket is told."""
    return TicketError(
        "its login was signed out, or all of its user's of that time were revoked", advice="log in again"
    )


def _wrong_scope(scope: Scope, allow: Collection[Scope]) -> ScopeError:
    allowed = " or ".join(sorted(s.value for s in allow)) or "no"
    return ScopeError(
        f"this call takes a {allowed} ticket, not a {scope.value} ticket",
        advice=f"call with a {allowed} ticket",
        scope=scope.value,
    )
