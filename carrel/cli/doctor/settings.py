"""Settings of ``carrel doctor``: ``CARREL_DOCTOR_<FIELD>``, beside the shared ones. The command's options go before."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from servicekit.settings import SharedSettings

__all__ = ["DoctorSettings"]


class DoctorSettings(SharedSettings):
    """What a Job is told by its environment. Durations are seconds."""

    url: str = Field("", description="the gateway; several separated by commas. That of the state folder when not set")
    token_file: Path | None = Field(
        None, description="file with a service's token that has carrel:doctor, and operator:read to read counts"
    )
    user_token_files: tuple[Path, ...] = Field(
        (), description="two files with tokens of two test users that have carrel:doctor, in place of token_file"
    )
    execution: str = Field("", description="host:port of execution, or several; a name stands for all its copies")
    agent_instance: str = Field("", description="the same for agent_instance")
    emitter: str = Field("", description="the same for the emitter")
    bridge: str = Field("", description="the same for the bridge")
    max_engines: int = Field(
        2, ge=1, le=16, description="the test users' max_engines_per_user, where user_token_files are used"
    )
    timeout: float = Field(120.0, ge=10, le=600, description="seconds that all checks together may take")

    @model_validator(mode="after")
    def _encrypted_in_production(self) -> Self:
        # The gateway alone is asked over its own, public address.
        if any((self.execution, self.agent_instance, self.emitter, self.bridge)):
            self.check_encryption()
        return self
