"""The metrics of one process: what reads them, and where they go. Loaded only when telemetry is on.

One ``Meters`` for the endpoint and for the push: what one of them shows, the other shows too.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from servicekit.telemetry.meters import Meters
from servicekit.telemetry.otlp_metrics import push_metrics
from servicekit.telemetry.process import observe_process
from servicekit.telemetry.prometheus import serve_metrics
from servicekit.telemetry.runtime import SpanCounts
from servicekit.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource

__all__ = ["MetricsRuntime", "start_metrics"]

_EXPORT_S: Final = 5.0


class MetricsRuntime:
    """Metrics that can be read. ``address`` is the endpoint's ``host:port``; "" for none."""

    def __init__(self, meters: Meters, stack: AsyncExitStack, address: str) -> None:
        self.meters = meters
        self.address = address
        self._stack = stack

    async def aclose(self) -> None:
        """Send what is left, within a bounded time, and stop. Idempotent."""
        await self._stack.aclose()


async def start_metrics(
    settings: TelemetrySettings,
    resource: Resource,
    *,
    service: str,
    listen: str,
    spans: SpanCounts,
    exporter: MetricExporter | None = None,
) -> MetricsRuntime:
    """Begin to serve and to push.

    Args:
        settings: Where to.
        resource: What the service is.
        service: Its name in the catalogue.
        listen: ``host:port`` of the Prometheus endpoint; "" for none.
        spans: Counts of spans, which are metrics too.
        exporter: Gets what is pushed, instead of the settings' collector; for tests.

    Raises:
        StartupError: The address can't be listened on.
    """
    meters = Meters(service)
    observe_process(meters)
    meters.read(
        "carrel_spans_total",
        lambda: {"exported": spans.exported, "dropped": spans.dropped, "failed": spans.failed},
    )
    async with AsyncExitStack() as stack:
        address = (await stack.enter_async_context(serve_metrics(meters, listen))).address if listen else ""
        chosen = exporter or _collector(settings)
        if chosen is not None:
            await stack.enter_async_context(push_metrics(meters, chosen, resource))
        return MetricsRuntime(meters, stack.pop_all(), address)


def _collector(settings: TelemetrySettings) -> MetricExporter | None:
    if settings.otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    from servicekit.telemetry.collector import collector_session

    return OTLPMetricExporter(
        f"{settings.otlp_endpoint}/v1/metrics",
        timeout=_EXPORT_S,
        compression=Compression.Gzip,
        session=collector_session(),
    )
