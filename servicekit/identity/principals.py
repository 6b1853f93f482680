"""Verified callers. Stores and channels are addressed through these, never through an id that a request carries.

Only ``TicketVerifier`` makes them outside tests. Pure Python, so that domains may import it: no grpc, no protobuf.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from carrel.errors import PermissionDeniedError, ScopeError

__all__ = [
    "ANY_SCOPE",
    "AUDIT_WRITE",
    "OPERATOR_READ",
    "OPERATOR_REVOKE",
    "Principal",
    "RunPrincipal",
    "Scope",
    "ServicePrincipal",
    "SessionPrincipal",
    "UserPrincipal",
    "may_see_run",
    "user_of",
]

AUDIT_WRITE = "audit:write"
OPERATOR_READ = "operator:read"
OPERATOR_REVOKE = "operator:revoke"


class Scope(enum.Enum):
    """What a ticket answers for."""

    RUN = "run"
    SESSION = "session"
    SERVICE = "service"


ANY_SCOPE = frozenset(Scope)


class _Permitted:
    """What the three principals share: permissions that can be asked for."""

    __slots__ = ()
    permissions: frozenset[str]

    def may(self, permission: str) -> bool:
        """Whether the permission was granted. The empty permission always is."""
        return not permission or permission in self.permissions

    def require(self, permission: str) -> None:
        """Raises:
        PermissionDeniedError: The permission was not granted.
        """
        if not self.may(permission):
            raise PermissionDeniedError(
                f"the permission {permission} is needed",
                advice="ask an operator for the permission, then get a fresh ticket",
                permission=permission,
            )


@dataclass(frozen=True, slots=True)
class RunPrincipal(_Permitted):
    """One run of one user: it answers for that run and nothing else."""

    scope: ClassVar[Scope] = Scope.RUN
    user_id: str
    thread_id: str
    run_id: str
    request_id: str  # the root request's; a child's context extends it
    permissions: frozenset[str]
    limits: Mapping[str, int]
    expires_at: float  # seconds since the epoch
    issuer: str = ""  # who signed it: execution's are for runs that were admitted, the gateway's only ask for one
    issued_at: float = field(default=0.0, compare=False)  # seconds since the epoch, rounded down
    login: str = field(default="", compare=False)  # the name of the login it was minted from; empty for none


@dataclass(frozen=True, slots=True)
class SessionPrincipal(_Permitted):
    """A user, for connections and for asking about what is theirs."""

    scope: ClassVar[Scope] = Scope.SESSION
    user_id: str
    permissions: frozenset[str]
    limits: Mapping[str, int]
    expires_at: float  # seconds since the epoch
    issued_at: float = field(default=0.0, compare=False)  # seconds since the epoch, rounded down
    login: str = field(default="", compare=False)  # the name of the login it was minted from; empty for none


@dataclass(frozen=True, slots=True)
class ServicePrincipal(_Permitted):
    """A service with operator permissions; it stands for no user."""

    scope: ClassVar[Scope] = Scope.SERVICE
    service: str
    permissions: frozenset[str]
    expires_at: float  # seconds since the epoch


Principal: TypeAlias = RunPrincipal | SessionPrincipal | ServicePrincipal
UserPrincipal: TypeAlias = RunPrincipal | SessionPrincipal


def may_see_run(principal: Principal, run_id: str) -> bool:
    """Whether the principal may ask about this run of its user: a session about any, a run ticket about its own."""
    if isinstance(principal, RunPrincipal):
        return principal.run_id == run_id
    return isinstance(principal, SessionPrincipal)


def user_of(principal: Principal) -> UserPrincipal:
    """The principal as one that stands for a user.

    Raises:
        ScopeError: It is a service's.
    """
    if isinstance(principal, ServicePrincipal):
        raise ScopeError("a service ticket stands for no user", advice="call with a user's ticket")
    return principal
