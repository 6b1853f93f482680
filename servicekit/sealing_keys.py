"""The file with the keys that stored values are sealed with: a JWK set of symmetric keys (A256GCM), the newest first.

The file is followed while the process runs, so that a key can be added without a restart. It is never written here but
by ``add_key``, for the command line.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carrel.errors import InvalidConfigurationError
from servicekit.identity.keys import write_private
from servicekit.logs import get_logger
from servicekit.private_files import FollowedFiles, check_private, json_of, read_small

__all__ = ["SealingKeys", "add_key"]

_log: Final = get_logger("servicekit.sealing")
_LOOK_EVERY_S: Final = 5.0
_LOOK_UNKNOWN_EVERY_S: Final = 1.0
_MOST_KEYS: Final = 50
_KID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COMPARED: Final = b"carrel-same-key"
_ADVICE: Final = "make one with `carrel encryption-key FILE`, and name it in the service's ENCRYPTION__KEY_FILE"


class SealingKeys:
    """The keys in a file.

    Raises:
        InvalidConfigurationError: It is missing, may be read by everybody, or holds no usable keys.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, AESGCM] = {}
        self._file = FollowedFiles(path, read=self._take, refused=_not_usable)

    def newest(self) -> tuple[str, AESGCM]:
        """The name and the key that new values are sealed with."""
        self._look(_LOOK_EVERY_S)
        return next(iter(self._keys.items()))

    def get(self, kid: str) -> AESGCM | None:
        """A key by its name; one that is unknown is looked for in the file, once a second."""
        key = self._keys.get(kid)
        if key is None:
            self._look(_LOOK_UNKNOWN_EVERY_S)
            key = self._keys.get(kid)
        return key

    def items(self) -> tuple[tuple[str, AESGCM], ...]:
        """All keys by name, the newest first."""
        return tuple(self._keys.items())

    def _look(self, every_s: float) -> None:
        # Several threads come here; each sees one whole set of keys or the other.
        if self._file.look(every_s):
            _log.info("encryption keys changed", newest=next(iter(self._keys)), keys=len(self._keys))

    def _take(self) -> None:
        keys = _read(self._path)
        self._refuse_others(keys)
        self._keys = keys

    def _refuse_others(self, keys: dict[str, AESGCM]) -> None:
        """A name stands for one key for ever: what the former has sealed would never open again.

        Raises:
            InvalidConfigurationError: A known name has another key now.
        """
        for kid, key in keys.items():
            known = self._keys.get(kid)
            if known is not None and not _same(known, key):
                raise _wrong(self._path, f"has another key called {kid!r} than the one that is in use")


def _same(one: AESGCM, other: AESGCM) -> bool:
    nonce = bytes(12)
    # The bytes of a key are not kept beside it. With a nonce of its own nothing else is ever sealed.
    return one.encrypt(nonce, b"", _COMPARED) == other.encrypt(nonce, b"", _COMPARED)


def add_key(path: Path, kid: str = "") -> str:
    """Put a new key in front of those in the file, which is made when there is none; the key's name.

    Raises:
        InvalidConfigurationError: The file is there and cannot be used, or has a key of that name.
    """
    known = _document(path)["keys"] if path.exists() else []
    if path.exists():
        _ = _read(path)
    # Its second is not enough of a name: two may be made in one, also at two copies of the file.
    kid = kid or f"key-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}"
    if not _KID.fullmatch(kid) or any(jwk.get("kid") == kid for jwk in known):
        raise InvalidConfigurationError(
            f"a key cannot be called {kid!r}: it has 1 to 64 letters, digits, '_', '.' or '-', and no other key's name",
            advice="choose another --id",
        )
    secret = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    fresh = {"kty": "oct", "kid": kid, "alg": "A256GCM", "k": secret}
    try:
        write_private(path, json.dumps({"keys": [fresh, *known]}, indent=1).encode())
    except OSError as error:
        raise InvalidConfigurationError(
            f"the key file {path} cannot be written: {error.strerror}", advice="name a file that you may write"
        ) from None
    return kid


def _read(path: Path) -> dict[str, AESGCM]:
    listed = _document(path)["keys"]
    check_private("the encryption keys", path)
    keys: dict[str, AESGCM] = {}
    for jwk in listed:
        kid, key = _key(path, jwk)
        if kid in keys:
            raise _wrong(path, f"has two keys called {kid!r}")
        keys[kid] = key
    if not keys:
        raise _wrong(path, "holds no key")
    if len(keys) > _MOST_KEYS:
        raise _wrong(path, f"holds more than {_MOST_KEYS} keys; run `carrel reencrypt`, and take out the old ones")
    return keys


def _document(path: Path) -> dict[str, list[Any]]:
    try:
        document = json_of(read_small(path))
    except OSError as error:
        raise InvalidConfigurationError(
            f"the encryption keys {path} cannot be read: {error.strerror}", advice=_ADVICE
        ) from None
    except ValueError:
        raise _wrong(path, "is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise _wrong(path, "is no JWK set")
    return document


def _key(path: Path, jwk: Any) -> tuple[str, AESGCM]:
    if not isinstance(jwk, dict) or jwk.get("kty") != "oct" or jwk.get("alg", "A256GCM") != "A256GCM":
        raise _wrong(path, "holds something else than keys for A256GCM (kty oct)")
    kid, text = jwk.get("kid"), jwk.get("k")
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise _wrong(path, "holds a key without a usable name (kid: 1 to 64 letters, digits, '_', '.' or '-')")
    try:
        secret = base64.urlsafe_b64decode(f"{text}{'=' * (-len(str(text)) % 4)}")
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise _wrong(path, f"holds a key {kid!r} that has not 32 bytes")
    return kid, AESGCM(secret)


def _wrong(path: Path, problem: str) -> InvalidConfigurationError:
    return InvalidConfigurationError(f"the file with encryption keys {path} {problem}", advice=_ADVICE)


def _not_usable(reason: str) -> None:
    # Half written, or wrong: the keys of before go on until it is mended.
    _log.warning("the encryption keys cannot be read again", reason=reason)
