"""A signing key in a file that may be replaced at any moment: what is signed from then on is signed with the new one.

What the file holds while it cannot be used (half of it, another issuer's key) is not taken; the former stays, and the
log says why. Verifying is ``keys.KeySet``, which follows its file too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from carrel.errors import InvalidConfigurationError
from servicekit.identity.keys import SigningKey, load_signing_key
from servicekit.logs import get_logger
from servicekit.private_files import FollowedFiles

__all__ = ["FollowedKey", "Signer"]

_log: Final = get_logger("servicekit.identity")
_LOOK_S: Final = 1.0


class Signer(Protocol):
    """A key that signs: a ``SigningKey`` stays what it is, a ``FollowedKey`` follows its file."""

    def current(self) -> SigningKey:
        """The key to sign with now."""
        ...


class FollowedKey:
    """A private JWK in a file.

    Args:
        path: The file.
        issuer: Whose key it must be, where it says whose.

    Raises:
        InvalidConfigurationError: It cannot be read, or is somebody else's.
    """

    def __init__(
        self, path: Path, issuer: str, *, look_s: float = _LOOK_S, clock: Callable[[], float] | None = None
    ) -> None:
        self._path = path
        self._issuer = issuer
        self._look_s = look_s
        self._file = FollowedFiles(path, read=self._read, refused=_not_usable, clock=clock)

    def current(self) -> SigningKey:
        """The key to sign with now."""
        former = self._file.value
        if self._file.look(self._look_s) and self._file.value.kid != former.kid:
            _log.info("signing with another key", kid=self._file.value.kid, former=former.kid)
        return self._file.value

    def _read(self) -> SigningKey:
        key = load_signing_key(self._path)
        if key.issuer and key.issuer != self._issuer:
            raise InvalidConfigurationError(
                f"the key {key.kid} in {self._path} belongs to {key.issuer}, not to {self._issuer}",
                advice="give each service its own key",
            )
        return key


def _not_usable(reason: str) -> None:
    _log.warning("the new signing key is not usable; the former stays in use", reason=reason)
