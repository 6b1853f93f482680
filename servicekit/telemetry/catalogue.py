"""Every metric there is: name, kind, unit, labels, what it says, the design documents' name, the services that have it.

The one list: a metric that is not here cannot be registered (``meters``), docs/metrics.md is made of it, and dashboards
and alerts are tested against it. No label has a user, a run, a thread or anything else that grows without bound.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from servicekit.telemetry.catalogue_entries import ENTRIES

__all__ = ["CATALOGUE", "SERVICES", "Kind", "Metric", "metrics_of"]

SERVICES: Final = ("gateway", "execution", "agent_instance", "emitter", "bridge")
_GROUPS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"all": SERVICES, "grpc": SERVICES[1:], **{service: (service,) for service in SERVICES}}
)
_UNITS: Final = ("seconds", "milliseconds", "bytes")


class Kind(enum.Enum):
    """What a metric's numbers mean."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: As Prometheus shows it; a counter ends with ``_total``.
        kind: Counter, gauge or histogram.
        help: One sentence.
        labels: Names of its labels; each has a bounded number of values.
        services: Who has it.
        documents: Its name in the design documents; empty where they have none.
        topic: The heading it stands under.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    services: tuple[str, ...]
    documents: str
    topic: str

    @property
    def family(self) -> str:
        """The name without a counter's ending, as OpenMetrics wants it."""
        return self.name.removesuffix("_total") if self.kind is Kind.COUNTER else self.name

    @property
    def unit(self) -> str:
        """``seconds``, ``milliseconds``, ``bytes``, or empty for counts."""
        return next((unit for unit in _UNITS if self.family.endswith(f"_{unit}")), "")

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which it can be asked for."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _catalogue() -> Mapping[str, Metric]:
    found: dict[str, Metric] = {}
    for topic, rows in ENTRIES.items():
        for row in rows:
            head, services, text, *rest = row
            kind_name, _, name = head.partition(" ")
            name, _, labels = name.partition("{")
            kind = Kind(kind_name)
            if name in found:
                raise ValueError(f"the metric {name} stands twice in the catalogue")
            if (kind is Kind.COUNTER) != name.endswith("_total"):
                raise ValueError(f"the metric {name}: counters, and only they, end with _total")
            known = tuple(service for group in services.split() for service in _GROUPS[group])
            names = tuple(label for label in labels.rstrip("}").split(",") if label)
            found[name] = Metric(name, kind, text, names, known, rest[0] if rest else "", topic)
    return MappingProxyType(found)


CATALOGUE: Final = _catalogue()


def metrics_of(service: str) -> tuple[Metric, ...]:
    """What a service has to give."""
    return tuple(metric for metric in CATALOGUE.values() if service in metric.services)
