"""The metrics of one service: what collects them and where they go. Loaded only when telemetry is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servicekit.telemetry.meters import NO_METERS, Meters
from servicekit.telemetry.runtime import SpanCounts
from servicekit.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource

__all__ = ["MetricsRuntime", "start_metrics"]


class MetricsRuntime:
    """Metrics that are being collected."""

    meters: Meters = NO_METERS
    address: str = ""

    async def aclose(self) -> None:
        """Send what is left, within a bounded time, and stop."""


async def start_metrics(
    settings: TelemetrySettings,
    resource: Resource,
    *,
    listen: str,
    spans: SpanCounts,
    reader: MetricReader | None = None,
) -> MetricsRuntime:
    """Start collecting.

    Args:
        settings: Where to.
        resource: What the service is.
        listen: ``host:port`` of the Prometheus endpoint; "" for none.
        spans: Counts of spans, which are metrics too.
        reader: A further reader, for tests.

    Raises:
        StartupError: The address can't be listened on.
    """
    return MetricsRuntime()
