"""The settings of TLS between services, and the names that a trust domain gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from servicekit.addresses import TcpListenAddress
from servicekit.section import Section

__all__ = ["IDENTITIES", "TlsSettings", "server_name", "spiffe_id"]

# Who may have a certificate: the services, and those who call them. "client" is for internal services.
IDENTITIES: Final = ("gateway", "execution", "agent_instance", "emitter", "bridge", "doctor", "operator", "client")
_DOMAIN: Final = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"


class TlsSettings(Section):
    """Where a process's certificate is. The three files belong together: all of them or none."""

    cert: Path | None = Field(None, description="PEM file with this service's certificate and what leads to the CA")
    key: Path | None = Field(None, description="PEM file with its private key, not readable by everybody")
    ca: Path | None = Field(None, description="PEM file with the CA certificates that peers' are signed by")
    trust_domain: str = Field(
        "carrel.internal",
        pattern=_DOMAIN,
        description="a certificate names its service as spiffe://<this>/<service>, and as DNS name <service>.<this>",
    )
    mode: Literal["auto", "mesh"] = Field(
        "auto",
        description="auto: TLS when there are files, and production refuses to start without; mesh: another layer"
        " encrypts the connections between the services and knows who is at their ends",
    )
    health_listen: TcpListenAddress | None = Field(
        None,
        description="further address, not encrypted, that answers health checks only, for probes without TLS",
    )

    @property
    def enabled(self) -> bool:
        """Whether connections between services are TLS."""
        return self.cert is not None

    @model_validator(mode="after")
    def _all_or_none(self) -> TlsSettings:
        files = {"CARREL_TLS__CERT": self.cert, "CARREL_TLS__KEY": self.key, "CARREL_TLS__CA": self.ca}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            given = ", ".join(name for name in files if name not in missing)
            raise ValueError(f"TLS is half configured: {given} is set, so set {' and '.join(missing)} too, or none")
        if self.mode == "mesh" and not missing:
            raise ValueError(
                "CARREL_TLS__MODE=mesh says that another layer encrypts, and CARREL_TLS__CERT gives a certificate:"
                " leave one of them out"
            )
        return self


def spiffe_id(service: str, trust_domain: str) -> str:
    """The name that a service's certificate carries as URI."""
    return f"spiffe://{trust_domain}/{service}"


def server_name(service: str, trust_domain: str) -> str:
    """The DNS name that a service's certificate carries and that callers insist on, whatever address they dial."""
    return f"{service.replace('_', '-')}.{trust_domain}"
