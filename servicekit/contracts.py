"""Contracts with names: what each phase of a start needs and gives, and what each layer of the chain promises.

Stated once, as data that docs and ``carrel doctor`` can print, and checked where a clause says how. Not a type system.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from carrel.errors import CarrelError, InternalError, InvalidRequestError

__all__ = ["PHASES", "AppStateContract", "Clause", "FactoryLayerContract", "Phase"]


# Timings kept of each operation.
_LATEST: Final = 1000


class Phase(enum.Enum):
    """The phases of a start, in their order."""

    INITIALIZATION = 1
    CONFIGURATION = 2
    INTEGRATION = 3
    READINESS = 4


@dataclass(frozen=True, slots=True)
class AppStateContract:
    """What a phase needs to begin and what holds after it."""

    phase: Phase
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    advice: str


PHASES: Final[Mapping[Phase, AppStateContract]] = MappingProxyType(
    {
        contract.phase: contract
        for contract in (
            AppStateContract(
                Phase.INITIALIZATION,
                needs=("CPython 3.11 to 3.13 on Linux", "an event loop of uvloop"),
                gives=("signals are handled", "logs are written"),
                advice="run `make setup` with a supported Python",
            ),
            AppStateContract(
                Phase.CONFIGURATION,
                needs=("settings that are all known and valid", "the key files that they name"),
                gives=("settings are read once and frozen", "tickets can be verified"),
                advice="set what is named above; `carrel config` prints the settings in effect",
            ),
            AppStateContract(
                Phase.INTEGRATION,
                needs=("the stores of this service", "every service downstream"),
                gives=("stores are open and migrated", "downstream services answer"),
                advice="start what is missing, or correct its address",
            ),
            AppStateContract(
                Phase.READINESS,
                needs=("a free address to listen on",),
                gives=("the service answers calls", "health says what its readiness checks say"),
                advice="free the address or set another one",
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One sentence of a contract; ``holds`` decides it for a value, when it can be decided by a function."""

    text: str
    holds: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class FactoryLayerContract:
    """What one layer of the factory chain asks for, gives, may raise, and how quick it is.

    Args:
        name: The layer: ``gateway``, or as in the metrics' breakdown ``execution_engine``, ``agent_instance``,
            ``websocket_emitter``, ``bridge_integration``.
        input_requirements: What a caller must bring.
        output_guarantees: What holds for a result.
        error_conditions: The errors that a caller has to expect.
        performance_bounds: Operation → milliseconds it should stay under.
    """

    name: str
    input_requirements: tuple[Clause, ...]
    output_guarantees: tuple[Clause, ...]
    error_conditions: tuple[type[CarrelError], ...]
    performance_bounds: Mapping[str, float]
    exceeded: dict[str, int] = field(default_factory=dict, compare=False, repr=False)
    measured: dict[str, int] = field(default_factory=dict, compare=False, repr=False)
    _latest: dict[str, deque[float]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.input_requirements and self.output_guarantees and self.performance_bounds):
            raise ValueError(f"the contract {self.name} leaves a part empty")

    def check_input(self, value: object) -> None:
        """Raises:
        InvalidRequestError: A requirement does not hold.
        """
        for clause in _broken(self.input_requirements, value):
            raise InvalidRequestError(f"{self.name} requires: {clause.text}", layer=self.name)

    def check_output(self, value: object) -> None:
        """Raises:
        InternalError: A guarantee does not hold.
        """
        for clause in _broken(self.output_guarantees, value):
            raise InternalError(f"{self.name} broke its guarantee: {clause.text}", layer=self.name)

    @contextmanager
    def timed(self, operation: str, took: Callable[[float], None] | None = None) -> Iterator[None]:
        """Measure an operation: ``took(milliseconds)`` is told, and ``exceeded`` counts those over their bound.

        Raises:
            KeyError: The contract has no bound for the operation.
        """
        bound = self.performance_bounds[operation]
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = (time.perf_counter() - began) * 1000
            self.measured[operation] = self.measured.get(operation, 0) + 1
            self._latest.setdefault(operation, deque(maxlen=_LATEST)).append(elapsed)
            if elapsed > bound:
                self.exceeded[operation] = self.exceeded.get(operation, 0) + 1
            if took is not None:
                took(elapsed)

    def percentile(self, operation: str, share: float) -> float:
        """Milliseconds below which ``share`` of the latest thousand of an operation lie; 0 when there were none."""
        ordered = sorted(self._latest.get(operation, ()))
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What it says, and how its bounds were kept in this process, as JSON values."""
        return {
            "name": self.name,
            "input_requirements": [clause.text for clause in self.input_requirements],
            "output_guarantees": [clause.text for clause in self.output_guarantees],
            "error_conditions": [error.code for error in self.error_conditions],
            "performance_bounds_ms": dict(self.performance_bounds),
            "measured": dict(self.measured),
            "exceeded": dict(self.exceeded),
            "p50_ms": {operation: round(self.percentile(operation, 0.5), 3) for operation in self.measured},
            "p95_ms": {operation: round(self.percentile(operation, 0.95), 3) for operation in self.measured},
        }


def _broken(clauses: tuple[Clause, ...], value: object) -> Iterator[Clause]:
    return (clause for clause in clauses if clause.holds is not None and not clause.holds(value))
