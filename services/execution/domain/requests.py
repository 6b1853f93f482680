"""What a caller asks of the factory."""

from __future__ import annotations

from dataclasses import dataclass

from services.execution.models import RunIdentity, ThreadStrategy

__all__ = ["PipelineRequest"]


@dataclass(frozen=True, slots=True)
class PipelineRequest:
    """A run that is asked for. An empty pipeline means the deployment's default agent."""

    identity: RunIdentity
    message: str = ""
    params: bytes = b""
    pipeline: tuple[str, ...] = ()
    strategy: ThreadStrategy = ThreadStrategy.REJECT
    client_ref: str = ""
    engine_id: str = ""
    bound: bool = False
    """Whether the run ends when its caller goes away."""
