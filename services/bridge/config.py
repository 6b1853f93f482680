"""The bridge's settings: read once at the start, frozen. Environment names begin with ``CARREL_BRIDGE_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from servicekit.sealing_settings import EncryptionSettings
from servicekit.settings import ListenAddress, Section, SharedSettings
from services.bridge.config_redis import RedisUrl
from services.bridge.domain.hub import HubOptions
from services.bridge.domain.integration import RecoveryOptions
from services.bridge.models import Retention

__all__ = ["BridgeSettings", "LogSettings", "RetentionSettings"]


class LogSettings(Section):
    """Where the users' event logs are: a SQLite file for one bridge, or Redis for several."""

    path: Path | None = Field(None, description="the file; bridge/events.db in the state folder when not set")
    synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="NORMAL survives the death of the process, FULL also a power failure, and costs a flush"
    )
    readers: int = Field(2, ge=1, le=64, description="threads that read")
    max_queued_bytes: int = Field(64 << 20, ge=1 << 20, description="what may wait to be written")
    url: RedisUrl | None = Field(
        None,
        description="Redis instead of a file: redis://host:port/db, redis+sentinel://h1:p1,h2:p2/service[/db] or "
        "redis+cluster://h1:p1,h2:p2 (rediss… for TLS)",
    )
    password_file: Path | None = Field(None, description="file with Redis's password, instead of one in the URL")
    ca_file: Path | None = Field(
        None, description="PEM file of who signs Redis's certificate; the system's when not set"
    )
    prefix: str = Field(
        "carrel",
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="what the names of Redis's keys and channels begin with",
    )
    timeout_s: float = Field(3.0, gt=0, le=60, description="longest silence of Redis while an answer is awaited")
    min_replicas: int = Field(
        0, ge=0, le=16, description="Redis replicas that must have a run's terminal event before it is acknowledged"
    )
    min_replicas_timeout_s: float = Field(1.0, gt=0, le=60, description="how long they may take")

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        if self.url is None:
            named = {"password_file": self.password_file, "ca_file": self.ca_file, "min_replicas": self.min_replicas}
            for name, value in named.items():
                if value:
                    raise ValueError(f"CARREL_BRIDGE_LOG__{name.upper()} is for Redis: set CARREL_BRIDGE_LOG__URL too")
            return self
        if self.path is not None:
            raise ValueError("CARREL_BRIDGE_LOG__PATH and CARREL_BRIDGE_LOG__URL name two logs: set one of them")
        if self.password_file is not None and self.url.password:
            raise ValueError(
                "CARREL_BRIDGE_LOG__URL and CARREL_BRIDGE_LOG__PASSWORD_FILE both hold a password: use one"
            )
        if self.ca_file is not None and not self.url.tls:
            raise ValueError("CARREL_BRIDGE_LOG__CA_FILE is for TLS: write rediss in CARREL_BRIDGE_LOG__URL")
        return self


class RetentionSettings(Section):
    """How much of each user's log is kept. Times are seconds."""

    max_entries: int = Field(10_000, ge=1, description="entries per user")
    max_age_s: float = Field(86_400.0, gt=0, description="age of an entry")
    producer_ttl_s: float = Field(3_600.0, gt=0, description="how long a producer is known past its run's end")
    idle_ttl_s: float = Field(7 * 86_400.0, gt=0, description="when an unended run or an empty log is forgotten")


class BridgeSettings(SharedSettings):
    """Everything that the bridge can be told."""

    listen: ListenAddress = Field("127.0.0.1:50054", description="host:port to listen on; port 0 is any free one")
    log: LogSettings = Field(default_factory=LogSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    encryption: EncryptionSettings = Field(default_factory=EncryptionSettings)
    recovery_max_attempts: int = Field(3, ge=1, description="recoveries before the state is FAILED")
    recovery_base_delay_s: float = Field(1.0, gt=0, description="delay of the first recovery; each next one doubles it")
    probe_interval_s: float = Field(5.0, gt=0, description="how often a working log is probed")
    failed_probe_interval_s: float = Field(
        30.0, gt=0, description="how often a failed log is probed; one that is reached anew, at once"
    )
    gateway_queue_bytes: int = Field(8 << 20, ge=64 << 10, description="what is queued for one gateway")

    @property
    def log_path(self) -> Path:
        """The log's file."""
        return self.log.path or self.state_dir / "bridge" / "events.db"

    def retention_bounds(self) -> Retention:
        """How much is kept."""
        return Retention(**self.retention.model_dump())

    def hub_options(self) -> HubOptions:
        """Bounds of the fan-out."""
        return HubOptions(queue_bytes=self.gateway_queue_bytes)

    def recovery_options(self) -> RecoveryOptions:
        """How the bridge recovers."""
        return RecoveryOptions(
            max_attempts=self.recovery_max_attempts,
            base_delay_s=self.recovery_base_delay_s,
            active_probe_s=self.probe_interval_s,
            failed_probe_s=self.failed_probe_interval_s,
        )
