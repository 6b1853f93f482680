"""What all gateways know alike, kept by execution: names given once, revoked users, logins that were signed out.

Revocations are asked for every two seconds; each is acted on here: sockets close, and what was issued before opens
none. Not limits of connections, which each gateway keeps for itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import CarrelError, NotImplementedYetError, TokenError
from carrel.v1 import execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from gateway.close_codes import CloseCode
from gateway.hub import Hub
from gateway.login import LONGEST_LEEWAY_S, Login
from gateway.tickets import TicketDesk
from servicekit.logs import get_logger, hash_user

__all__ = ["AuditTrail", "Once", "Revocations"]

_log: Final = get_logger("gateway.revocations")
_LOOK_S: Final = 2.0
# How often logins that have ended by themselves are forgotten.
_FORGET_S: Final = 60.0
_LAST_SECOND: Final = 253_402_300_799


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


class AuditTrail:
    """Acts at this gateway that are to be remembered with those at execution."""

    def __init__(self, execution: aio.Channel, desk: TicketDesk) -> None:
        self._stub = ExecutionServiceStub(execution)
        self._desk = desk
        self._told = False

    async def record(self, user_id: str, action: str, target: str) -> None:
        """Keep an act that concerns a user.

        Raises:
            CarrelError: It cannot be kept: then the act must not be done. An execution of the release before this one
                keeps no such records. During an upgrade the act is done as it was there; each is a line of the log
                instead, and the first one says why.
        """
        request = execution_pb2.RecordAuditRequest(
            context=self._desk.own(), user_id=user_id, action=action, target=target
        )
        try:
            await self._stub.RecordAudit(request)
        except NotImplementedYetError:
            if not self._told:
                self._told = True
                _log.warning(
                    "execution is of the former release and keeps no record of acts at the gateway: until it is"
                    " upgraded they are done, and are in this log alone"
                )
            _log.warning("not in the audit trail", action=action, target=target, user=hash_user(user_id))
        else:
            self._told = False


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
        self._signed_out: dict[str, float] = {}
        self._forgot = time.time()
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
        TokenError: The login was signed out, or is of before its user was revoked.
        """
        if login.name in self._signed_out:
            raise _gone()
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
        first: Timestamp | None = None
        while True:
            answer = await self._stub.ListRevocations(request)
            first = first or answer.as_of
            for revocation in answer.revocations:
                self._learn(revocation.user_id, revocation.not_before)
            for gone in answer.signed_out:
                # By hand: the library's own conversion raises for years beyond 9999.
                self._sign_out(gone.user_id, gone.login, float(gone.expires_at.seconds))
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        self._as_of = first
        self._looked = time.monotonic()
        self._forget()

    async def sign_out(self, login: Login, *, everywhere: bool) -> int:
        """End a login, or all of its user's and what they have begun; how many runs were cancelled.

        Raises:
            LimitExceededError: Too many logins of the user are signed out already.
            CarrelError: Execution cannot record it: nothing has changed.
        """
        ends = Timestamp(seconds=min(int(login.expires_at) + LONGEST_LEEWAY_S, _LAST_SECOND))
        request = execution_pb2.SignOutRequest(
            context=self._desk.session(login), expires_at=ends, everywhere=everywhere
        )
        answer = await self._stub.SignOut(request)
        if everywhere:
            self._learn(login.user_id, answer.not_before)
        else:
            self._sign_out(login.user_id, login.name, float(ends.seconds))
        return answer.cancelled_runs

    async def look_for_ever(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except CarrelError as error:
                _log.warning("revocations cannot be read", code=error.code)

    def _learn(self, user_id: str, moment: Timestamp) -> None:
        not_before = moment.ToNanoseconds() / 1e9
        if self._not_before.get(user_id, 0.0) < not_before:
            self._not_before[user_id] = not_before
            self._revoke(user_id)

    def _sign_out(self, user_id: str, name: str, expires_at: float) -> None:
        if name in self._signed_out:
            return
        self._signed_out[name] = expires_at
        self._desk.forget_login(name)
        feed = self._hub.feed(user_id)
        if feed is not None:
            _log.info("a login was signed out", user=hash_user(user_id), connections=feed.sign_out(name, _gone()))

    def _forget(self) -> None:
        now = time.time()
        if not self._forgot <= now < self._forgot + _FORGET_S:
            self._forgot = now
            self._signed_out = {name: ends for name, ends in self._signed_out.items() if ends > now}

    def _revoke(self, user_id: str) -> None:
        self._desk.forget(user_id)
        feed = self._hub.feed(user_id)
        if feed is not None:
            _log.info("a user was revoked", user=hash_user(user_id))
            feed.end(CloseCode.BAD_TOKEN, _revoked())


def _gone() -> TokenError:
    return TokenError("this login was signed out", advice="log in again")


def _revoked() -> TokenError:
    return TokenError("the user's logins of that time were revoked", advice="log in again")
