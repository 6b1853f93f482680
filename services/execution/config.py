"""execution's settings: ``CARREL_EXECUTION_<FIELD>``, and the design documents' own names where they have one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from servicekit.sealing_settings import EncryptionSettings
from servicekit.settings import ListenAddress, PeerAddress, SharedSettings, alias_env
from services.execution.config_store import PostgresAddress, StoreUrl, postgres_name
from services.execution.domain.admission import UserLimits
from services.execution.domain.limits import MemoryLimits, ModelLimits, RateLimits
from services.execution.domain.services import RunOptions
from services.execution.domain.uploads import ArtifactLimits

__all__ = ["ExecutionSettings"]

_MIB: Final = 1024 * 1024


def _key_of(values: dict[str, Any]) -> Path:
    return Path(values["state_dir"]) / "keys" / "execution.jwk.json"


def _data_of(values: dict[str, Any]) -> Path:
    return Path(values["state_dir"]) / "execution"


class ExecutionSettings(SharedSettings):
    """What the execution service can be told. Durations are seconds, sizes are bytes."""

    listen: ListenAddress = Field("127.0.0.1:50051", description="host:port that is served")
    agent_instance: PeerAddress = Field("127.0.0.1:50052", description="host:port of agent_instance")
    emitter: PeerAddress = Field("127.0.0.1:50053", description="host:port of the emitter")
    bridge: PeerAddress = Field("127.0.0.1:50054", description="host:port of the bridge, where watchers' events are")
    ticket_key: Path = Field(default_factory=_key_of, description="private key that signs the tickets of runs")
    data_dir: Path = Field(default_factory=_data_of, description="folder of the run store and the artifacts")
    synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="FULL survives a power failure too, at an fsync for each commit"
    )
    store_url: StoreUrl | None = Field(
        None,
        description="PostgreSQL database for the run store and the artifacts, postgresql://user@host:port/database; "
        "several execution processes may share it. Not set: a file in data_dir, for one process",
    )
    store_password_file: Path | None = Field(
        None, description="file with the password of store_url's user; read for each new connection"
    )
    store_connections: int = Field(10, ge=2, le=200, description="connections of this process to store_url, at most")
    store_connect_seconds: float = Field(5.0, gt=0, description="how long a new connection to store_url may take")
    store_statement_seconds: float = Field(10.0, gt=0, description="how long one statement may take at store_url")
    store_lock_seconds: float = Field(5.0, gt=0, description="how long it may wait there for others' locks")
    encryption: EncryptionSettings = Field(default_factory=EncryptionSettings)
    migrate: bool | None = Field(
        None, description="migrate an older run store at the start; by default outside production only"
    )
    default_agent: str = Field("supervisor", min_length=1, description="agent of a request that names none")
    max_engines_per_user: Annotated[
        int, Field(ge=1, description="runs of one user that are under way at once"), alias_env("MAX_ENGINES_PER_USER")
    ] = 2
    max_unended_runs_per_user: Annotated[
        int, Field(ge=1, description="runs of one user that have not ended: under way, queued or waiting for a person")
    ] = 5
    runs_per_minute_per_user: float = Field(600.0, ge=0, description="runs that a user may begin; 0 for no such limit")
    runs_burst_per_user: int = Field(100, ge=1, description="runs that a user may begin at once after a quiet time")
    max_active_runs: int = Field(500, ge=1, description="runs of all users that hold an engine")
    max_unended_runs: int = Field(10_000, ge=1, description="runs of all users that have not ended")
    max_attempts: int = Field(3, ge=1, description="tries of a stage whose worker or agent_instance is lost")
    input_timeout_seconds: float = Field(86_400.0, gt=0, description="how long a run waits for a person's answer")
    model_tokens_per_user: int = Field(2_000_000, ge=0, description="tokens of models that a user may use in a period")
    model_budget_period_seconds: float = Field(
        86_400.0, ge=1, description="after which a user's tokens are whole again"
    )
    model_concurrency_per_user: int = Field(4, ge=1, description="calls of models that a user may have at once")
    engine_timeout_seconds: Annotated[
        float,
        Field(gt=0, description="how long a run may take while it is under way"),
        alias_env("ENGINE_TIMEOUT_SECONDS"),
    ] = 300.0
    cleanup_interval: Annotated[
        float,
        Field(gt=0, description="how often what has ended or timed out is cleaned up"),
        alias_env("CLEANUP_INTERVAL"),
    ] = 60.0
    lease_seconds: float = Field(
        5.0, ge=1, description="how long a run stays a process's that stopped renewing, which it does every third of it"
    )
    silence_seconds: float = Field(
        15.0, gt=0, description="how long an attempt may give no sign of life before it counts as lost"
    )
    ticket_refresh_seconds: float = Field(300.0, gt=0, description="how often a long attempt gets a fresh ticket")
    cancel_grace_seconds: float = Field(0.5, ge=0, description="how long a cancelled agent may take to end by itself")
    artifact_max_bytes: int = Field(8 * _MIB, ge=1, description="largest artifact")
    artifact_quota_per_user: int = Field(256 * _MIB, ge=1, description="bytes of all artifacts of one user")
    artifacts_per_run: int = Field(200, ge=1, description="artifacts of one run")
    artifact_retention_days: float = Field(30.0, gt=0, description="how long an artifact is kept")
    memory_quota_per_user: int = Field(
        64 * _MIB, ge=1, description="bytes of all that one user's agents keep in threads (ctx.memory)"
    )
    memory_retention_days: float = Field(
        180.0, ge=0, description="how long it stays that was not kept anew since; 0 for ever"
    )
    audit_retention_days: float = Field(0.0, ge=0, description="how long an audit record is kept; 0 for ever")
    history_messages: int = Field(50, ge=0, description="messages of the thread that an agent gets")
    history_bytes: int = Field(65_536, ge=0, description="bytes of them")

    @property
    def migrates(self) -> bool:
        """Whether an older run store is migrated at the start."""
        return not self.production if self.migrate is None else self.migrate

    @property
    def store_path(self) -> Path:
        """The run store's file."""
        return self.data_dir / "runs.sqlite3"

    @property
    def artifacts_path(self) -> Path:
        """The artifacts' folder."""
        return self.data_dir / "artifacts"

    @property
    def store_name(self) -> str:
        """What the stores are, for messages."""
        address = self.store_address()
        return f"the data folder {self.data_dir}" if address is None else f"the database {postgres_name(address.url)}"

    def store_address(self) -> PostgresAddress | None:
        """The database of the run store; None when it is a file."""
        if self.store_url is None:
            return None
        return PostgresAddress(
            self.store_url.get_secret_value(),
            self.store_password_file,
            self.store_connections,
            self.store_connect_seconds,
            self.store_statement_seconds,
            self.store_lock_seconds,
        )

    def run_options(self) -> RunOptions:
        """The part that the domain works with."""
        return RunOptions(
            limits=UserLimits(self.max_engines_per_user, self.max_unended_runs_per_user),
            rates=RateLimits(self.runs_per_minute_per_user, self.runs_burst_per_user),
            models=ModelLimits(
                self.model_tokens_per_user, self.model_concurrency_per_user, self.model_budget_period_seconds
            ),
            max_active_total=self.max_active_runs,
            max_unended_total=self.max_unended_runs,
            max_attempts=self.max_attempts,
            input_timeout_s=self.input_timeout_seconds,
            default_agent=self.default_agent,
            silence_s=self.silence_seconds,
            ticket_refresh_s=self.ticket_refresh_seconds,
            cancel_grace_s=self.cancel_grace_seconds,
            history_messages=self.history_messages,
            history_bytes=self.history_bytes,
            audit_retention_s=self.audit_retention_days * 86_400,
            artifacts=ArtifactLimits(
                self.artifact_max_bytes,
                self.artifact_quota_per_user,
                self.artifact_retention_days * 86_400,
                self.artifacts_per_run,
            ),
            memories=MemoryLimits(self.memory_quota_per_user, self.memory_retention_days * 86_400),
        )
