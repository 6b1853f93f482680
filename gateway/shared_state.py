"""What all gateways know alike, kept by execution: names that are given once, and users whose logins were revoked.

Revocations are asked for every two seconds; each is acted on here: the user's sockets close, and what was issued before
it opens none. Not limits of connections, which each gateway keeps for itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import CarrelError, TokenError
from carrel.v1 import execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from gateway.close_codes import CloseCode
from gateway.hub import Hub
from gateway.login import Login
from gateway.tickets import TicketDesk
from servicekit.logs import get_logger, hash_user

__all__ = ["Once", "Revocations"]

_log: Final = get_logger("gateway.revocations")
_LOOK_S: Final = 2.0


class Once:
    """A ``Claim`` (see ``socket_tokens``) that asks execution."""

    def __init__(self, execution: aio.Channel, desk: TicketDesk) -> None:
        self._stub = ExecutionServiceStub(execution)
        self._desk = desk

    async def __call__(self, name: str, expires_at: float) -> bool:
        """Whether this is the first to ask for the name, among all gateways.

        Raises:
            CarrelError: Execution does not say.
        """
        ends = Timestamp()
        ends.FromNanoseconds(round(expires_at * 1e9))
        request = execution_pb2.ClaimOnceRequest(context=self._desk.own(), name=name, expires_at=ends)
        return (await self._stub.ClaimOnce(request)).first


class Revocations:
    """Which logins are worth nothing any more.

    Args:
        execution: Where they are recorded.
        desk: Tickets to ask with; forgets those of revoked users.
        hub: Whose connections are closed.
    """

    def __init__(self, execution: aio.Channel, desk: TicketDesk, hub: Hub, look_s: float = _LOOK_S) -> None:
        self._stub = ExecutionServiceStub(execution)
        self._desk = desk
        self._hub = hub
        self._look_s = look_s
        self._not_before: dict[str, float] = {}
        self._as_of: Timestamp | None = None
        self._looked = time.monotonic()

    def __len__(self) -> int:
        return len(self._not_before)

    @property
    def age_s(self) -> float:
        """Seconds since they were last learned."""
        return time.monotonic() - self._looked

    def check(self, login: Login) -> None:
        """Raises:
        TokenError: The login is of before its user was revoked.
        """
        not_before = self._not_before.get(login.user_id)
        # A login's time is in whole seconds, as a rule: one of the same second is refused too.
        if not_before is not None and login.issued_at < not_before:
            raise _revoked()

    async def look(self) -> None:
        """Learn what was recorded since the last look.

        Raises:
            CarrelError: Execution does not say.
        """
        request = execution_pb2.ListRevocationsRequest(context=self._desk.own(), after=self._as_of)
        answer = await self._stub.ListRevocations(request)
        for revocation in answer.revocations:
            user_id, not_before = revocation.user_id, revocation.not_before.ToNanoseconds() / 1e9
            if self._not_before.get(user_id, 0.0) < not_before:
                self._not_before[user_id] = not_before
                self._revoke(user_id)
        self._as_of = answer.as_of
        self._looked = time.monotonic()

    async def look_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except CarrelError as error:
                _log.warning("revocations cannot be read", code=error.code)

    def _revoke(self, user_id: str) -> None:
        self._desk.forget(user_id)
        feed = self._hub.feed(user_id)
        if feed is not None:
            _log.info("a user was revoked", user=hash_user(user_id))
            feed.end(CloseCode.BAD_TOKEN, _revoked())


def _revoked() -> TokenError:
    return TokenError("the user's logins of that time were revoked", advice="log in again")
