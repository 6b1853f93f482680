"""Counts of tool and model calls since the start, and how long they took. Plain numbers, which others show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from servicekit.telemetry.buckets import LONG_S, Buckets

__all__ = ["ModelStatistics", "ToolStatistics"]

# Names that an endpoint's users choose are as many as they like.
_MAX_MODELS: Final = 50
_OTHER: Final = "other"


@dataclass(slots=True)
class ToolStatistics:
    """Calls by how they ended (succeeded, failed, denied); seconds of those whose body ran."""

    ended: Counter[str] = field(default_factory=Counter)
    seconds: Buckets = field(default_factory=lambda: Buckets(LONG_S))


@dataclass(slots=True)
class ModelStatistics:
    """Calls by model and outcome, tokens by model and direction (input, output), seconds with the wait for a turn."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Buckets = field(default_factory=lambda: Buckets(LONG_S))
    _models: set[str] = field(default_factory=set)

    def call_ended(self, model: str, outcome: str, seconds: float) -> None:
        """A call has ended, however."""
        self.ended[self._name(model), outcome] += 1
        self.seconds.add(seconds)

    def used(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """A call has used so many tokens."""
        name = self._name(model)
        self.tokens[name, "input"] += input_tokens
        self.tokens[name, "output"] += output_tokens

    def _name(self, model: str) -> str:
        if model not in self._models:
            if len(self._models) >= _MAX_MODELS:
                return _OTHER
            self._models.add(model)
        return model
