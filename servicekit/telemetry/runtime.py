"""What a service is handed of telemetry. Nothing here needs OpenTelemetry, and the default does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from servicekit.telemetry.meters import NO_METERS, Meters
from servicekit.telemetry.tracing import NO_TRACING, Tracing

__all__ = ["TELEMETRY_OFF", "Runtime", "SpanCounts"]


@dataclass(slots=True)
class SpanCounts:
    """What became of the spans of kept traces; read from other threads, so a look may be a little old.

    ``dropped`` found the queue full, ``failed`` a collector that did not take them; ``passed_over`` are spans of events
    on their way that were never made, since there were too many.
    """

    ended: int = 0
    dropped: int = 0
    exported: int = 0
    failed: int = 0
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class Runtime:
    """The telemetry of one service."""

    tracing: Tracing = NO_TRACING
    meters: Meters = NO_METERS
    # Where the Prometheus endpoint listens; "" for none.
    metrics_address: str = ""


TELEMETRY_OFF: Final = Runtime()
