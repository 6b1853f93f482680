"""Keys that login tokens are verified with: one shared secret (HS256, development), or a JWKS file of public keys.

Each key is bound to one algorithm, so that no token can choose how it is checked. Keys that are fetched over the
network are ``login_jwks``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from carrel.errors import InvalidConfigurationError
from servicekit.logs import get_logger
from servicekit.private_files import FollowedFiles, check_private, json_of, read_small

__all__ = ["MIN_SECRET_BYTES", "KeySource", "LoginKey", "LoginKeys", "NoKeysError", "find_key", "public_keys"]

_log: Final = get_logger("gateway.login")

MIN_SECRET_BYTES: Final = 32
_LOOK_EVERY_S: Final = 5.0
# For a key that was added a moment ago; once a second, since anybody can send an unknown kid.
_LOOK_UNKNOWN_EVERY_S: Final = 1.0
_MOST_KEYS: Final = 100
_RSA_BITS: Final = (2048, 8192)

# One algorithm for a key without `alg`; what a key may be used with at all.
_BY_KIND: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


@dataclass(frozen=True, slots=True)
class LoginKey:
    """A key and the one algorithm it is for. ``kid`` is empty for a key without a name."""

    kid: str
    algorithm: str
    key: Any = field(repr=False)


class KeySource(Protocol):
    """Where keys come from."""

    def find(self, kid: str, algorithm: str) -> LoginKey | None:
        """The key that a token's header asks for, if its algorithm is that key's own.

        Raises:
            UnavailableError: It cannot be said at the moment.
        """
        ...

    async def renewed(self) -> bool:
        """Look for a key that ``find`` did not know; whether there may be more now."""
        ...


class LoginKeys:
    """Keys by ``kid``. Those of a JWKS file follow the file when it changes."""

    def __init__(self, keys: Iterable[LoginKey] = (), path: Path | None = None) -> None:
        self._file = None if path is None else FollowedFiles(path, read=partial(_read_jwks, path), refused=_not_usable)
        self._given = tuple(keys)

    @property
    def _keys(self) -> tuple[LoginKey, ...]:
        return self._given if self._file is None else self._file.value

    @classmethod
    def from_secret_file(cls, path: Path) -> Self:
        """The shared secret in a file that only its owner may read.

        Raises:
            InvalidConfigurationError: It is missing, too short, or readable by every user of the machine.
        """
        try:
            secret = read_small(path).strip()
            check_private("the login secret", path)
        except OSError as error:
            raise InvalidConfigurationError(
                f"the login secret {path} cannot be read: {error.strerror}",
                advice="`carrel up` makes one; elsewhere set CARREL_GATEWAY_LOGIN__JWKS to your issuer's keys",
            ) from None
        if len(secret) < MIN_SECRET_BYTES:
            raise InvalidConfigurationError(
                f"the login secret {path} has {len(secret)} bytes; it needs {MIN_SECRET_BYTES} or more",
                advice=f"write {MIN_SECRET_BYTES} or more random bytes as text into it",
            )
        return cls([LoginKey("", "HS256", secret)])

    @classmethod
    def from_jwks_file(cls, path: Path) -> Self:
        """The public keys of a JWKS file.

        Raises:
            InvalidConfigurationError: It is missing, no JWKS, or holds no key for signatures.
        """
        return cls(path=path)

    def find(self, kid: str, algorithm: str) -> LoginKey | None:
        """The key that a token's header asks for, if its algorithm is that key's own."""
        if self._file is not None:
            self._file.look(_LOOK_EVERY_S)
        found = find_key(self._keys, kid, algorithm)
        if found is None and self._file is not None and self._file.look(_LOOK_UNKNOWN_EVERY_S):
            found = find_key(self._keys, kid, algorithm)
        return found

    async def renewed(self) -> bool:
        """See ``KeySource``: ``find`` has looked."""
        return False


def find_key(keys: tuple[LoginKey, ...], kid: str, algorithm: str) -> LoginKey | None:
    """The key of that name which is for that algorithm; a key without a name, or the only one, for any name or none."""
    for key in keys:
        named = key.kid == kid or (not kid and len(keys) == 1) or not key.kid
        if named and key.algorithm == algorithm:
            return key
    return None


class NoKeysError(ValueError):
    """Why a document holds no keys, as the end of a sentence about it."""


def public_keys(document: Mapping[str, Any]) -> tuple[LoginKey, ...]:
    """The keys of a JWKS document that came from elsewhere; those that cannot be used are passed over.

    Raises:
        NoKeysError: It is no JWKS, or none of its keys can be used.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise NoKeysError("is no JWKS document")
    if len(listed) > _MOST_KEYS:
        raise NoKeysError(f"has more than {_MOST_KEYS} keys")
    keys = []
    for jwk in listed:
        try:
            keys += [key for key in _keys_of(jwk) if _is_strong(key)]
        except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
            continue
    if not keys:
        raise NoKeysError("holds no public key for signatures (RSA of 2048 bits or more, EC P-256 to P-521, Ed25519)")
    return tuple(keys)


def _is_strong(key: LoginKey) -> bool:
    # Beyond the upper bound a signature takes milliseconds to check.
    return not isinstance(key.key, RSAPublicKey) or _RSA_BITS[0] <= key.key.key_size <= _RSA_BITS[1]


def _read_jwks(path: Path) -> tuple[LoginKey, ...]:
    try:
        listed = json_of(read_small(path))["keys"]
        keys = tuple(key for jwk in listed for key in _keys_of(jwk))
    except OSError as error:
        raise InvalidConfigurationError(
            f"the login keys {path} cannot be read: {error.strerror}", advice="mend CARREL_GATEWAY_LOGIN__JWKS"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
        raise InvalidConfigurationError(
            f"{path} is not a JWKS file with public keys", advice="save your issuer's JWKS document there"
        ) from None
    if not keys:
        raise InvalidConfigurationError(
            f"{path} holds no public key for signatures",
            advice="RSA, EC (P-256, P-384, P-521) and Ed25519 keys are taken",
        )
    return keys


def _keys_of(jwk: Mapping[str, Any]) -> list[LoginKey]:
    # A symmetric key in a file meant to be public is no secret, and encryption keys sign nothing.
    kind = jwk.get("kty")
    algorithms = _BY_KIND.get((str(kind), "" if kind == "RSA" else str(jwk.get("crv", ""))), ())
    if jwk.get("use", "sig") != "sig" or ("key_ops" in jwk and "verify" not in jwk["key_ops"]):
        return []
    if "alg" in jwk:
        algorithms = tuple(name for name in algorithms if name == jwk["alg"])
    public = {name: value for name, value in jwk.items() if name not in {"d", "p", "q", "dp", "dq", "qi", "oth"}}
    return [LoginKey(str(jwk.get("kid", "")), name, jwt.PyJWK(public, name).key) for name in algorithms]


def _not_usable(reason: str) -> None:
    # Half written, or wrong: the keys of before go on until it is mended.
    _log.warning("the login keys cannot be read again", reason=reason)
