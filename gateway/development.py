"""Signing in at the console by typing a name: in development, from this machine, from the console's own page only.

It mints what ``carrel token`` mints, from the same secret. Production has an issuer, and this is not there.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
from aiohttp import HttpVersion11, hdrs, web

from carrel.doctor_names import DOCTOR_PERMISSION
from carrel.errors import CarrelError, InvalidRequestError, PermissionDeniedError, UnavailableError
from carrel.ids import check_id
from gateway.fields import ID, Rule, check_fields
from gateway.headers import single_header
from gateway.login import ACT_AS, PERMISSION, Login
from gateway.parts import Parts
from gateway.rest.http import json_body, json_response
from servicekit.identity.principals import OPERATOR_READ

__all__ = ["DevelopmentSignIn", "Issuer"]

_RULES: Final = {
    "user": Rule(ID.kind, required=True, longest=128, least=1),
    "permissions": Rule(list, longest=200),
    "operator": Rule(bool),
}
# With these a login acts as others.
_RESERVED: Final = frozenset({ACT_AS, DOCTOR_PERMISSION})
_LIFETIME_S: Final = 8 * 3600
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# What proxies add: behind one, whoever asks is not known to be at this machine. Some add nothing, unless told to.
_PROXIED: Final = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "x-original-host", "true-client-ip", "cf-connecting-ip"}
)
_FORWARDED: Final = "x-forwarded-"
_ADVICE: Final = "paste a token of `carrel token`, or open the console at http://localhost on the machine it runs on"


@dataclass(frozen=True, slots=True)
class Issuer:
    """The development secret, and what the gateway wants tokens to say."""

    secret_file: Path
    issuer: str
    audience: str

    def token(self, user: str, permissions: Collection[str]) -> str:
        """A token of eight hours.

        Raises:
            UnavailableError: The secret cannot be read.
        """
        try:
            secret = self.secret_file.read_bytes().strip()
        except OSError as error:
            raise UnavailableError("the development secret cannot be read", advice="restart the stack") from error
        now = int(time.time())
        claims = {
            "sub": user,
            "iss": self.issuer,
            "aud": self.audience,
            "iat": now,
            "exp": now + _LIFETIME_S,
            "permissions": sorted(set(permissions)),
        }
        return jwt.encode(claims, secret, algorithm="HS256")


class DevelopmentSignIn:
    """``POST /console/sign-in``

    Args:
        issuer: Mints.
        parts: Tell which permissions the deployment's tools ask for.
    """

    def __init__(self, issuer: Issuer, parts: Parts) -> None:
        self._issuer = issuer
        self._parts = parts

    def offered(self, request: web.BaseRequest) -> bool:
        """Whether this page may sign in by a name."""
        return not _elsewhere(request)

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """A token for the user named, with every permission that a tool of this deployment asks for, unless told."""
        if problem := _elsewhere(request) or _foreign(request):
            raise PermissionDeniedError(f"signing in by a name is for development: {problem}", advice=_ADVICE)
        fields = check_fields(await json_body(request), _RULES, "the request")
        user = check_id(fields["user"], "user")
        wanted = fields.get("permissions")
        if wanted is not None and not all(isinstance(name, str) and PERMISSION.fullmatch(name) for name in wanted):
            raise InvalidRequestError(
                "a permission is plain text without spaces, at most 128 characters",
                advice="name them as the agents' tools do",
                fields={"permissions": "must be a list of such texts"},
            )
        permissions = set(await self._of_tools(user) if wanted is None else wanted)
        if reserved := {name for name in permissions if name in _RESERVED or name.startswith("operator:")}:
            raise InvalidRequestError(
                "such permissions are not given here",
                advice="for the operator's view say operator: true",
                fields={"permissions": f"must not have {min(reserved)[:40]}"},
            )
        if fields.get("operator", False):
            permissions.add(OPERATOR_READ)
        token = self._issuer.token(user, permissions)
        return json_response({"token": token, "user_id": user, "expires_in": _LIFETIME_S})

    async def _of_tools(self, user: str) -> set[str]:
        login = Login(user, time.time() + _LIFETIME_S, frozenset(), {}, time.time(), "")
        try:
            listed: dict[str, Any] = await self._parts.agents.list(login)
        except CarrelError:
            # The agents are not there at the moment; whoever signs in again once they are gets the rest.
            return set()
        return {tool["permission"] for agent in listed["agents"] for tool in agent["tools"] if tool["permission"]}


def _elsewhere(request: web.BaseRequest) -> str:
    """Why the request is not of this machine; empty when it is.

    The name in Host is looked at, too: a page of another site whose name was made to lead here has its own there.
    """
    try:
        loopback = ipaddress.ip_address((request.remote or "").split("%")[0])
        loopback = getattr(loopback, "ipv4_mapped", None) or loopback
    except ValueError:
        return "the page is not opened on the gateway's own machine"
    if not loopback.is_loopback or _proxied(request):
        return "the page is not opened on the gateway's own machine"
    return "" if _host(request) in _HERE else "the page's address is not localhost"


def _proxied(request: web.BaseRequest) -> bool:
    # No browser speaks HTTP/1.0; nginx does, to what is behind it, where it is not told otherwise.
    if request.version < HttpVersion11:
        return True
    names = {name.lower() for name in request.headers}
    return not names.isdisjoint(_PROXIED) or any(name.startswith(_FORWARDED) for name in names)


def _foreign(request: web.BaseRequest) -> str:
    """Why the request is not of the console's own page; empty when it is."""
    origin = single_header(request, hdrs.ORIGIN)
    host = single_header(request, hdrs.HOST) or ""
    if origin is None or origin.lower() not in {f"http://{host.lower()}", f"https://{host.lower()}"}:
        return "the request is not of the console's own page"
    return ""


def _host(request: web.BaseRequest) -> str:
    try:
        return urlsplit(f"http://{single_header(request, hdrs.HOST) or ''}").hostname or ""
    except ValueError:
        return ""
