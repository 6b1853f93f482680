"""Turns telemetry on for a process, as its settings say, and ends it within a bounded time.

Off, it imports nothing of OpenTelemetry. A collector that is away stops neither the start nor the end.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from carrel.errors import StartupError
from carrel.ids import new_id
from servicekit.logs import get_logger
from servicekit.telemetry.runtime import TELEMETRY_OFF, Runtime, SpanCounts
from servicekit.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["FLUSH_S", "end_s", "telemetry"]

_log = get_logger("servicekit.telemetry")

# What the end of a process may wait for its last spans and metrics, each.
FLUSH_S: Final = 2.0
_EXPORT_S: Final = 5.0


def end_s(settings: TelemetrySettings) -> float:
    """Seconds that the end of telemetry may take, beside the service's own."""
    return 2 * FLUSH_S if settings.enabled else 0.0


@asynccontextmanager
async def telemetry(
    settings: TelemetrySettings,
    service: str,
    *,
    listen: str = "",
    exporter: SpanExporter | None = None,
    pushes: MetricExporter | None = None,
) -> AsyncIterator[Runtime]:
    """The telemetry of a service for the length of the block; ``TELEMETRY_OFF`` when the settings turn it off.

    Args:
        settings: The section ``telemetry``.
        service: Its name, as "agent_instance".
        listen: Where the service listens, from which the Prometheus endpoint's address follows.
        exporter: Gets the spans instead of the collector; for tests.
        pushes: Gets the metrics instead of the collector; for tests.

    Raises:
        StartupError: What telemetry needs is not installed, or the Prometheus endpoint can't listen.
    """
    if not settings.enabled:
        yield TELEMETRY_OFF
        return
    try:
        from servicekit.telemetry.metrics import start_metrics
        from servicekit.telemetry.spans import BoundedSpans, OtelTracing
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    # It tells of every attempt; we tell of what comes of it.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    counts = SpanCounts()
    resource = _resource(service)
    metrics = await start_metrics(
        settings, resource, service=service, listen=settings.metrics_address(listen), spans=counts, exporter=pushes
    )
    chosen = exporter or _collector(settings)
    spans = None if chosen is None else BoundedSpans(chosen, counts)
    try:
        if spans is None:
            yield Runtime(meters=metrics.meters, metrics_address=metrics.address)
        else:
            tracing = OtelTracing(
                resource,
                spans,
                settings.trace_ratio,
                trust_incoming=settings.trust_incoming,
                event_spans_per_s=settings.event_spans_per_second,
                counts=counts,
            )
            yield Runtime(tracing, metrics.meters, metrics.address)
    finally:
        if spans is not None and not await asyncio.to_thread(spans.close, FLUSH_S):
            _log.warning("the last spans are lost: the collector did not take them in time", within_s=FLUSH_S)
        await metrics.aclose()


def _collector(settings: TelemetrySettings) -> SpanExporter | None:
    if settings.otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from servicekit.telemetry.collector import collector_session

    return OTLPSpanExporter(
        f"{settings.otlp_endpoint}/v1/traces",
        timeout=_EXPORT_S,
        compression=Compression.Gzip,
        session=collector_session(),
    )


def _resource(service: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    # What OTEL_RESOURCE_ATTRIBUTES says is added by the library: where it runs is the deployment's to tell.
    return Resource.create(
        {
            "service.name": f"carrel-{service.replace('_', '-')}",
            "service.namespace": "carrel",
            "service.version": version("carrel"),
            "service.instance.id": f"{socket.gethostname()}:{new_id('p')}",
        }
    )


def _missing(error: ModuleNotFoundError) -> StartupError:
    return StartupError(
        f"telemetry is turned on and a package that it needs is not installed: {error.name}",
        advice="install carrel[telemetry], or set CARREL_TELEMETRY__ENABLED=false",
        phase="CONFIGURATION",
        what="the packages of carrel[telemetry]",
    )
