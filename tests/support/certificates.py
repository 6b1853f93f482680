"""Certificates for tests: an authority for the whole process, and a folder per service as a deployment has it."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path

from carrel.cli.authority import Authority, write_bundle, write_certificate
from servicekit.settings import SharedSettings
from servicekit.tls.peers import Tls
from servicekit.tls.settings import TlsSettings

DOMAIN = "carrel.internal"


@cache
def authority() -> Authority:
    """The authority that both sides trust unless told otherwise."""
    return Authority.new("test CA")


def certificate_for(
    folder: Path,
    service: str,
    *,
    signed_by: Authority | None = None,
    trusts: tuple[Authority, ...] = (),
    life: timedelta = timedelta(hours=1),
    spiffe: str | None = None,
) -> TlsSettings:
    """Write ``tls.crt``, ``tls.key`` and ``ca.crt`` into the folder; the settings that name them."""
    signer = signed_by or authority()
    write_bundle(folder, [one.pem for one in (trusts or (signer,))])
    write_certificate(folder, *signer.issue(service, DOMAIN, life=life, spiffe=spiffe))
    return TlsSettings(cert=folder / "tls.crt", key=folder / "tls.key", ca=folder / "ca.crt")


def tls_of(settings: TlsSettings, service: str = "") -> Tls:
    """A process's TLS."""
    return Tls.of(SharedSettings(tls=settings), service)
