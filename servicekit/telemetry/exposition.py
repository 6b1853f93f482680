"""What was collected as text for Prometheus, by its own library: OpenMetrics with exemplars, or the older format.

Not the endpoint. It runs in a thread of its own, on copies, so that the event loop is not held by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from servicekit.telemetry.buckets import BucketsRead, Exemplar
from servicekit.telemetry.catalogue import Kind
from servicekit.telemetry.meters import Collected, Family, Labels

if TYPE_CHECKING:
    from prometheus_client.core import Metric as PrometheusMetric
    from prometheus_client.samples import Exemplar as PrometheusExemplar

__all__ = ["render"]

_NS: Final = 1e9


class _Registry:
    """What the library's encoders take: something to collect from."""

    def __init__(self, collected: Collected) -> None:
        self._collected = collected

    def collect(self) -> Iterator[PrometheusMetric]:
        """One family of the library's for each of ours."""
        for family in self._collected.families:
            yield _family(family)


def render(collected: Collected, accept: str) -> tuple[bytes, str]:
    """The text and its content type, in the newest format that the ``Accept`` header allows."""
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return encode(_Registry(collected)), content_type


def _family(family: Family) -> PrometheusMetric:
    from prometheus_client.core import Metric as PrometheusMetric

    metric = family.metric
    made = PrometheusMetric(metric.family, metric.help, metric.kind.value, metric.unit)
    for labels, number in family.numbers.items():
        made.add_sample(metric.name, _labels(family, labels), number)
    if metric.kind is Kind.HISTOGRAM:
        for labels, read in family.histograms.items():
            _add_histogram(made, _labels(family, labels), read)
    return made


def _add_histogram(made: PrometheusMetric, labels: dict[str, str], read: BucketsRead) -> None:
    below = 0
    ends = [*(repr(float(bound)) for bound in read.bounds), "+Inf"]
    for end, count, exemplar in zip(ends, read.counts, read.exemplars, strict=True):
        below += count
        made.add_sample(f"{made.name}_bucket", {**labels, "le": end}, below, exemplar=_exemplar(exemplar))
    made.add_sample(f"{made.name}_count", labels, below)
    made.add_sample(f"{made.name}_sum", labels, read.sum)


def _exemplar(exemplar: Exemplar | None) -> PrometheusExemplar | None:
    if exemplar is None:
        return None
    from prometheus_client import samples

    return samples.Exemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at)


def _labels(family: Family, values: Labels) -> dict[str, str]:
    return dict(zip(family.metric.labels, values, strict=True))
