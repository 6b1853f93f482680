"""A certificate authority in a folder: makes the services' certificates for development, tests and small deployments.

Short-lived certificates of P-256 keys, written so that no reader ever sees half of a file. A cluster has better ones
(cert-manager, SPIRE); what counts is what a certificate says: see ``servicekit.tls.settings``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from carrel.errors import StartupError
from servicekit.identity.keys import write_private, write_public
from servicekit.tls.settings import server_name, spiffe_id

__all__ = ["CA_LIFE", "CERTIFICATE_LIFE", "Authority", "write_bundle", "write_certificate"]

CA_LIFE: Final = timedelta(days=365)
CERTIFICATE_LIFE: Final = timedelta(days=7)
# Peers' clocks may be behind.
_EARLIER: Final = timedelta(minutes=5)
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def new(cls, name: str = "Carrel development CA", life: timedelta = CA_LIFE) -> Self:
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), life)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The one that ``save`` wrote.

        Raises:
            StartupError: There is none that can be read.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"no certificate authority can be read in {folder}: {type(error).__name__}",
                advice="make one with `carrel keys certs --new-ca`",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartupError(f"{folder / 'ca.key'} is not a key of this program", advice="make a CA of its own")
        return cls(certificate, key)

    def save(self, folder: Path) -> None:
        """Write ``ca.crt`` and, for its owner only, ``ca.key``."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / "ca.key", _private_pem(self.key))
        write_public(folder / "ca.crt", self.pem)

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(_PEM)

    def issue(
        self,
        service: str,
        trust_domain: str,
        *,
        names: Sequence[str] = (),
        life: timedelta = CERTIFICATE_LIFE,
        spiffe: str | None = None,
    ) -> tuple[bytes, bytes]:
        """A certificate for a service and its key, as PEM.

        Args:
            service: One of ``servicekit.tls.settings.IDENTITIES``.
            trust_domain: Where it has its name.
            names: Further DNS names or numbers.
            life: How long it is good.
            spiffe: Another URI than the service's (tests).
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)])
        builder = _builder(subject, self.certificate.subject, key.public_key(), life)
        uri = spiffe_id(service, trust_domain) if spiffe is None else spiffe
        entries: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else []
        entries += [x509.DNSName(server_name(service, trust_domain)), *map(_name, names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM), _private_pem(key)


def write_certificate(folder: Path, certificate: bytes, key: bytes) -> None:
    """Write ``tls.crt`` and ``tls.key``. Between the two a reader meets a pair that does not match, and looks again."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / "tls.key", key)
    write_public(folder / "tls.crt", certificate)


def write_bundle(folder: Path, authorities: Iterable[bytes]) -> None:
    """Write the CAs that peers' certificates may be signed by to ``ca.crt``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_public(folder / "ca.crt", b"".join(authorities))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
