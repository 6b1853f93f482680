"""A deployment's certificates in a folder: ``ca/`` with the authority, and for each service ``tls.crt tls.key ca.crt``.

The order in which a new authority takes over is kept by making only one step at a time: first it is trusted beside the
old one, then it signs, then the old one is dropped. Not for keys of tickets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from carrel.cli.authority import CA_LIFE, Authority, write_bundle, write_certificate
from carrel.errors import StartupError
from servicekit.identity.keys import write_public
from servicekit.tls.settings import IDENTITIES

__all__ = ["keep_certificates", "make_certificates"]


def make_certificates(
    folder: Path,
    *,
    services: Sequence[str] = (),
    life: timedelta,
    trust_domain: str = "carrel.internal",
    names: Sequence[str] = (),
    new_ca: bool = False,
    drop_old_ca: bool = False,
    ca_life: timedelta = CA_LIFE,
) -> Iterator[str]:
    """Make or renew certificates; says in words what was done.

    Args:
        folder: Where they go.
        services: Whose; all of ``IDENTITIES`` when empty.
        life: How long they are good.
        trust_domain: In which the services have their names.
        names: Further DNS names or numbers in each.
        new_ca: Make a new authority. Where there is one, nothing is signed with the new one yet.
        drop_old_ca: Trust the present one only.
        ca_life: How long a new authority is good.

    Raises:
        StartupError: A service is unknown, or the folder holds no authority that can be read, or cannot be written.
    """
    unknown = [name for name in services if name not in IDENTITIES]
    if unknown:
        raise StartupError(f"{unknown[0]} is no service", advice=f"name some of {', '.join(IDENTITIES)}")
    if new_ca and drop_old_ca:
        raise StartupError("a new authority must be known before the old one is dropped", advice="do it in two steps")
    chosen = tuple(services) or IDENTITIES
    try:
        if not (folder / "ca" / "ca.key").exists():
            Authority.new(life=ca_life).save(folder / "ca")
            made = [f"made an authority in {folder / 'ca'}"]
            return iter(made + _made(folder, chosen, life, trust_domain, names, drop_old_ca=drop_old_ca))
        return iter(_made(folder, chosen, life, trust_domain, names, new_ca=new_ca, drop_old_ca=drop_old_ca))
    except OSError as error:
        raise StartupError(
            f"{error.filename or folder} cannot be written: {error.strerror}", advice="name a folder that can be"
        ) from None


def keep_certificates(folder: Path, *, life: timedelta, ca_life: timedelta) -> list[str]:
    """Make the certificates that are missing or past the half of their lives; whose they are.

    Args:
        folder: As for ``make_certificates``.
        life: How long they are good.
        ca_life: How long the authority is good, where there is none yet.

    Raises:
        StartupError: See ``make_certificates``.
    """
    due = [service for service in IDENTITIES if _is_due(folder / service / "tls.crt")]
    if due:
        for _ in make_certificates(folder, services=due, life=life, ca_life=ca_life):
            pass
    return due


def _is_due(path: Path) -> bool:
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return True
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    return datetime.now(UTC) > begins + (ends - begins) / 2


def _made(
    folder: Path,
    services: Sequence[str],
    life: timedelta,
    trust_domain: str,
    names: Sequence[str],
    *,
    new_ca: bool = False,
    drop_old_ca: bool,
) -> list[str]:
    place, told = folder / "ca", list[str]()
    if new_ca:
        # Peers that do not know it yet would refuse what it signs.
        old = Authority.load(place)
        Authority.new().save(place)
        _trust(folder, [Authority.load(place).pem, *_trusted(folder, old.pem)])
        return ["a new authority is trusted beside the old one; bring ca.crt to every service, then make certificates"]
    authority = Authority.load(place)
    if drop_old_ca:
        certificates = [folder / service / "tls.crt" for service in IDENTITIES]
        former = [path for path in certificates if path.exists() and not authority.issued(path)]
        if former:
            raise StartupError(
                f"{former[0]} is of the old authority: nobody would take it any more",
                advice="make certificates of the new one first, and bring them to every service",
            )
        _trust(folder, [authority.pem])
        return [*told, "only the present authority is trusted; bring ca.crt to every service"]
    _trust(folder, _trusted(folder, authority.pem))
    for service in services:
        write_certificate(folder / service, *authority.issue(service, trust_domain, names=names, life=life))
        told.append(f"{service}: good for {life.total_seconds() / 86_400:g} days")
    # Folders that are new have no bundle yet.
    _trust(folder, _trusted(folder, authority.pem))
    return told


def _trusted(folder: Path, present: bytes) -> list[bytes]:
    """The authorities in the bundle, the present one among them."""
    path = folder / "ca" / "bundle.crt"
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return [present]
    from cryptography.hazmat.primitives.serialization import Encoding

    known = [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
    return known if present in known else [present, *known]


def _trust(folder: Path, authorities: list[bytes]) -> None:
    write_public(folder / "ca" / "bundle.crt", b"".join(authorities))
    for service in IDENTITIES:
        if (folder / service).is_dir():
            write_bundle(folder / service, authorities)
