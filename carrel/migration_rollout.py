"""Who goes the new way: shares of users by route, from a file or a table. Read at every call; see ``carrel.migration``.

    {"default": 0, "POST /quote": 25, "POST /report": {"percent": 0, "users": ["alice"], "shadow_percent": 5}}

A user has one place among ten thousand, the same for all routes: who has moved at 10 % stays moved at 50 %.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from carrel.errors import InvalidConfigurationError

__all__ = ["FileRollout", "Rollout", "RolloutTable", "Share", "place_of"]

_PLACES: Final = 10_000
_DEFAULT: Final = "default"
_FIELDS: Final = frozenset({"percent", "users", "shadow_percent"})
_MOST_BYTES: Final = 1 << 20
_log: Final = logging.getLogger("carrel.migration")


@dataclass(frozen=True, slots=True)
class Share:
    """Which users of a route go the new way.

    Args:
        percent: How many, from 0 to 100.
        users: Who in any case.
        shadow_percent: For how many of those who go the old way the new one is run beside and compared.

    Raises:
        ValueError: A number is not from 0 to 100.
    """

    percent: float = 0.0
    users: frozenset[str] = frozenset()
    shadow_percent: float = 0.0

    def __post_init__(self) -> None:
        for name in ("percent", "shadow_percent"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                raise ValueError(f"{name} is a number from 0 to 100")

    def has(self, user_id: str) -> bool:
        """Whether this user goes the new way."""
        return user_id in self.users or place_of(user_id) < self.percent * _PLACES / 100

    def shadows(self, user_id: str) -> bool:
        """Whether the new way is tried for this user while the old one answers: those who would move next."""
        return place_of(user_id) < (self.percent + self.shadow_percent) * _PLACES / 100


class Rollout(Protocol):
    """What an adapter asks at each call."""

    def __call__(self, route: str) -> Share:
        """The share of a route at this moment. Never fails, and never waits."""

    def routes(self) -> Collection[str]:
        """The routes that it names."""


class RolloutTable:
    """A rollout that the application sets itself."""

    def __init__(self, shares: Mapping[str, Share] | None = None, default: Share | None = None) -> None:
        self._shares = dict(shares or {})
        self._default = default or Share()

    def __call__(self, route: str) -> Share:
        """See ``Rollout``."""
        return self._shares.get(route, self._default)

    def routes(self) -> Collection[str]:
        """See ``Rollout``."""
        return self._shares.keys()

    def set(self, route: str, share: Share) -> None:
        """From the next call on."""
        self._shares[route] = share


class FileRollout:
    """A rollout from a JSON file, read again whenever it has changed; also when it is exchanged behind a link.

    Raises:
        InvalidConfigurationError: At the start the file can't be read or is wrong. Later that is logged, and what was
            stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._told_at = float("-inf")
        self._shares, self._default = self._read()

    def __call__(self, route: str) -> Share:
        """See ``Rollout``."""
        self._look()
        return self._shares.get(route, self._default)

    def routes(self) -> Collection[str]:
        """See ``Rollout``."""
        return self._shares.keys()

    def _look(self) -> None:
        # A few microseconds, so that going back takes no longer than the next call.
        try:
            if self._stamp_now() == self._stamp:
                return
            self._shares, self._default = self._read()
        except (OSError, InvalidConfigurationError) as error:
            if time.monotonic() - self._told_at > 10:
                self._told_at = time.monotonic()
                _log.error("the rollout of %s stays as it was: %s", self._path, error)
        else:
            _log.info("the rollout has changed", extra={"file": str(self._path)})

    def _stamp_now(self) -> tuple[int, ...]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> tuple[dict[str, Share], Share]:
        advice = 'write e.g. {"default": 0, "POST /quote": 25}'
        try:
            stamp = self._stamp_now()
            if stamp[1] > _MOST_BYTES:
                raise InvalidConfigurationError(f"the rollout {self._path} is too large", advice=advice)
            told = json.loads(self._path.read_bytes())
            shares = {str(route): _share(value) for route, value in told.items()}
        except OSError as error:
            raise InvalidConfigurationError(
                f"the rollout {self._path} can't be read: {error.strerror}", advice=advice
            ) from None
        except AttributeError:
            raise InvalidConfigurationError(f"the rollout {self._path} holds no object", advice=advice) from None
        except RecursionError:
            raise InvalidConfigurationError(f"the rollout {self._path} nests too deep", advice=advice) from None
        except ValueError as error:
            raise InvalidConfigurationError(f"the rollout {self._path} is wrong: {error}", advice=advice) from None
        self._stamp = stamp
        return shares, shares.pop(_DEFAULT, Share())


def _share(value: Any) -> Share:
    if not isinstance(value, Mapping):
        return Share(value)
    if unknown := sorted(set(value) - _FIELDS):
        raise ValueError(f"{', '.join(unknown)} is none of {', '.join(sorted(_FIELDS))}")
    users = value.get("users", [])
    if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
        raise ValueError("users is a list of user ids")
    return Share(value.get("percent", 0), frozenset(users), value.get("shadow_percent", 0))


def place_of(user_id: str) -> int:
    """A user's place among ten thousand: the same in every process, at any time."""
    digest = hashlib.blake2s(user_id.encode(), digest_size=8, person=b"rollout").digest()
    return int.from_bytes(digest, "big") % _PLACES
