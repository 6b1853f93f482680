"""Tells emitters and bridges, each copy of them, what was revoked: they keep no record of it and ask nobody.

Within half a second of when this replica knows, and everything again after each start of one of them. Replicas tell the
same; being told twice changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import CarrelError
from carrel.v1 import bridge_pb2, emitter_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.revocations_pb2 import RevokedLogin, RevokedUser
from servicekit.logs import get_logger
from servicekit.rpc.copies import Copies, Copy

__all__ = ["RevocationTeller", "Revoked", "to_bridge", "to_emitter"]

_log: Final = get_logger("execution.revocations")
_LOOK_S: Final = 0.5
_CALL_S: Final = 3.0
_PAGE: Final = 5000
# A login's end, when it is said in years that the library cannot write.
_LAST_SECOND: Final = 253_402_300_799

_Users: TypeAlias = list[RevokedUser]
_Logins: TypeAlias = list[RevokedLogin]
Tell: TypeAlias = Callable[[aio.Channel, UserExecutionContext, _Users, _Logins], Awaitable[object]]


class SignedOutLogin(Protocol):
    """A login that was signed out; ``expires_at`` in microseconds since the epoch."""

    @property
    def expires_at(self) -> int: ...


class Revoked(Protocol):
    """What this replica knows; ``domain.revocations`` has it."""

    @property
    def known(self) -> Mapping[Any, int]:
        """From when on each user's tickets are good, in microseconds since the epoch."""
        ...

    @property
    def signed_out(self) -> Mapping[str, SignedOutLogin]:
        """Logins by name."""
        ...


def to_emitter(
    channel: aio.Channel, context: UserExecutionContext, users: _Users, logins: _Logins
) -> Awaitable[object]:
    """The call to an emitter."""
    request = emitter_pb2.EmitterServiceRevokeRequest(context=context, users=users, logins=logins)
    return EmitterServiceStub(channel).Revoke(request, timeout=_CALL_S)


def to_bridge(channel: aio.Channel, context: UserExecutionContext, users: _Users, logins: _Logins) -> Awaitable[object]:
    """The call to a bridge."""
    request = bridge_pb2.BridgeServiceRevokeRequest(context=context, users=users, logins=logins)
    return BridgeServiceStub(channel).Revoke(request, timeout=_CALL_S)


@dataclass(slots=True)
class _Told:
    """What one start of one copy has taken in."""

    ready_since: float
    users: dict[str, int] = field(default_factory=dict)
    logins: Mapping[str, SignedOutLogin] = field(default_factory=dict)
    count: int = 0
    failing: bool = False


class RevocationTeller:
    """Args:
    revoked: What there is to tell.
    context: Execution's own, fresh at each call.
    told: Whom, and how.
    """

    def __init__(
        self, revoked: Revoked, context: Callable[[], UserExecutionContext], told: list[tuple[Copies, Tell]]
    ) -> None:
        self._revoked = revoked
        self._context = context
        self._peers = told
        self._told: dict[Copy, _Told] = {}

    async def tell_for_ever(self) -> None:
        """Tell what is new, and whoever is new, until cancelled."""
        while True:
            await self.tell()
            await asyncio.sleep(_LOOK_S)

    async def tell(self) -> None:
        """One round. Whoever cannot be told now is told in the next one."""
        ready = [(copy, tell) for copies, tell in self._peers for copy in copies.ready()]
        there = {copy for copy, _ in ready}
        self._told = {copy: told for copy, told in self._told.items() if copy in there}
        await asyncio.gather(*(self._tell(copy, tell) for copy, tell in ready))

    async def _tell(self, copy: Copy, tell: Tell) -> None:
        told = self._told.get(copy)
        if told is None or told.ready_since != copy.ready_since:
            # It has started since, and knows nothing.
            told = self._told[copy] = _Told(copy.ready_since)
        try:
            await self._tell_users(copy, tell, told)
            await self._tell_logins(copy, tell, told)
        except CarrelError as error:
            # One of the release before does not know the call: there a ticket is good until it ends.
            if not told.failing:
                _log.warning("revocations cannot be told", address=copy.address, code=error.code)
            told.failing = True
        else:
            told.failing = False

    async def _tell_users(self, copy: Copy, tell: Tell, told: _Told) -> None:
        new = [(str(user), at) for user, at in self._revoked.known.items() if told.users.get(user) != at]
        for begin in range(0, len(new), _PAGE):
            page = new[begin : begin + _PAGE]
            users = [RevokedUser(user_id=user, not_before=_time(at)) for user, at in page]
            await tell(copy.channel, self._context(), users, [])
            told.users.update(page)

    async def _tell_logins(self, copy: Copy, tell: Tell, told: _Told) -> None:
        logins = self._revoked.signed_out
        # They are kept in the order in which they became known, in a new mapping when some were forgotten.
        if told.logins is not logins:
            told.count = sum(name in told.logins for name in logins) if told.count == len(told.logins) else 0
            told.logins = logins
        while told.count < len(logins):
            page = list(islice(logins.items(), told.count, told.count + _PAGE))
            named = [RevokedLogin(login=name, expires_at=_time(item.expires_at)) for name, item in page]
            await tell(copy.channel, self._context(), [], named)
            told.count += len(page)


def _time(micros: int) -> Timestamp:
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=min(seconds, _LAST_SECOND), nanos=rest * 1000)
