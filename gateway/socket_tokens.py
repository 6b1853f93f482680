"""Single-use tokens with which a browser, which cannot set headers on a socket, logs in. 30 s, one connection each.

A token is signed and holds the login itself, so any gateway with the same ticket key takes it; that it is used once
among all of them is execution's to say, which every gateway asks.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import jwt

from carrel.errors import RateLimitError, TokenError
from gateway.login import LEEWAY_S, Login
from servicekit.identity.jwt_parts import PartError, read_part
from servicekit.identity.keys import KeySet, PublicKey
from servicekit.identity.signing import Signer

__all__ = ["LIFETIME_S", "Claim", "SignedSocketTokens", "SocketTokens"]

LIFETIME_S: Final = 30.0
_PREFIX: Final = "st-"
_TYPE: Final = "carrel-socket+jwt"
_ISSUER: Final = "gateway"
_AUDIENCE: Final = "carrel-socket"
_MAX_BYTES: Final = 16 * 1024
_FORM: Final = re.compile(r"[A-Za-z0-9_-]{2,512}\.[A-Za-z0-9_-]{2,16384}\.[A-Za-z0-9_-]{86}")

Claim = Callable[[str, float], Awaitable[bool]]
"""Given a name and until when it matters (seconds since the epoch): whether nobody has asked for it before."""


class SocketTokens(Protocol):
    """Issues tokens and takes each back once.

    A token that was redeemed, or has expired, is worth nothing, whatever happens at the same time.
    """

    async def issue(self, login: Login) -> str:
        """A new token for this login.

        Raises:
            RateLimitError: Too many of this user's, or of all, were issued lately.
        """
        ...

    async def redeem(self, token: str) -> Login:
        """The login that the token was issued for; the token is used up from here on.

        Raises:
            TokenError: It was never issued, was used already, or is too old.
            UnavailableError: It cannot be said whether it was used; it may be tried again.
        """
        ...


class SignedSocketTokens:
    """Tokens that hold what they are for.

    Args:
        key: Signs them: the gateways' common one.
        keys: Verifies those that another gateway signed with another key, while keys are rotated.
        claim: Says who was first to use one.
        most: How many this gateway issues within their lifetime.
        most_per_user: The same for one user.
    """

    def __init__(
        self,
        key: Signer,
        claim: Claim,
        most: int = 50_000,
        most_per_user: int = 50,
        lifetime_s: float = LIFETIME_S,
        *,
        keys: KeySet | None = None,
    ) -> None:
        self._signer = key
        self._keys = keys
        self._claim = claim
        self._most = most
        self._most_per_user = most_per_user
        self._lifetime_s = lifetime_s
        # Refuses a login that was revoked, by raising; set by who knows.
        self.check: Callable[[Login], None] = lambda login: None
        # In the order of their ends, because all live equally long.
        self._issued: deque[tuple[float, str]] = deque()
        self._of_user: dict[str, int] = {}

    async def issue(self, login: Login) -> str:
        """See ``SocketTokens``."""
        self._expire()
        mine = self._of_user.get(login.user_id, 0)
        if mine >= self._most_per_user or len(self._issued) >= self._most:
            raise RateLimitError(
                "too many socket tokens were asked for",
                advice="use the ones you have, or wait until they expire",
                retry_after_s=self._lifetime_s,
                limit="socket_tokens",
                limit_value=self._most_per_user,
                use=mine,
            )
        self._issued.append((time.monotonic() + self._lifetime_s, login.user_id))
        self._of_user[login.user_id] = mine + 1
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "iat": now,
            "exp": now + round(self._lifetime_s),
            "jti": secrets.token_urlsafe(18),
            "sub": login.user_id,
            "perms": sorted(login.permissions),
            "limits": dict(login.limits),
            "login": [login.issued_at, login.expires_at],
            "lgn": login.name,
        }
        key = self._signer.current()
        headers = {"typ": _TYPE, "kid": key.kid}
        return _PREFIX + jwt.encode(claims, key.key, algorithm="EdDSA", headers=headers)

    async def redeem(self, token: str) -> Login:
        """See ``SocketTokens``."""
        claims = self._read(token)
        if not await self._claim(f"socket-token:{claims['jti']}", claims["exp"] + LEEWAY_S):
            raise _refused()
        issued, ends = claims["login"]
        limits: Mapping[str, int] = MappingProxyType(dict(claims["limits"]))
        login = Login(claims["sub"], ends, frozenset(claims["perms"]), limits, issued, claims.get("lgn", ""))
        self.check(login)
        return login

    def __len__(self) -> int:
        return len(self._issued)

    def _read(self, token: str) -> dict[str, Any]:
        """The claims of a token that one of us has signed; what they hold is then as it was put in."""
        text = token.removeprefix(_PREFIX)
        if len(token) > _MAX_BYTES or text == token or not _FORM.fullmatch(text):
            raise _refused()
        try:
            header = read_part(text.split(".", 1)[0], "header")
            key = self._key_named(header.get("kid"))
            if header != {"alg": "EdDSA", "typ": _TYPE, "kid": key.kid}:
                raise _refused()
            claims: dict[str, Any] = jwt.decode(
                text,
                key.key,
                algorithms=["EdDSA"],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["iss", "aud", "iat", "exp", "jti", "sub"]},
            )
        except (PartError, jwt.PyJWTError):
            raise _refused() from None
        return claims

    def _key_named(self, kid: object) -> PublicKey:
        own = self._signer.current().public
        if kid == own.kid or self._keys is None or not isinstance(kid, str):
            return own
        _ = self._keys.refresh()
        key = self._keys.get(kid)
        # Execution's keys are in the same file, and sign no socket tokens.
        if key is None or key.issuer != own.issuer or key.scopes != own.scopes:
            raise _refused()
        return key

    def _expire(self) -> None:
        now = time.monotonic()
        while self._issued and self._issued[0][0] <= now:
            _, user_id = self._issued.popleft()
            left = self._of_user[user_id] - 1
            if left:
                self._of_user[user_id] = left
            else:
                del self._of_user[user_id]


def _refused() -> TokenError:
    return TokenError(
        "the socket token is unknown, was used already, or is too old",
        advice="get another from POST /api/socket-tokens",
    )
