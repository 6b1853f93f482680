"""What a service does with ``Revoke``: sees that it comes from execution itself, and takes in what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from carrel.errors import PermissionDeniedError
from carrel.v1.revocations_pb2 import RevokedLogin, RevokedUser
from servicekit.identity.principals import EXECUTION_ITSELF, Principal, RunPrincipal
from servicekit.identity.revoked import RevokedTickets

__all__ = ["RevokeRequest", "take_revocations"]


class RevokeRequest(Protocol):
    """What the services' requests have in common."""

    @property
    def users(self) -> Iterable[RevokedUser]: ...
    @property
    def logins(self) -> Iterable[RevokedLogin]: ...


def take_revocations(request: RevokeRequest, caller: Principal, revoked: RevokedTickets) -> None:
    """Take in what execution tells.

    Raises:
        PermissionDeniedError: The caller is not execution itself. A run's ticket, which agent_instance holds too, is
            not enough.
    """
    if not isinstance(caller, RunPrincipal) or caller.issuer != "execution" or caller.user_id != EXECUTION_ITSELF:
        raise PermissionDeniedError("only execution says what is revoked", advice="call RevokeUser at execution")
    revoked.learn(
        ((user.user_id, _seconds(user.not_before)) for user in request.users),
        ((login.login, _seconds(login.expires_at)) for login in request.logins),
    )


def _seconds(moment: Timestamp) -> float:
    # By hand: the library's own conversion raises for years beyond 9999.
    return moment.seconds + moment.nanos / 1e9
