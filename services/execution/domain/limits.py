"""Limits of one user that no transaction guards with the user's row alone: the rate of runs, models, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MemoryLimits", "ModelLimits", "RateLimits"]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How many runs one user may begin: ``per_minute`` over time, ``burst`` at once after a quiet time."""

    per_minute: float = 600.0
    burst: int = 100

    def claimed(self, limits: Mapping[str, int]) -> RateLimits:
        """These limits with the ticket's own put over them."""
        return RateLimits(
            limits.get("runs_per_minute_per_user", self.per_minute), limits.get("runs_burst_per_user", self.burst)
        )


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What one user may use of models: ``tokens`` in each period, ``concurrency`` calls at once over all runs."""

    tokens: int = 2_000_000
    concurrency: int = 4
    period_s: float = 86_400.0

    def claimed(self, limits: Mapping[str, int]) -> ModelLimits:
        """These limits with the ticket's own put over them; the period is the deployment's."""
        return ModelLimits(
            limits.get("model_tokens_per_user", self.tokens),
            limits.get("model_concurrency_per_user", self.concurrency),
            self.period_s,
        )


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bytes of all that one user's agents keep in threads, and for how long (seconds; 0 for ever) since it was kept."""

    quota: int = 64 * 1024 * 1024
    retention_s: float = 180 * 86_400.0
