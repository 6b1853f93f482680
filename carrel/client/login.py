"""A user's tokens: a fixed one, or a source that is asked before each connection and before the present one ends.

Tokens are not verified here, only looked into for their end; the gateway's word on it (``refreshed``) counts for more.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import orjson

__all__ = ["Login", "TokenSource", "expiry_of"]

TokenSource = str | Callable[[], str | Awaitable[str]]

# A fresh token is asked for when a tenth of its life is left, but between these seconds before its end.
_LEAST_S: Final = 5.0
_MOST_S: Final = 60.0
_PART: Final = 0.1


def expiry_of(token: str) -> float | None:
    """A JWT's ``exp`` in seconds since 1970, unverified; None when the token is none or says none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expires_at = claims.get("exp")
    except (ValueError, binascii.Error, AttributeError):
        return None
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not math.isfinite(expires_at):
        return None
    return float(expires_at)


class Login:
    """Args:
    source: The token, or what gives one.
    """

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self.current = ""
        self.expires_at: float | None = None

    @property
    def renewable(self) -> bool:
        """Whether there may be another token than the present one."""
        return not isinstance(self._source, str)

    async def token(self) -> str:
        """A token for now; whatever the source raises passes."""
        if isinstance(self._source, str):
            token = self._source
        else:
            given = self._source()
            token = await given if inspect.isawaitable(given) else given
        if token != self.current:
            self.current, self.expires_at = token, expiry_of(token)
        return token

    def refresh_in_s(self) -> float | None:
        """Seconds until a fresh token is to be asked for; None when there is none to have, or no end is known."""
        if not self.renewable or self.expires_at is None:
            return None
        left = self.expires_at - time.time()
        before = min(_MOST_S, max(_LEAST_S, left * _PART))
        return max(left - before, left / 2, 0.0)
