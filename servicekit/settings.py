"""Settings: read once from the environment into frozen objects; every wrong or unknown one is reported at once.

A shared field is ``CARREL_<FIELD>``; a service's own is ``CARREL_<SERVICE>_<FIELD>``; parts of a sub-model follow after
``__``. A field may have a second name that the design documents use (``alias_env``). An empty value counts as not set;
a list is written with commas or as JSON. No settings file, and no reading anywhere else than at the start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, model_validator

from servicekit.addresses import ListenAddress, PeerAddress, TcpListenAddress
from servicekit.section import Section
from servicekit.telemetry.settings import TelemetrySettings
from servicekit.tls.settings import TlsSettings

__all__ = [
    "DOCUMENTS_NAMES",
    "SERVICES",
    "ListenAddress",
    "PeerAddress",
    "Section",
    "SharedSettings",
    "TcpListenAddress",
    "alias_env",
    "load_settings",
]

# A process leaves the names of the others alone. From CLI on they are no services but have names of their own.
SERVICES: Final = (
    *("EXECUTION", "AGENT_INSTANCE", "EMITTER", "BRIDGE", "GATEWAY"),
    *("CLI", "UP", "DOCTOR", "OPERATOR", "TEST"),
)

# The documents' names that share a prefix with other programs' variables. One that is nearly one of these is a mistake;
# any other is somebody else's. No process reads all of them, and none reads WEBSOCKET_ENABLE_COMPRESSION: batches are
# not compressed in this release.
DOCUMENTS_NAMES: Final = (
    "WEBSOCKET_MAX_EVENTS_PER_USER",
    "WEBSOCKET_EVENT_TIMEOUT",
    "WEBSOCKET_HEARTBEAT_INTERVAL",
    "WEBSOCKET_MAX_RECONNECT_ATTEMPTS",
    "WEBSOCKET_DELIVERY_RETRIES",
    "WEBSOCKET_DELIVERY_TIMEOUT",
    "WEBSOCKET_ENABLE_COMPRESSION",
    "WEBSOCKET_ENABLE_BATCHING",
)


class alias_env:  # noqa: N801 -- reads as a mark on a field: Annotated[int, alias_env("WEBSOCKET_DELIVERY_RETRIES")]
    """Marks a field with the name that the design documents give it; both names are read."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _keys_of(values: dict[str, Any]) -> Path:
    return Path(values.get("state_dir", ".carrel")) / "keys" / "tickets.jwks.json"


class SharedSettings(Section):
    """What every service has. Durations are seconds, sizes are bytes."""

    environment: Literal["development", "production"] = Field(
        "development", description="production refuses development conveniences (reflection, made-up secrets)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or lines for a terminal")
    state_dir: Path = Field(Path(".carrel"), description="folder for keys and embedded stores, mode 0700")
    ticket_jwks: Path = Field(
        default_factory=_keys_of, description="JWKS file with the public keys of all who mint tickets"
    )
    drain_seconds: float = Field(10.0, ge=0, le=3600, description="how long open calls may take to end on SIGTERM")
    close_seconds: float = Field(
        5.0, gt=0, le=600, description="how long stores may take to close after that, before the process is cut off"
    )
    downstream_wait_seconds: float = Field(
        10.0, gt=0, le=600, description="how long a start waits for the services downstream"
    )
    features_file: Path | None = Field(
        None, description="JSON file of feature switches, followed for changes; see docs/upgrades.md"
    )
    features: dict[str, bool] = Field(
        default_factory=dict, description="feature switches by name, as JSON; the file goes before them"
    )
    ready_file: Path | None = Field(None, description="file that gets the actual address once the service is ready")
    ready_fd: int | None = Field(None, ge=3, description="file descriptor that gets the same")
    max_concurrent_calls: Annotated[int, Field(ge=1, description="calls served at once, health checks not counted")] = (
        10_000
    )
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=64 * 1024, description="largest gRPC message")
    max_connection_age_seconds: float | None = Field(
        None, gt=0, description="age at which a gRPC connection is renewed, so that clients see new replicas"
    )
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings, description="traces and metrics")

    tls: TlsSettings = Field(default_factory=TlsSettings)

    @model_validator(mode="after")
    def _encrypted_in_production(self) -> Self:
        self.check_encryption()
        return self

    def check_encryption(self) -> None:
        """Raises:
        ValueError: This is production, and nothing says how calls between the services are encrypted.
        """
        if self.production and self.tls.mode == "auto" and not self.tls.enabled:
            raise ValueError(
                "production needs TLS between the services: set CARREL_TLS__CERT, CARREL_TLS__KEY and CARREL_TLS__CA,"
                " or CARREL_TLS__MODE=mesh where another layer encrypts and authenticates"
            )

    @property
    def production(self) -> bool:
        """Whether this is a production deployment."""
        return self.environment == "production"


S = TypeVar("S", bound=SharedSettings)


def load_settings(cls: type[S], service: str, environ: Mapping[str, str] | None = None) -> S:
    """The settings of a service from the environment.

    Args:
        cls: Its settings class.
        service: Its name as in SERVICES, in any case.
        environ: Names and values; ``os.environ`` when None.

    Raises:
        StartupError: One or more names are unknown or values wrong; it lists all of them, with what to write instead.
    """
    from servicekit.settings_env import read_environment

    return read_environment(cls, service, os.environ if environ is None else environ)
