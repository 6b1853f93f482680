"""Ed25519 keys that sign tickets, and the set of public keys that verifies them. Files are JWK and JWKS (RFC 8037).

A public key may say whose it is (``iss``) and what it may sign (``carrel_scopes``); the verifier holds tickets to both,
so that the execution service's key cannot sign a user's session.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from carrel.errors import InvalidConfigurationError
from servicekit.identity.principals import ANY_SCOPE, Scope
from servicekit.private_files import Stamp, check_private, json_of, read_small, stamp_of

__all__ = [
    "KeySet",
    "PublicKey",
    "SigningKey",
    "generate_key",
    "load_signing_key",
    "write_jwks",
    "write_private",
    "write_public",
]

_CHECK_EVERY_S: Final = 5.0
_CHECK_UNKNOWN_EVERY_S: Final = 1.0
_MOST_RETIRED: Final = 100


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies: ``issuer`` empty means any issuer; ``scopes`` is what it may sign."""

    kid: str
    key: Ed25519PublicKey
    issuer: str = ""
    scopes: frozenset[Scope] = ANY_SCOPE

    def to_jwk(self) -> dict[str, Any]:
        """The key as a public JWK."""
        jwk: dict[str, Any] = {
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": "EdDSA",
            "kid": self.kid,
            "x": _encode(self.key.public_bytes_raw()),
        }
        if self.issuer:
            jwk["iss"] = self.issuer
        if self.scopes != ANY_SCOPE:
            jwk["carrel_scopes"] = sorted(scope.value for scope in self.scopes)
        return jwk


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs. Its ``repr`` shows no secret."""

    kid: str
    key: Ed25519PrivateKey = field(repr=False)
    issuer: str = ""
    scopes: frozenset[Scope] = ANY_SCOPE

    @property
    def public(self) -> PublicKey:
        """The half that verifiers get."""
        return PublicKey(self.kid, self.key.public_key(), self.issuer, self.scopes)

    def current(self) -> SigningKey:
        """Itself: see ``signing.Signer``."""
        return self

    def save(self, path: Path) -> None:
        """Write the private JWK with mode 0600, replacing what was there in one step."""
        jwk = self.public.to_jwk() | {"d": _encode(self.key.private_bytes_raw())}
        write_private(path, json.dumps(jwk, indent=1).encode())


def generate_key(kid: str = "", *, issuer: str = "", scopes: Iterable[Scope] = ANY_SCOPE) -> SigningKey:
    """A new key; ``kid`` is made up when empty."""
    return SigningKey(kid or f"k-{secrets.token_hex(6)}", Ed25519PrivateKey.generate(), issuer, frozenset(scopes))


def load_signing_key(path: Path) -> SigningKey:
    """Read a private JWK.

    Raises:
        InvalidConfigurationError: It is missing, readable by everybody, or no Ed25519 private key.
    """
    jwk = _read_json(path)
    check_private("the signing key", path)
    try:
        public = _public_key(jwk)
        private = Ed25519PrivateKey.from_private_bytes(_decode(jwk["d"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_key(path, "an Ed25519 private JWK", error) from None
    if private.public_key().public_bytes_raw() != public.key.public_bytes_raw():
        raise _not_a_key(path, "an Ed25519 private JWK", ValueError("d and x are not of one key"))
    return SigningKey(public.kid, private, public.issuer, public.scopes)


def write_jwks(path: Path, keys: Iterable[SigningKey | PublicKey]) -> None:
    """Write the public keys as a JWKS file that everybody may read, replacing what was there in one step."""
    public = [key.public if isinstance(key, SigningKey) else key for key in keys]
    text = json.dumps({"keys": [key.to_jwk() for key in public]}, indent=1)
    _replace(path, text.encode(), 0o644)


def write_private(path: Path, data: bytes) -> None:
    """Write a secret with mode 0600 from its first byte on, replacing what was there in one step."""
    _replace(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write what everybody may read with mode 0644, replacing what was there in one step."""
    _replace(path, data, 0o644)


class KeySet:
    """Public keys by ``kid``. One read from a file follows the file: ``generation`` rises when it has changed."""

    def __init__(self, keys: Iterable[SigningKey | PublicKey] = (), *, path: Path | None = None) -> None:
        self._path = path
        self._keys = {key.kid: key for key in (k.public if isinstance(k, SigningKey) else k for k in keys)}
        self._stamp: Stamp | None = None
        self._last_check = 0.0
        self._retired: dict[str, None] = {}
        self.generation = 0
        self.last_error = ""

    @classmethod
    def from_jwks_file(cls, path: Path) -> Self:
        """Read the file, and follow its changes.

        Raises:
            InvalidConfigurationError: It is missing, no JWKS, or holds no usable key.
        """
        keys = cls(path=path)
        keys._load()
        return keys

    def __len__(self) -> int:
        return len(self._keys)

    def kids(self) -> tuple[str, ...]:
        """The ids of the keys."""
        return tuple(self._keys)

    def retired(self, kid: str) -> bool:
        """Whether the file had this key, as far as this set has followed it, and has it no more."""
        return kid in self._retired

    def get(self, kid: str) -> PublicKey | None:
        """The key, after looking into the file again when it is unknown (at most once a second)."""
        key = self._keys.get(kid)
        if key is None and self.refresh(_CHECK_UNKNOWN_EVERY_S):
            key = self._keys.get(kid)
        return key

    def refresh(self, every_s: float = _CHECK_EVERY_S) -> bool:
        """Read the file again if it has changed and was not looked at for ``every_s``; whether it was read.

        A file that has become unreadable keeps the keys of before and sets ``last_error``.
        """
        now = time.monotonic()
        if self._path is None or now - self._last_check < every_s:
            return False
        self._last_check = now
        try:
            if stamp_of(self._path) == self._stamp:
                return False
            self._load()
        except (InvalidConfigurationError, OSError) as error:
            self.last_error = str(error)
            return False
        return True

    def _load(self) -> None:
        assert self._path is not None
        self._last_check = time.monotonic()
        try:
            # Before the read: a change in between is then seen at the next look.
            stamp = stamp_of(self._path)
        except OSError:
            stamp = None
        data = _read_json(self._path)
        try:
            keys = [_public_key(jwk) for jwk in data["keys"] if _usable(jwk)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _not_a_key(self._path, "a JWKS file", error) from None
        if not keys:
            raise _not_a_key(self._path, "a JWKS file", ValueError("no Ed25519 key in it"))
        if len({key.kid for key in keys}) != len(keys):
            raise _not_a_key(self._path, "a JWKS file", ValueError("two keys have the same kid"))
        former, self._keys = self._keys, {key.kid: key for key in keys}
        self._retired.update(dict.fromkeys(former))
        # The latest are kept: keys that are exchanged for years would add up.
        left = [kid for kid in self._retired if kid not in self._keys]
        self._retired = dict.fromkeys(left[-_MOST_RETIRED:])
        self._stamp = stamp
        self.last_error = ""
        self.generation += 1


def _usable(jwk: Mapping[str, Any]) -> bool:
    # Other kinds of key may stand in the same file; they are not ours to judge.
    return jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519" and jwk.get("use", "sig") == "sig"


def _public_key(jwk: Mapping[str, Any]) -> PublicKey:
    if not _usable(jwk):
        raise ValueError("kty is not OKP or crv is not Ed25519")
    kid, issuer = jwk["kid"], jwk.get("iss", "")
    if not isinstance(kid, str) or not kid or not isinstance(issuer, str):
        raise ValueError("kid is missing or no text")
    scopes = frozenset(Scope(scope) for scope in jwk["carrel_scopes"]) if "carrel_scopes" in jwk else ANY_SCOPE
    return PublicKey(kid, Ed25519PublicKey.from_public_bytes(_decode(jwk["x"])), issuer, scopes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json_of(read_small(path))
    except OSError as error:
        raise InvalidConfigurationError(
            f"the key file {path} cannot be read: {error.strerror}",
            advice="make the keys (`carrel up` does) or mend the path",
        ) from None
    except ValueError as error:
        raise _not_a_key(path, "JSON", error) from None
    if not isinstance(data, dict):
        raise _not_a_key(path, "a JSON object", ValueError(type(data).__name__))
    return data


def _not_a_key(path: Path, wanted: str, error: Exception) -> InvalidConfigurationError:
    # The text of a ValueError may quote the file, so only errors of our own making and kinds are shown.
    reason = str(error) if type(error) is ValueError else type(error).__name__
    return InvalidConfigurationError(f"{path} is not {wanted}: {reason}", advice="make the keys anew or mend the path")


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("a key's bytes are not base64url") from None
