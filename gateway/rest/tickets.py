"""Tokens in exchange for tickets, for internal services, and for socket tokens, for browsers.

A ticket never holds more than the token it is given for: a service that acts for a user hands on its own permissions.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from carrel.context import UserContextFactory
from carrel.doctor_names import DOCTOR_PERMISSION
from carrel.errors import InvalidRequestError, PermissionDeniedError
from carrel.ids import check_id, check_minted_id
from gateway.fields import ID, Rule, check_fields
from gateway.login import ACT_AS, Login
from gateway.parts import Parts
from gateway.rest.http import json_body, json_response
from gateway.socket_tokens import LIFETIME_S
from gateway.tickets import SESSION_S
from servicekit.identity.principals import OPERATOR_READ, OPERATOR_REVOKE

__all__ = ["TicketHandlers"]

_RULES: Final = {
    "scope": Rule(str, choices=("session", "run", "service")),
    "user_id": ID,
    "thread_id": ID,
    "run_id": ID,
    "permissions": Rule(list, longest=200),
    "lifetime_s": Rule(int, least=1),
}
_OPERATOR: Final = "operator:"
_LONGEST_S: Final = 3600
# What revokes a person does not reach a service ticket: it ends soon by itself.
_LONGEST_OPERATOR_S: Final = 900.0


class TicketHandlers:
    """``POST /api/tickets`` and ``POST /api/socket-tokens``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ticket(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/tickets``"""
        fields = check_fields(await json_body(request), _RULES, "the request")
        scope = fields.get("scope", "session")
        if scope != "run" and ("run_id" in fields or "thread_id" in fields):
            raise InvalidRequestError(
                f"a {scope} ticket names no run", advice="ask for scope run", fields={"scope": "is not run"}
            )
        if scope == "service":
            answer = self._service(login, fields)
            await self._parts.audit.record(login.user_id, "ticket.service", "")
            return json_response(answer)
        bearer = _bearer(login, fields)
        if bearer.user_id != login.user_id:
            # Before it exists: nobody acts for somebody else without a record of it.
            await self._parts.audit.record(bearer.user_id, f"ticket.act_as.{scope}", login.user_id)
        if scope == "run":
            return json_response(await self._run(bearer, fields))
        ticket, ends = self._parts.desk.mint_session(bearer, _lifetime(fields, SESSION_S))
        return json_response(_answer("session", ticket, ends, user_id=bearer.user_id))

    async def _run(self, login: Login, fields: dict[str, Any]) -> dict[str, Any]:
        if "lifetime_s" in fields:
            raise InvalidRequestError(
                "a run ticket lives as long as its run may", fields={"lifetime_s": "is not for run tickets"}
            )
        thread_id, run_id = fields.get("thread_id"), fields.get("run_id")
        request_id = None
        if run_id is not None:
            # Of a run that is there already: execution knows whether it is this user's, and its other ids.
            run = await self._parts.runs.get(login, check_id(run_id, "run_id"))
            if thread_id not in {None, run.thread_id}:
                raise InvalidRequestError("the run is of another thread", fields={"thread_id": "is not the run's"})
            thread_id, request_id = run.thread_id, run.request_id
        elif thread_id is not None:
            check_minted_id(thread_id, "thread_id")
        context = UserContextFactory.from_request(
            login.user_id, thread_id=thread_id, run_id=run_id, request_id=request_id
        )
        ticket, ends = self._parts.desk.mint_run(login, context)
        ids = {"thread_id": context.thread_id, "run_id": context.run_id, "request_id": context.request_id}
        return _answer("run", ticket, ends, user_id=login.user_id, **ids)

    def _service(self, login: Login, fields: dict[str, Any]) -> dict[str, Any]:
        own = _as_a_service(login)
        if not own and not login.is_service:
            raise PermissionDeniedError(
                "only services and operators get service tickets",
                advice=f"use a token with {ACT_AS}, or an operator's own with {OPERATOR_READ} or {OPERATOR_REVOKE}",
                permission=ACT_AS,
            )
        if "user_id" in fields:
            raise InvalidRequestError("a service ticket stands for no user", fields={"user_id": "is not for services"})
        lifetime = min(_lifetime(fields, SESSION_S), max(1.0, login.expires_at - time.time()))
        if not login.is_service:
            lifetime = min(lifetime, _LONGEST_OPERATOR_S)
        ticket, ends = self._parts.desk.mint_service(login.user_id, _granted(own, fields), lifetime)
        return _answer("service", ticket, ends, service=login.user_id)

    async def socket_token(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/socket-tokens``; a body is not needed."""
        token = await self._parts.socket_tokens.issue(login)
        return json_response({"socket_token": token, "expires_in": LIFETIME_S, "user_id": login.user_id}, 201)


def _as_a_service(login: Login) -> frozenset[str]:
    """What a login may do where it stands for no user."""
    if login.is_service:
        return login.permissions - {ACT_AS}
    # A person, or the doctor, who cannot act for anybody.
    of_operators = frozenset(name for name in login.permissions if name.startswith(_OPERATOR))
    return of_operators & {OPERATOR_READ} if DOCTOR_PERMISSION in login.permissions else of_operators


def _bearer(login: Login, fields: dict[str, Any]) -> Login:
    """Whom the ticket stands for, with what it may hold."""
    user_id = fields.get("user_id", login.user_id)
    if user_id != login.user_id and not login.is_service:
        raise PermissionDeniedError(
            "the token may not act for another user", advice=f"use a token with {ACT_AS}", permission=ACT_AS
        )
    may = login.permissions
    if user_id != login.user_id:
        may = frozenset(name for name in may if name != ACT_AS and not name.startswith(_OPERATOR))
    return replace(login, user_id=check_id(user_id, "user_id"), permissions=_granted(may, fields))


def _granted(may: frozenset[str], fields: dict[str, Any]) -> frozenset[str]:
    if "permissions" not in fields:
        return may
    wanted = frozenset(fields["permissions"])
    if missing := sorted(wanted - may):
        raise PermissionDeniedError(
            f"the token does not hold the permission {missing[0][:128]} that was asked for",
            advice="use a token that holds it, or ask for a part of this one's",
            permission=missing[0][:128],
        )
    return wanted


def _lifetime(fields: dict[str, Any], default: float) -> float:
    return min(float(fields.get("lifetime_s", default)), _LONGEST_S)


def _answer(scope: str, ticket: str, ends: float, **rest: str) -> dict[str, Any]:
    return {"ticket": ticket, "scope": scope, "expires_at": int(ends), **rest}
