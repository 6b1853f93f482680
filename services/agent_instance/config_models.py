"""Settings of the way to language models: ``CARREL_AGENT_INSTANCE_MODELS__<FIELD>``. In seconds and bytes.

Not the users' budgets of tokens: those are execution's, which keeps them in the run store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from carrel.errors import StartupError
from servicekit.settings import Section

__all__ = ["ModelSettings"]

_MAX_KEY_BYTES: Final = 16 * 1024
_P: Final = "CARREL_AGENT_INSTANCE_MODELS__"


class ModelSettings(Section):
    """An OpenAI-compatible endpoint, and what may be asked of it. Without ``base_url`` there is no model."""

    base_url: str = Field("", description="the endpoint, for example http://localhost:11434/v1; empty for no model")
    api_key: SecretStr | None = Field(None, description="the endpoint's key; workers never get it")
    api_key_file: Path | None = Field(None, description="file that holds the key instead")
    default: str = Field("", max_length=128, description="the model asked when a call names none")
    allowed: tuple[str, ...] = Field((), description="models that may be asked beside the default; * for any")
    timeout: float = Field(120.0, gt=0, le=3600, description="seconds one call may take, retries included")
    silence: float = Field(60.0, gt=0, le=3600, description="seconds the endpoint may say nothing in the middle")
    connect: float = Field(5.0, gt=0, le=60, description="seconds for a connection to it")
    retries: int = Field(2, ge=0, le=10, description="how often a failed call is sent again before it has answered")
    max_output_tokens: int = Field(4096, ge=1, le=10_000_000, description="the most tokens of one answer")
    output_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="the endpoint's name for that bound"
    )
    max_request_bytes: int = Field(1024 * 1024, ge=1024, le=8 * 1024 * 1024, description="largest request")
    max_answer_bytes: int = Field(512 * 1024, ge=1024, le=900 * 1024, description="largest answer of ctx.llm")
    max_proxied_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="largest answer through the local proxy")
    concurrency_per_user: int = Field(
        4, ge=1, le=1000, description="calls of one user at once here; execution's limit holds too, the smaller counts"
    )
    max_waiting_per_user: int = Field(50, ge=0, le=10_000, description="calls of one user that may wait for their turn")
    wait: float = Field(60.0, gt=0, le=3600, description="seconds a call may wait for its turn")
    proxy: bool = Field(True, description="give workers a local OPENAI_BASE_URL with a key of the run's own")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.configured:
            if self.api_key or self.api_key_file or self.default or self.allowed:
                raise ValueError(f"{_P}BASE_URL is missing: set it, or no other of {_P}*")
            return self
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"{_P}BASE_URL must begin with http:// or https://, for example http://localhost:11434/v1")
        if not self.default:
            raise ValueError(f"{_P}DEFAULT is missing: name the model that is asked when a call names none")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError(f"{_P}API_KEY and {_P}API_KEY_FILE both give the key: set one of them")
        return self

    @property
    def configured(self) -> bool:
        """Whether there is a model at all."""
        return bool(self.base_url)

    def read_key(self) -> str:
        """The endpoint's key; a placeholder for an endpoint that wants none.

        Raises:
            StartupError: The file that should hold it cannot be read, or is empty.
        """
        if self.api_key_file is None:
            return self.api_key.get_secret_value() if self.api_key is not None else "none"
        try:
            key = self.api_key_file.read_text(encoding="utf-8")[:_MAX_KEY_BYTES].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_key(self.api_key_file, f"cannot be read ({type(error).__name__})") from error
        if not key:
            raise _no_key(self.api_key_file, "is empty")
        return key


def _no_key(path: Path, problem: str) -> StartupError:
    return StartupError(
        f"the file with the model endpoint's key {problem}: {path}",
        advice="put the key into it, or correct CARREL_AGENT_INSTANCE_MODELS__API_KEY_FILE",
        phase="CONFIGURATION",
        what="the model endpoint's key",
    )
