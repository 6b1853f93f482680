"""What replicas need of each other through execution's store: names that are given once, and revoked users."""

from __future__ import annotations

import time
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import InvalidRequestError
from carrel.v1 import execution_pb2 as pb
from servicekit.identity.principals import ServicePrincipal
from servicekit.rpc.context import current_principal
from services.execution import convert
from services.execution.domain.revocations import RevokedUsers
from services.execution.models import UserKey
from services.execution.store import RunStore

__all__ = ["ReplicaCalls"]

_Context = aio.ServicerContext[Any, Any]
_LONGEST_CLAIM_S: Final = 86_400.0


class ReplicaCalls:
    """The calls; ``ExecutionServicer`` is one."""

    def __init__(self, store: RunStore, revoked: RevokedUsers) -> None:
        self._claims = store
        self._revoked = revoked

    async def ClaimOnce(  # noqa: N802 -- the RPC's name
        self, request: pb.ClaimOnceRequest, context: _Context
    ) -> pb.ClaimOnceResponse:
        """Give a name to the first that asks. Names of one service are none of another's."""
        principal = current_principal()
        assert isinstance(principal, ServicePrincipal), "the table of scopes says so"
        # By hand: the library's own conversion raises for years beyond 9999.
        ttl_s = request.expires_at.seconds + request.expires_at.nanos / 1e9 - time.time()
        if ttl_s > _LONGEST_CLAIM_S:
            raise InvalidRequestError("a name is kept for a day at most", fields={"expires_at": "is later than that"})
        # One whose time is over is worthless, whoever asks for it: it is nobody's.
        first = ttl_s > 0 and await self._claims.claim_once(f"{principal.service}:{request.name}", ttl_s)
        return pb.ClaimOnceResponse(first=first)

    async def RevokeUser(  # noqa: N802 -- the RPC's name
        self, request: pb.RevokeUserRequest, context: _Context
    ) -> pb.RevokeUserResponse:
        """End what a user has begun."""
        not_before, cancelled = await self._revoked.revoke(
            UserKey(request.user_id),
            request.reason.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # no database's text holds it
        )
        return pb.RevokeUserResponse(not_before=convert.time_to_proto(not_before), cancelled_runs=cancelled)

    async def ListRevocations(  # noqa: N802 -- the RPC's name
        self, request: pb.ListRevocationsRequest, context: _Context
    ) -> pb.ListRevocationsResponse:
        """Who was revoked."""
        found = await self._claims.revocations(_micros(request.after) if request.HasField("after") else 0)
        return pb.ListRevocationsResponse(
            revocations=[
                pb.Revocation(user_id=item.user, not_before=convert.time_to_proto(item.not_before))
                for item in found.items
            ],
            as_of=convert.time_to_proto(found.as_of),
        )


def _micros(moment: Timestamp) -> int:
    return moment.ToNanoseconds() // 1000
