"""Single-use tokens with which a browser, which cannot set headers on a socket, logs in. 30 s, one connection each.

Behind a Protocol, because several gateways need a store that they share; this release has one gateway and its memory.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from typing import Final, Protocol

from carrel.errors import RateLimitError, TokenError
from gateway.login import Login

__all__ = ["LIFETIME_S", "MemorySocketTokens", "SocketTokens"]

LIFETIME_S: Final = 30.0
_PREFIX: Final = "st-"


class SocketTokens(Protocol):
    """Issues tokens and takes each back once.

    A token that was redeemed, or has expired, is worth nothing, whatever happens at the same time. Tokens themselves
    are not kept, only their hashes.
    """

    async def issue(self, login: Login) -> str:
        """A new token for this login.

        Raises:
            RateLimitError: Too many of this user's, or of all, are waiting to be used.
        """
        ...

    async def redeem(self, token: str) -> Login:
        """The login that the token was issued for; the token is gone from here on.

        Raises:
            TokenError: It was never issued, was used already, or is too old.
        """
        ...


class MemorySocketTokens:
    """Tokens in this process's memory: bounded, and forgotten when it ends."""

    def __init__(self, most: int = 50_000, most_per_user: int = 50, lifetime_s: float = LIFETIME_S) -> None:
        self._most = most
        self._most_per_user = most_per_user
        self._lifetime_s = lifetime_s
        # In the order of their ends, because all live equally long.
        self._waiting: OrderedDict[bytes, tuple[Login, float]] = OrderedDict()
        self._of_user: dict[str, int] = {}

    async def issue(self, login: Login) -> str:
        """See ``SocketTokens``."""
        self._expire()
        mine = self._of_user.get(login.user_id, 0)
        if mine >= self._most_per_user or len(self._waiting) >= self._most:
            raise RateLimitError(
                "too many socket tokens are waiting to be used",
                advice="use the ones you have, or wait until they expire",
                retry_after_s=self._lifetime_s,
                limit="socket_tokens",
                limit_value=self._most_per_user,
                use=mine,
            )
        token = _PREFIX + secrets.token_urlsafe(32)
        self._waiting[_hash(token)] = (login, time.monotonic() + self._lifetime_s)
        self._of_user[login.user_id] = mine + 1
        return token

    async def redeem(self, token: str) -> Login:
        """See ``SocketTokens``."""
        self._expire()
        found = self._waiting.pop(_hash(token), None)
        if found is None:
            raise TokenError(
                "the socket token is unknown, was used already, or is too old",
                advice="get another from POST /api/socket-tokens",
            )
        self._count_down(found[0].user_id)
        return found[0]

    def __len__(self) -> int:
        return len(self._waiting)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._waiting:
            digest, (login, ends) = next(iter(self._waiting.items()))
            if ends > now:
                return
            del self._waiting[digest]
            self._count_down(login.user_id)

    def _count_down(self, user_id: str) -> None:
        left = self._of_user[user_id] - 1
        if left:
            self._of_user[user_id] = left
        else:
            del self._of_user[user_id]


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
