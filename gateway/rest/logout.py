"""``POST /api/logout``: ends the login of the token that the request brings. Not the session at the token's issuer."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.fields import Rule, check_fields
from gateway.login import Login
from gateway.parts import Parts
from gateway.rest.http import json_body, json_response

__all__ = ["LogoutHandlers"]

_RULES: Final = {"everywhere": Rule(bool)}


class LogoutHandlers:
    """The route."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def logout(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``POST /api/logout``; a body is not needed.

        Once it has answered, this gateway refuses the token, and so does everybody else within 5 s.
        """
        fields = check_fields(await json_body(request), _RULES, "the request") if request.can_read_body else {}
        everywhere = fields.get("everywhere", False)
        cancelled = await self._parts.exits.sign_out(login, everywhere=everywhere)
        return json_response({"signed_out": "everywhere" if everywhere else "login", "cancelled_runs": cancelled})
