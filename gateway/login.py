"""Login: a user's or service's token (a JWT of the deployment's own issuer) as a verified ``Login``.

Strict where PyJWT is lenient: algorithms are bound to keys, ``sub exp iat iss aud`` are required; repeated names,
``crit`` and a foreign ``typ`` are refused. Tickets are another kind of token, and none is accepted here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import jwt

from carrel.errors import CarrelError, TokenError, TokenExpiredError
from carrel.ids import check_id
from gateway.login_keys import KeySource, LoginKey
from servicekit.identity.jwt_parts import PartError, read_part

__all__ = [
    "ACT_AS",
    "LEEWAY_S",
    "LONGEST_LEEWAY_S",
    "PERMISSION",
    "ClaimNames",
    "Login",
    "LoginVerifier",
    "bearer_token",
]

ACT_AS: Final = "act_as"
LEEWAY_S: Final = 5.0
LONGEST_LEEWAY_S: Final = 60
MAX_TOKEN_BYTES: Final = 16 * 1024

_FORM: Final = re.compile(r"[A-Za-z0-9_-]{2,4096}\.[A-Za-z0-9_-]{2,12288}\.[A-Za-z0-9_-]{16,2048}")
_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt", "application/jwt"})
_MAX_PERMISSIONS: Final = 200
# What a permission looks like.
PERMISSION: Final = re.compile(r"[!#-\[\]-~]{1,128}")
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([^ ,]+) *")
_NO_LIMITS: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Login:
    """Who is there, until when, and what they may do. ``permissions`` and ``limits`` go into every ticket of theirs."""

    user_id: str
    expires_at: float
    permissions: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=lambda: _NO_LIMITS)
    issued_at: float = field(default=0.0, compare=False)
    # Names the token that proved it; tickets carry it, and signing out is by it. Tokens do not follow from it.
    name: str = field(default="", compare=False)

    @property
    def is_service(self) -> bool:
        """Whether this is a service that may act for users."""
        return ACT_AS in self.permissions

    def expired(self, now: float | None = None) -> bool:
        """Whether the login has ended."""
        return (time.time() if now is None else now) >= self.expires_at + LEEWAY_S


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """Which claims say what; an issuer's own names may be set."""

    user: str = "sub"
    scope: str = "scope"
    permissions: str = "permissions"
    limits: str = "limits"


class LoginVerifier:
    """Verifies tokens against the deployment's keys, issuer and audience.

    Args:
        keys: Where keys come from.
        issuer, audience: The tokens' ``iss`` and ``aud``.
        names: The claims that are read.
        leeway_s: By how much the issuer's clock may differ from this one's, either way.
    """

    def __init__(
        self,
        keys: KeySource,
        issuer: str,
        audience: str,
        names: ClaimNames | None = None,
        leeway_s: float = LEEWAY_S,
    ) -> None:
        self._keys = keys
        self._leeway_s = leeway_s
        self._issuer = issuer
        self._audience = audience
        self._names = names or ClaimNames()
        # Refuses a login that was revoked, by raising; set by who knows.
        self.check: Callable[[Login], None] = lambda login: None

    async def verified(self, token: str) -> Login:
        """As ``verify``; a key that is unknown is looked for at the issuer first, if that was not done just before."""
        try:
            return self._verify(token)
        except _UnknownKey:
            await self._keys.renewed()
        # Also when nothing was fetched: it may have been by another request, meanwhile.
        return self.verify(token)

    def verify(self, token: str) -> Login:
        """The login that a token proves. It never waits.

        Raises:
            TokenError: It is missing, malformed, not for us, or signed by nobody we know.
            TokenExpiredError: It is past its end.
            UnavailableError: The issuer's keys are not known at the moment.
        """
        try:
            return self._verify(token)
        except _UnknownKey:
            raise _bad("is signed with a key or an algorithm that is not accepted here") from None

    def _verify(self, token: str) -> Login:
        if not token:
            raise TokenError("a token is required", advice="send Authorization: Bearer <token>, or a connect frame")
        if len(token) > MAX_TOKEN_BYTES or not _FORM.fullmatch(token):
            raise _bad("is not a signed JWT")
        header_part, payload_part, _ = token.split(".")
        # Of what is signed: a signature may have several forms, and the same token another one's name then.
        name = _name_of(token[: len(header_part) + 1 + len(payload_part)])
        key = self._key(_strict(header_part, "header"))
        _strict(payload_part, "payload")
        claims = self._claims(token, key)
        return self._login(claims, name)

    def _key(self, header: Mapping[str, Any]) -> LoginKey:
        algorithm, kind, kid = header.get("alg"), header.get("typ", ""), header.get("kid", "")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _bad("is of a type that logs nobody in")
        if "crit" in header or "b64" in header:
            raise _bad("has a critical header, which nothing here understands")
        if not isinstance(algorithm, str) or not isinstance(kid, str):
            raise _bad("has a header of the wrong kind")
        # `jku`, `jwk` and `x5c` would name keys of the sender's choice: keys come from the configured place alone.
        key = self._keys.find(kid, algorithm)
        if key is None:
            raise _UnknownKey
        return key

    def _claims(self, token: str, key: LoginKey) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={
                    "verify_signature": True,
                    "verify_exp": True,
                    "verify_nbf": True,
                    "verify_iat": True,
                    "verify_aud": True,
                    "verify_iss": True,
                    "verify_sub": True,
                    "require": ["sub", "exp", "iat", "iss", "aud"],
                },
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpiredError("the token has expired") from None
        except jwt.MissingRequiredClaimError as error:
            raise _bad(f"has no claim {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise _bad("has a signature that is not its key's") from None
        except jwt.InvalidAudienceError:
            raise _bad("is for another audience") from None
        except jwt.InvalidIssuerError:
            raise _bad("is from another issuer") from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise _bad("is not valid yet, or its times are wrong") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError):
            raise _bad("cannot be read") from None
        if not all(_is_number(claims[name]) for name in ("exp", "iat")) or claims["exp"] <= claims["iat"]:
            raise _bad("has times that make no sense")
        return claims

    def _login(self, claims: Mapping[str, Any], name: str) -> Login:
        names = self._names
        try:
            user = check_id(claims.get(names.user), "user_id")
        except CarrelError as error:
            raise _bad(f"names a user whose id {error.message.removeprefix('user_id ')}") from None
        permissions = _permissions(claims.get(names.scope), claims.get(names.permissions))
        limits = _limits(claims.get(names.limits))
        login = Login(user, float(claims["exp"]), permissions, limits, float(claims["iat"]), name)
        self.check(login)
        return login


class _UnknownKey(Exception):  # noqa: N818 -- a signal between two methods, no error of the tree
    """No key of that name and algorithm is known."""


def bearer_token(header: str | None) -> str:
    """The token of an Authorization header; empty when there is no header.

    Raises:
        TokenError: The header is there, but not of the form ``Bearer <token>``.
    """
    if header is None:
        return ""
    match = _BEARER.fullmatch(header.strip())
    if match is None:
        raise TokenError("the Authorization header is not of the form Bearer <token>")
    return match.group(1)


def _name_of(signed: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(signed.encode()).digest()[:16]).decode().rstrip("=")


def _permissions(scope: object, listed: object) -> frozenset[str]:
    found: list[Any] = []
    for value in (scope, listed):
        if isinstance(value, str):
            found += value.split()
        elif isinstance(value, list):
            found += value
        elif value is not None:
            raise _bad("has permissions that are neither a string nor a list")
    if len(found) > _MAX_PERMISSIONS:
        raise _bad(f"has more than {_MAX_PERMISSIONS} permissions")
    if not all(isinstance(item, str) and PERMISSION.fullmatch(item) for item in found):
        raise _bad("has a permission that is no plain text")
    return frozenset(found)


def _limits(value: object) -> Mapping[str, int]:
    if value is None:
        return _NO_LIMITS
    if not isinstance(value, dict) or len(value) > 50:
        raise _bad("has limits that are no object of whole numbers")
    if not all(isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0 for limit in value.values()):
        raise _bad("has limits that are no object of whole numbers")
    return MappingProxyType({str(name): limit for name, limit in value.items()})


def _strict(part: str, what: str) -> dict[str, Any]:
    try:
        return read_part(part, what)
    except PartError as refused:
        raise _bad(str(refused)) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(problem: str) -> TokenError:
    return TokenError(f"the token {problem}")
