"""A certificate, its key and the CAs in files that may be replaced at any moment, and are followed by content.

What does not fit together (a certificate without its key, half a file) is not taken: what was there before stays in
use, and the log says why. Safe to use from several threads: gRPC asks during handshakes, in threads of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from carrel.errors import InvalidConfigurationError
from servicekit.logs import get_logger
from servicekit.private_files import FollowedFiles, check_private, read_small
from servicekit.tls.settings import IDENTITIES, TlsSettings, spiffe_id

__all__ = ["Material", "TlsFiles", "service_named"]

_log: Final = get_logger("servicekit.tls")
_LOOK_S: Final = 1.0
_WARN_SHARE: Final = 0.2  # of a certificate's life
_WARN_EVERY_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Material:
    """What one reading of the files gave. ``generation`` rises with each change."""

    chain: bytes
    key: bytes = field(repr=False)
    roots: bytes
    service: str
    not_before: datetime
    not_after: datetime
    generation: int = 1


class TlsFiles:
    """The files of one process.

    Args:
        settings: Where they are; they must be given.
        service: Whose certificate it must be; any of the known ones when empty.
        look_s: How often the files are looked at, at most.

    Raises:
        InvalidConfigurationError: They cannot be read, or do not belong together.
    """

    def __init__(
        self,
        settings: TlsSettings,
        service: str = "",
        *,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if settings.cert is None or settings.key is None or settings.ca is None:
            raise ValueError("TLS is not configured")
        paths = self._paths = (settings.cert, settings.key, settings.ca)
        self._domain = settings.trust_domain
        self._service = service
        self._look_s = look_s
        self._clock = clock
        self._lock = threading.Lock()
        self._files = FollowedFiles(*paths, read=self._read, refused=_not_usable, clock=clock)
        self._warned = -_WARN_EVERY_S
        self._looked = clock()
        self._now = self._files.value

    def current(self) -> Material:
        """What is to be used now, after looking at the files if that was not done lately."""
        if self._clock() - self._looked >= self._look_s:
            with self._lock:
                if self._clock() - self._looked >= self._look_s:
                    self._look()
        return self._now

    def _look(self) -> None:
        self._looked = self._clock()
        self._warn_of_end()
        if not self._files.look(0):
            return
        read, now = self._files.value, self._now
        if (read.chain, read.key, read.roots) != (now.chain, now.key, now.roots):
            self._now = replace(read, generation=now.generation + 1)
            _log.info("TLS files were replaced", service=read.service, ends=read.not_after.isoformat())

    def _warn_of_end(self) -> None:
        life = self._now.not_after - self._now.not_before
        left = self._now.not_after - datetime.now(UTC)
        if left < life * _WARN_SHARE and self._looked - self._warned >= _WARN_EVERY_S:
            self._warned = self._looked
            _log.warning("the TLS certificate ends soon: replace its file", ends=self._now.not_after.isoformat())

    def _read(self) -> Material:
        cert, key, ca = self._paths
        chain, secret, roots = _bytes(cert), _bytes(key), _bytes(ca)
        check_private("the key", key)
        own = _certificates(cert, chain)[0]
        _ = _certificates(ca, roots)
        if _public_of(key, secret) != _public(own):
            raise InvalidConfigurationError(
                f"{key} is not the key of the certificate {cert}", advice="put the two there that were made together"
            )
        service = service_named(_uris(own), self._domain)
        if not service or (self._service and service != self._service):
            wanted = spiffe_id(self._service or "<service>", self._domain)
            raise InvalidConfigurationError(
                f"the certificate {cert} is not for this service: it carries no URI {wanted}",
                advice="name the service's own certificate, or correct CARREL_TLS__TRUST_DOMAIN;"
                " `carrel keys certs` makes certificates for development",
            )
        now = datetime.now(UTC)
        if now < own.not_valid_before_utc:
            raise InvalidConfigurationError(
                f"the certificate {cert} is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
                advice="wait until then, or set this machine's clock right: peers would refuse it now",
            )
        if now >= own.not_valid_after_utc:
            raise InvalidConfigurationError(
                f"the certificate {cert} ended at {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                advice="put a new one in its place",
            )
        return Material(chain, secret, roots, service, own.not_valid_before_utc, own.not_valid_after_utc)


def _not_usable(reason: str) -> None:
    _log.warning("new TLS files are not usable; the former stay in use", reason=reason)


def service_named(uris: list[str], trust_domain: str) -> str:
    """The service that a certificate's URIs name, or an empty text: one name, of this domain, and a known one."""
    names = [uri for uri in uris if uri.startswith("spiffe:")]
    if len(names) != 1:
        return ""
    service = names[0].removeprefix(spiffe_id("", trust_domain))
    return service if service in IDENTITIES else ""


def _bytes(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InvalidConfigurationError:
    return InvalidConfigurationError(
        f"the TLS file {path} cannot be read: {error.strerror}",
        advice="mend CARREL_TLS__CERT, CARREL_TLS__KEY and CARREL_TLS__CA, or the files' permissions",
    )


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise InvalidConfigurationError(
            f"{path} holds no PEM certificates", advice="write -----BEGIN CERTIFICATE----- blocks into it"
        ) from None


def _public_of(path: Path, data: bytes) -> bytes:
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise InvalidConfigurationError(
            f"{path} holds no PEM private key without a password", advice="write the certificate's key into it"
        ) from None
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
