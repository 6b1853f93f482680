"""What replicas need of each other through execution's store: names given once, revoked users, signed-out logins.

And the records that security acts leave in the audit trail, whoever did them.
"""

from __future__ import annotations

import time
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import InvalidRequestError
from carrel.ids import new_id
from carrel.v1 import execution_pb2 as pb
from servicekit.identity.principals import ServicePrincipal, SessionPrincipal
from servicekit.rpc.context import current_principal
from services.execution import convert
from services.execution.domain.paging import decode_token, encode_token
from services.execution.domain.revocations import RevokedUsers
from services.execution.models import AuditEntry, UserKey
from services.execution.store import RunStore

__all__ = ["ReplicaCalls"]

_Context = aio.ServicerContext[Any, Any]
_LONGEST_CLAIM_S: Final = 86_400.0
_LOGINS: Final = 5000
# Whoever writes records of its own acts must not be able to make up those.
_OWN_ACTS: Final = frozenset({"audit", "encryption", "input", "login", "model", "run", "tool", "user"})
# The end of time in a Timestamp: a login that never ends is remembered as long.
_LAST_SECOND: Final = 253_402_300_799


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
        principal, user = current_principal(), UserKey(request.user_id)
        assert isinstance(principal, ServicePrincipal), "the table of scopes says so"
        not_before, cancelled = await self._revoked.revoke(
            user,
            request.reason.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # no database's text holds it
        )
        await self.record(user, "user.revoke", principal.service)
        return pb.RevokeUserResponse(not_before=convert.time_to_proto(not_before), cancelled_runs=cancelled)

    async def ListRevocations(  # noqa: N802 -- the RPC's name
        self, request: pb.ListRevocationsRequest, context: _Context
    ) -> pb.ListRevocationsResponse:
        """Who was revoked: users with the first page, then logins, page by page."""
        after = _micros(request.after) if request.HasField("after") else 0
        page = decode_token("signed-out", "is", request.page_token)
        found = await self._claims.revocations(after)
        logins = await self._claims.signed_out(after, _LOGINS, page)
        return pb.ListRevocationsResponse(
            revocations=[
                pb.Revocation(user_id=item.user, not_before=convert.time_to_proto(item.not_before))
                for item in found.items
                if page is None
            ],
            as_of=convert.time_to_proto(found.as_of),
            signed_out=[
                pb.SignedOutLogin(
                    login=item.login, user_id=item.user, expires_at=convert.time_to_proto(item.expires_at)
                )
                for item in logins.items
            ],
            next_page_token=encode_token("signed-out", logins.next),
        )

    async def SignOut(self, request: pb.SignOutRequest, context: _Context) -> pb.SignOutResponse:  # noqa: N802 -- the RPC's name
        """End the login that the ticket was minted from, or all of the user's."""
        principal = current_principal()
        assert isinstance(principal, SessionPrincipal), "the table of scopes says so"
        user = convert.user_key(principal)
        if request.everywhere:
            not_before, cancelled = await self._revoked.revoke(user, "signed out everywhere")
            await self.record(user, "login.sign_out_everywhere", principal.login)
            return pb.SignOutResponse(not_before=convert.time_to_proto(not_before), cancelled_runs=cancelled)
        if not principal.login:
            raise InvalidRequestError(
                "the ticket names no login that could be signed out",
                advice="sign out at the gateway, with the token itself",
            )
        ends_s = min(request.expires_at.seconds + 1, _LAST_SECOND)
        await self._revoked.sign_out(user, principal.login, ends_s * 1_000_000)
        await self.record(user, "login.sign_out", principal.login)
        return pb.SignOutResponse()

    async def RecordAudit(  # noqa: N802 -- the RPC's name
        self, request: pb.RecordAuditRequest, context: _Context
    ) -> pb.RecordAuditResponse:
        """Keep what the caller did; never what execution keeps a record of itself."""
        if request.action.partition(".")[0] in _OWN_ACTS:
            raise InvalidRequestError(
                "acts of that kind are recorded where they are done",
                advice="record what the caller has done itself",
                fields={"action": "is execution's own"},
            )
        await self.record(UserKey(request.user_id), request.action, request.target)
        return pb.RecordAuditResponse()

    async def record(self, user: UserKey, action: str, target: str) -> None:
        """Leave a record of an act in the audit trail."""
        entry = AuditEntry.outside_runs(new_id("aud"), user, action, target, self._claims.now())
        await self._claims.save_audit([entry])


def _micros(moment: Timestamp) -> int:
    # By hand, within what a Timestamp may say: the library's own raises beyond.
    return min(max(moment.seconds, 0), _LAST_SECOND) * 1_000_000 + min(max(moment.nanos, 0), 999_999_999) // 1000
