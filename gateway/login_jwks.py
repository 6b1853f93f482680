"""Login keys that are fetched from the issuer: kept fresh, fetched again for a key that is new, refused once too old.

What is known is looked up without waiting. The network is only asked by one task at a time, and no sender of tokens can
have it asked more often than every ten seconds. How a document is fetched and read is ``login_jwks_http``'s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from carrel.errors import CarrelError, StartupError, UnavailableError
from gateway.login_keys import LoginKey, find_key
from servicekit.logs import get_logger

__all__ = ["FetchFailed", "Fetched", "FetchedKeys"]

_log: Final = get_logger("gateway.login")

# However often tokens with unknown keys come.
_BETWEEN_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.25
_LEAST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 60.0
# Within what an issuer's Cache-Control is followed.
_LEAST_AGE_S: Final = 60.0
_LONGEST_AGE_S: Final = 3600.0


class FetchFailed(Exception):  # noqa: N818 -- an outcome, told in a log line or a failed start
    """Why no keys came, as a sentence. It quotes nothing of what came."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The issuer's keys, and for how long it says that they may be kept; None when it says nothing."""

    keys: tuple[LoginKey, ...]
    max_age_s: float | None = None


class FetchedKeys:
    """Keys by ``kid``, as the issuer last told them.

    Args:
        fetch: Asks the issuer; raises ``FetchFailed``.
        refresh_s: How long keys are kept before they are fetched again, where the issuer does not say.
        stale_s: How old the last good answer may be; beyond it nobody logs in.
        between_s: The least time between two fetches that unknown keys cause.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Fetched]],
        *,
        refresh_s: float = 300.0,
        stale_s: float = 14_400.0,
        between_s: float = _BETWEEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._refresh_s = refresh_s
        self._stale_s = stale_s
        self._between_s = between_s
        self._clock = clock
        self._keys: tuple[LoginKey, ...] = ()
        self._fetched_at = self._asked_at = float("-inf")
        self._due_in_s = refresh_s
        self._asking: asyncio.Task[bool] | None = None
        self.failures = 0

    @property
    def age_s(self) -> float:
        """How old the last good answer is."""
        return self._clock() - self._fetched_at

    @property
    def usable(self) -> bool:
        """Whether anybody can log in."""
        return self.age_s <= self._stale_s

    def find(self, kid: str, algorithm: str) -> LoginKey | None:
        """The key that a token's header asks for, if its algorithm is that key's own.

        Raises:
            UnavailableError: The keys are too old to be trusted.
        """
        if not self.usable:
            raise UnavailableError(
                "the issuer's keys cannot be renewed, and those known are too old",
                advice="try again; operators: see why the gateway cannot reach the issuer",
                retry_after_s=_LEAST_WAIT_S,
            )
        return find_key(self._keys, kid, algorithm)

    async def renewed(self) -> bool:
        """Fetch for a key that is unknown, unless that was done a moment ago; whether there are fresh keys now."""
        if self._asking is None:
            if self._clock() - self._asked_at < self._between_s:
                return False
            self._asking = asyncio.create_task(self._ask(), name="login keys")
        # Shared: whoever goes away does not take it from the others.
        return await asyncio.shield(self._asking)

    async def start(self, wait_s: float) -> None:
        """Fetch the first keys, trying again for so long.

        Raises:
            StartupError: None came.
        """
        ends, wait_for = self._clock() + wait_s, _FIRST_WAIT_S
        while True:
            try:
                return self._take(await self._fetch())
            except FetchFailed as failed:
                if self._clock() + wait_for >= ends:
                    raise StartupError(
                        f"the login keys did not come: {failed}",
                        advice="see that the issuer can be reached from here, and that CARREL_GATEWAY_LOGIN__JWKS_URL "
                        "or CARREL_GATEWAY_LOGIN__ISSUER is right",
                    ) from None
            await asyncio.sleep(wait_for)
            wait_for = min(2 * wait_for, _LEAST_WAIT_S)

    async def keep_fresh(self) -> None:
        """Fetch again and again, until cancelled."""
        wait_s = self._due_in_s
        while True:
            await asyncio.sleep(wait_s * random.uniform(0.9, 1.0))  # noqa: S311 -- jitter
            if self.age_s < self._due_in_s * 0.9:  # fetched for an unknown key meanwhile
                wait_s = self._due_in_s - self.age_s
                continue
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name="login keys")
            if await asyncio.shield(self._asking):
                wait_s = self._due_in_s
            else:
                wait_s = min(_LONGEST_WAIT_S, _LEAST_WAIT_S * 2 ** min(self.failures - 1, 6), self._due_in_s)

    async def aclose(self) -> None:
        """End a fetch that is under way. Idempotent."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> bool:
        self._asked_at = self._clock()
        try:
            self._take(await self._fetch())
        except FetchFailed as failed:
            self.failures += 1
            _log.warning(
                "login keys cannot be renewed",
                reason=str(failed),
                age_s=round(self.age_s),
                kept_s=round(self._stale_s),
                failures=self.failures,
            )
            return False
        except CarrelError as error:
            self.failures += 1
            _log.error("login keys cannot be renewed", error=error)
            return False
        finally:
            self._asking = None
        return True

    def _take(self, fetched: Fetched) -> None:
        if self.failures:
            _log.info("login keys are renewed again", failures=self.failures)
        self._keys, self._fetched_at, self.failures = fetched.keys, self._clock(), 0
        age = self._refresh_s if fetched.max_age_s is None else fetched.max_age_s
        # Twice at least before they would be too old.
        self._due_in_s = min(max(age, _LEAST_AGE_S), _LONGEST_AGE_S, self._stale_s / 2)
