"""The same metrics, pushed to an OpenTelemetry collector: what ``Meters`` collects, in the SDK's data model.

The SDK's own instruments and periodic reader are not used: its reader calls observers from a thread of its own, while
what they would read changes in the event loop, and its instruments would be second counters beside ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from servicekit.telemetry.buckets import BucketsRead
from servicekit.telemetry.catalogue import Kind
from servicekit.telemetry.meters import Collected, Family, Meters

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource

__all__ = ["metrics_data", "push_metrics"]

_log: Final = get_logger("servicekit.metrics")
_SCOPE: Final = "carrel"
_UNITS: Final = {"seconds": "s", "milliseconds": "ms", "bytes": "By", "": "1"}
_LAST_S: Final = 2.0


def metrics_data(collected: Collected, resource: Resource) -> MetricsData:
    """What was collected as the SDK's exporters take it; sums are cumulative since the process began."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    metrics = [_metric(family, collected) for family in collected.families if family.numbers or family.histograms]
    scope = ScopeMetrics(scope=InstrumentationScope(_SCOPE), metrics=metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


@asynccontextmanager
async def push_metrics(
    meters: Meters, exporter: MetricExporter, resource: Resource, interval_s: float = 15.0
) -> AsyncIterator[None]:
    """Push every interval for the length of the block, and once at its end. A collector that is away costs nothing but
    its own numbers: it is told of once, and tried again each time."""
    push = _Push(meters, exporter, resource)
    async with TaskOwner() as tasks:
        _ = tasks.start(push.for_ever(interval_s), "push of metrics")
        try:
            yield
        finally:
            await tasks.aclose()
            # A collector that was away a moment ago is no reason to hold up the process's end.
            if not push.away:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_S):
                        await push.once(_LAST_S)
            await asyncio.to_thread(exporter.shutdown, _LAST_S * 1000)


class _Push:
    def __init__(self, meters: Meters, exporter: MetricExporter, resource: Resource) -> None:
        self._meters = meters
        self._exporter = exporter
        self._resource = resource
        self.away = False

    async def for_ever(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self.once(interval_s)

    async def once(self, within_s: float) -> None:
        collected = await self._meters.collect()
        away = not await asyncio.to_thread(self._export, collected, within_s * 1000)
        if away and not self.away:
            _log.warning("the collector takes no metrics")
        elif self.away and not away:
            _log.info("the collector takes metrics again")
        self.away = away

    def _export(self, collected: Collected, within_ms: float) -> bool:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        try:
            data = metrics_data(collected, self._resource)
            return self._exporter.export(data, timeout_millis=within_ms) is MetricExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 -- an exporter's fault must not end the service that it tells of
            _log.debug("metrics cannot be pushed", error_type=type(error).__name__)
            return False


def _metric(family: Family, collected: Collected) -> Metric:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, NumberDataPoint, Sum

    metric = family.metric
    data: Any
    times: dict[str, Any] = {"start_time_unix_nano": collected.started_ns, "time_unix_nano": collected.at_ns}
    if metric.kind is Kind.HISTOGRAM:
        parts = [_histogram_point(family, labels, read, times) for labels, read in family.histograms.items()]
        data = Histogram(parts, AggregationTemporality.CUMULATIVE)
    else:
        points = [
            NumberDataPoint(attributes=_attributes(family, labels), value=number, **times)
            for labels, number in family.numbers.items()
        ]
        if metric.kind is Kind.COUNTER:
            data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        else:
            data = Gauge(points)
    return Metric(name=metric.name, description=metric.help, unit=_UNITS[metric.unit], data=data)


def _histogram_point(family: Family, labels: tuple[str, ...], read: BucketsRead, times: dict[str, Any]) -> Any:
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    seen = [
        Exemplar({}, one.value, int(one.at * 1e9), trace_id=int(one.trace_id, 16), span_id=0)
        for one in read.exemplars
        if one is not None
    ]
    # Only the buckets are known: neither the least nor the greatest value.
    unknown: dict[str, Any] = {"min": None, "max": None}
    return HistogramDataPoint(
        attributes=_attributes(family, labels),
        count=read.count,
        sum=read.sum,
        bucket_counts=read.counts,
        explicit_bounds=read.bounds,
        exemplars=seen,
        **unknown,
        **times,
    )


def _attributes(family: Family, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(family.metric.labels, labels, strict=True))
