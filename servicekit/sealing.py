"""Sealing what users and agents wrote before it is stored: AES-256-GCM, bound to the user, the run and the field.

A sealed value moved to another user, run or field does not open, and neither does one that was changed. What was stored
before there was a key is read as it is. Not hidden: ids, times, states, names of agents and tools, sizes, hashes.
"""

from __future__ import annotations

import base64
import os
import time
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carrel.errors import CarrelError, CorruptStoreError, StoreUnavailableError
from servicekit.logs import get_logger
from servicekit.sealing_keys import SealingKeys

__all__ = ["PLAIN", "KeySeals", "PlainSeals", "Seals", "is_sealed", "key_of"]

_log: Final = get_logger("servicekit.sealing")
# No JSON and no text of ours begins like this; a text of a user's that does is marked as plain.
_MARK: Final = b"\0c1"
_TEXT_MARK: Final = "\1c1:"
_TEXT_PLAIN: Final = "\1p:"
_NONCE: Final = 12
_DOMAIN: Final = b"carrel-sealed-1"
# Without the key's name: the mark, the name's length, the nonce, and what proves the rest.
_LEAST_BYTES: Final = len(_MARK) + 1 + _NONCE + 16
_TELL_EVERY_S: Final = 10.0


class Seals(Protocol):
    """Seals and opens values. ``field`` is the table's and column's name; the names that sealed a value open it."""

    def seal(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """The value as it is stored."""
        ...

    def open(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """The value that was stored.

        Raises:
            StoreUnavailableError: It is sealed with a key that is not here; the message names it.
            CorruptStoreError: It was changed or moved, or its key is another one of the same name.
        """
        ...

    def seal_text(self, field: str, user: str, run: str, text: str) -> str:
        """As ``seal``, for text."""
        ...

    def open_text(self, field: str, user: str, run: str, text: str) -> str:
        """As ``open``, for text."""
        ...


class PlainSeals:
    """No key: values are stored as they are. One that was sealed is refused, never handed out."""

    def seal(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """See ``Seals``."""
        return data

    def open(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """See ``Seals``."""
        if data[:3] == _MARK:
            raise _no_key(key_of(data))
        return data

    def seal_text(self, field: str, user: str, run: str, text: str) -> str:
        """See ``Seals``."""
        return _TEXT_PLAIN + text if text[:1] == "\1" else text

    def open_text(self, field: str, user: str, run: str, text: str) -> str:
        """See ``Seals``."""
        if text[:1] != "\1":
            return text
        if text.startswith(_TEXT_MARK):
            raise _no_key(key_of(_unwrapped(text)))
        return text.removeprefix(_TEXT_PLAIN)


PLAIN: Final = PlainSeals()


class KeySeals:
    """Seals with the newest key, opens with every key that is known, and reads plain values of before."""

    def __init__(self, keys: SealingKeys) -> None:
        self._keys = keys
        self._failures = 0
        self._told_at = -_TELL_EVERY_S

    @property
    def keys(self) -> SealingKeys:
        """The keys."""
        return self._keys

    def seal(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """See ``Seals``."""
        kid, key = self._keys.newest()
        nonce, name = os.urandom(_NONCE), kid.encode()
        return _MARK + bytes([len(name)]) + name + nonce + key.encrypt(nonce, data, _bound_to(field, user, run))

    def open(self, field: str, user: str, run: str, data: bytes) -> bytes:
        """See ``Seals``."""
        if data[:3] != _MARK:
            return data
        kid = key_of(data)
        try:
            if len(data) < _LEAST_BYTES + len(kid):
                raise _corrupt(kid)
            key = self._keys.get(kid)
            if key is None:
                raise _no_key(kid)
            return _opened(key, kid, data, _bound_to(field, user, run))
        except (CorruptStoreError, StoreUnavailableError) as error:
            self._tell(field, kid, error)
            raise

    def _tell(self, field: str, kid: str, error: CarrelError) -> None:
        """Whoever asked is told of one value; whoever keeps the store must hear of it, too."""
        self._failures += 1
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            _log.error(
                "a stored value does not open", field=field, key_id=kid, code=error.code, failures=self._failures
            )

    def seal_text(self, field: str, user: str, run: str, text: str) -> str:
        """See ``Seals``."""
        # As the columns of plain text do, so that it reads the same.
        sealed = self.seal(field, user, run, text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass"))
        return _TEXT_MARK + base64.b64encode(sealed).decode()

    def open_text(self, field: str, user: str, run: str, text: str) -> str:
        """See ``Seals``."""
        if not text.startswith(_TEXT_MARK):
            return PLAIN.open_text(field, user, run, text)
        return self.open(field, user, run, _unwrapped(text)).decode("utf-8", "surrogatepass")


def is_sealed(value: bytes | str) -> bool:
    """Whether a stored value is sealed."""
    return value.startswith(_TEXT_MARK) if isinstance(value, str) else value[:3] == _MARK


def key_of(value: bytes | str) -> str:
    """The name of the key that a value is sealed with; empty for a plain one."""
    if not is_sealed(value):
        return ""
    data = _unwrapped(value) if isinstance(value, str) else value
    length = data[3] if len(data) > 3 else 0
    return data[4 : 4 + length].decode("ascii", "replace")


def _opened(key: AESGCM, kid: str, data: bytes, bound: bytes) -> bytes:
    begin = 4 + data[3]
    try:
        return key.decrypt(data[begin : begin + _NONCE], data[begin + _NONCE :], bound)
    except (InvalidTag, ValueError):
        raise _corrupt(kid) from None


def _corrupt(kid: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"a stored value does not open with the key {kid!r}: it was changed or moved, or the key file has another "
        "key of that name than the one it was sealed with",
        advice="give the service the key file of before; if it is the right one, restore the store from a backup",
        key_id=kid,
    )


def _bound_to(field: str, user: str, run: str) -> bytes:
    return b"\0".join((_DOMAIN, field.encode(), user.encode(), run.encode()))


def _unwrapped(text: str) -> bytes:
    try:
        return base64.b64decode(text[len(_TEXT_MARK) :], validate=True)
    except ValueError:
        raise CorruptStoreError("a sealed text in the store is damaged", advice="restore it from a backup") from None


def _no_key(kid: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"a stored value is sealed with the key {kid!r}, which this process does not have",
        advice=f"add the key {kid!r} to the file that this service's ENCRYPTION__KEY_FILE names",
        key_id=kid,
    )
