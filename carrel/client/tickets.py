"""Tickets for internal calls: what one is, who gives one, and the source that asks the gateway for them.

A ticket proves to a service whom a call is for. Minting is the gateway's and execution's; no key comes near here.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from carrel.client.http import GatewayHttp
from carrel.errors import ProtocolError
from carrel.v1 import context_pb2

__all__ = ["GatewayTickets", "Ticket", "TicketSource"]

# A ticket in use must outlast the call it is put into.
_LEAST_LEFT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket and what it stands for. ``expires_at`` is seconds since the epoch."""

    scope: str
    text: str = field(repr=False)
    expires_at: float
    user_id: str = ""
    thread_id: str = ""
    run_id: str = ""
    request_id: str = ""

    def context(self) -> context_pb2.UserExecutionContext:
        """The context of a call under this ticket."""
        context = context_pb2.UserExecutionContext(
            user_id=self.user_id,
            thread_id=self.thread_id,
            run_id=self.run_id,
            request_id=self.request_id,
            ticket=self.text,
        )
        context.created_at.GetCurrentTime()
        return context

    def lasts(self, seconds: float) -> bool:
        """Whether it is good for so much longer."""
        return self.expires_at - time.time() > seconds


class TicketSource(Protocol):
    """Gives tickets that are good for a call now. May be asked for every call."""

    async def session(self) -> Ticket:
        """A ticket of session scope: the user's, for asking."""

    async def run(self, *, run_id: str = "", thread_id: str = "") -> Ticket:
        """A ticket of run scope: for the named run of the user's, or for a new one in this thread or a new one."""

    async def service(self) -> Ticket:
        """A ticket of service scope: for what operators may ask about everybody."""


class GatewayTickets:
    """Exchanges a token for tickets at ``POST /api/tickets``, and keeps them until they near their end.

    Args:
        url: The gateway.
        token: The user's token, or a service's with the permission ``act_as``.
        user_id: Whom a service acts for; empty for the token's own user.
        permissions: What the tickets may hold, a part of the token's; None for all of it.
    """

    def __init__(self, url: str, token: str, *, user_id: str = "", permissions: Collection[str] | None = None) -> None:
        self._http = GatewayHttp(url, token)
        self._wanted: dict[str, Any] = {}
        if user_id:
            self._wanted["user_id"] = user_id
        if permissions is not None:
            self._wanted["permissions"] = sorted(permissions)
        self._session: Ticket | None = None
        self._service: Ticket | None = None
        self._runs: dict[str, Ticket] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the gateway. Idempotent."""
        await self._http.aclose()

    async def session(self) -> Ticket:
        """A session ticket.

        Raises:
            CarrelError: The gateway refused it or cannot be reached.
        """
        if self._session is None or not self._session.lasts(_LEAST_LEFT_S):
            self._session = await self._ask({"scope": "session", **self._wanted})
        return self._session

    async def run(self, *, run_id: str = "", thread_id: str = "") -> Ticket:
        """A run ticket: of a run that is there, or with new ids.

        Raises:
            CarrelError: The gateway refused it or cannot be reached; NOT_FOUND for a run that is not the user's.
        """
        known = self._runs.get(run_id) if run_id else None
        if known is not None and known.lasts(_LEAST_LEFT_S):
            return known
        names = {"run_id": run_id, "thread_id": thread_id}
        ticket = await self._ask(
            {"scope": "run", **{name: value for name, value in names.items() if value}, **self._wanted}
        )
        self._runs = {key: kept for key, kept in self._runs.items() if kept.lasts(_LEAST_LEFT_S)}
        self._runs[ticket.run_id] = ticket
        return ticket

    async def service(self) -> Ticket:
        """A service ticket; the token needs ``act_as``.

        Raises:
            CarrelError: The gateway refused it or cannot be reached.
        """
        if self._service is None or not self._service.lasts(_LEAST_LEFT_S):
            wanted = {name: value for name, value in self._wanted.items() if name != "user_id"}
            self._service = await self._ask({"scope": "service", **wanted})
        return self._service

    async def _ask(self, request: dict[str, Any]) -> Ticket:
        answer = await self._http.post("/api/tickets", request)
        try:
            return Ticket(
                scope=str(answer["scope"]),
                text=str(answer["ticket"]),
                expires_at=float(answer["expires_at"]),
                user_id=str(answer.get("user_id", "")),
                thread_id=str(answer.get("thread_id", "")),
                run_id=str(answer.get("run_id", "")),
                request_id=str(answer.get("request_id", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the gateway's ticket lacks {error}") from None
