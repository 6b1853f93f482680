"""The bridge's settings: read once at the start, frozen. Environment names begin with ``CARREL_BRIDGE_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from servicekit.settings import ListenAddress, Section, SharedSettings
from services.bridge.domain.hub import HubOptions
from services.bridge.domain.integration import RecoveryOptions
from services.bridge.models import Retention

__all__ = ["BridgeSettings", "LogSettings", "RetentionSettings"]


class LogSettings(Section):
    """The SQLite file with the users' event logs."""

    path: Path | None = Field(None, description="the file; bridge/events.db in the state folder when not set")
    synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="NORMAL survives the death of the process, FULL also a power failure, and costs a flush"
    )
    readers: int = Field(2, ge=1, le=64, description="threads that read")
    max_queued_bytes: int = Field(64 << 20, ge=1 << 20, description="what may wait to be written")


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
    recovery_max_attempts: int = Field(3, ge=1, description="recoveries before the state is FAILED")
    recovery_base_delay_s: float = Field(1.0, gt=0, description="delay of the first recovery; each next one doubles it")
    probe_interval_s: float = Field(5.0, gt=0, description="how often a working log is probed")
    failed_probe_interval_s: float = Field(30.0, gt=0, description="how often a failed log is probed")
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
