"""What the domain needs of a model's endpoint, and what may be asked of it. Implemented by ``client_model``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from carrel.errors import ModelRefusedError

__all__ = ["EndpointAnswer", "ModelEndpoint", "ModelPolicy"]


class EndpointAnswer(Protocol):
    """An answer that has begun."""

    @property
    def content_type(self) -> str:
        """Its media type, without parameters."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they come.

        Raises:
            ModelUnavailableError: It broke off.
        """
        ...


class ModelEndpoint(Protocol):
    """An OpenAI-compatible endpoint."""

    def open(self, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[EndpointAnswer]:
        """Send a request to ``<base_url>/<path>``; leaving the block aborts what has not come yet.

        Raises (on entering):
            ModelRefusedError: The endpoint refused it.
            ModelUnavailableError: It is away, overloaded or broken, after all retries.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """What may be asked, and how long and how large. Times are seconds, sizes bytes."""

    default: str
    allowed: frozenset[str] = frozenset()
    max_output_tokens: int = 4096
    output_limit_field: str = "max_completion_tokens"
    max_request_bytes: int = 1024 * 1024
    max_answer_bytes: int = 512 * 1024
    max_proxied_bytes: int = 8 * 1024 * 1024
    timeout_s: float = 120.0
    wait_s: float = 60.0
    concurrency_per_user: int = 4
    max_waiting_per_user: int = 50

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be named, the default first."""
        return (self.default, *sorted(self.allowed - {self.default, "*"}))

    def permits(self, model: str) -> bool:
        """Whether this model may be asked."""
        return model == self.default or model in self.allowed or "*" in self.allowed

    def choose(self, wanted: object) -> str:
        """The model to ask when a call wants this one (None for the default).

        Raises:
            ModelRefusedError: It is none that may be asked.
        """
        if wanted is None:
            return self.default
        if isinstance(wanted, str) and wanted.isprintable() and 0 < len(wanted) <= 128 and self.permits(wanted):
            return wanted
        shown = wanted[:64] if isinstance(wanted, str) else type(wanted).__name__
        raise ModelRefusedError(
            f"the model {shown!r} may not be asked here",
            advice=f"leave the model out, or use one of {', '.join(self.names)}",
            model=shown,
        )
