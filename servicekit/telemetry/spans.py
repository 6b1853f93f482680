"""Spans by OpenTelemetry's SDK: who makes them, and the bounded way to an exporter.

What costs time happens in the exporter's own thread. A queue that is full, and a collector that does not answer, cost
spans, which are counted, and nobody's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from carrel.errors import CarrelError
from servicekit.logs import get_logger
from servicekit.telemetry.runtime import SpanCounts
from servicekit.telemetry.tracing import NO_SPAN, Attribute, Kind, Span, as_traceparent, current_span, is_sampled

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

__all__ = ["MAX_QUEUED", "BoundedSpans", "OtelTracing"]

_log = get_logger("servicekit.telemetry")

MAX_QUEUED: Final = 4096
_BATCH: Final = 512
_EVERY_MS: Final = 1000
_END_S: Final = 30.0
_MAX_LINKS: Final = 16
# No library's own limits: environment variables of OpenTelemetry would set those.
_LIMITS: Final = SpanLimits(
    max_span_attributes=64,
    max_event_attributes=16,
    max_link_attributes=4,
    max_events=64,
    max_links=_MAX_LINKS,
    max_span_attribute_length=256,
    max_attribute_length=256,
)
_KINDS: Final = {kind: SpanKind[kind.name] for kind in Kind}
_NOTHING: Final[Mapping[str, Attribute]] = {}


class BoundedSpans(SpanProcessor):
    """A batch processor that counts what it takes, drops and hands over, and whose end has a bound.

    Args:
        exporter: Where spans go.
        counts: Kept up to date.
        max_queued: Spans that may wait; beyond, the newest are dropped.
        every_ms: How often what waits is handed over.
    """

    def __init__(
        self, exporter: SpanExporter, counts: SpanCounts, *, max_queued: int = MAX_QUEUED, every_ms: int = _EVERY_MS
    ) -> None:
        self._counts = counts
        self._max_queued = max_queued
        self._counted = _Counted(exporter, counts)
        self._inner: SpanProcessor = BatchSpanProcessor(
            self._counted,
            # One more than is ever there: the library's own drops are never met.
            max_queue_size=max_queued + _BATCH,
            schedule_delay_millis=every_ms,
            max_export_batch_size=min(_BATCH, max_queued),
        )
        self._told = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span of a kept trace, or drop it."""
        counts = self._counts
        if counts.ended - counts.dropped - self._counted.taken >= self._max_queued:
            counts.ended += 1
            counts.dropped += 1
            # Once for each doubling: a flood of spans is no flood of lines.
            if counts.dropped > 2 * self._told:
                self._told = counts.dropped
                _log.warning("spans are dropped: more end than the collector takes", dropped=counts.dropped)
            return
        counts.ended += 1
        self._inner.on_end(span)

    def shutdown(self) -> None:
        """Hand over what is left."""
        self.close(_END_S)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Hand over what waits. Blocks: for tests and other threads."""
        return self._inner.force_flush(timeout_millis)

    def close(self, within_s: float) -> bool:
        """Hand over what is left; whether that was done in time. Blocks, for another thread than the loop's."""
        # A thread that the process does not wait for: an exporter that tries again cannot be interrupted.
        thread = threading.Thread(target=self._inner.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(within_s)
        return not thread.is_alive()


class _Counted(SpanExporter):
    """The exporter, counted."""

    def __init__(self, inner: SpanExporter, counts: SpanCounts) -> None:
        self._inner = inner
        self._counts = counts
        self.taken = 0
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand spans over."""
        self.taken += len(spans)
        try:
            result = self._inner.export(spans)
        except Exception as error:  # noqa: BLE001 -- whatever an exporter raises costs spans and nothing else
            _log.debug("an exporter failed", error_type=type(error).__name__)
            result = SpanExportResult.FAILURE
        good = result is SpanExportResult.SUCCESS
        if good:
            self._counts.exported += len(spans)
        else:
            self._counts.failed += len(spans)
        if good is self._failing:
            self._failing = not good
            if good:
                _log.info("the collector takes spans again", lost=self._counts.failed)
            else:
                advice = "see that what CARREL_TELEMETRY__OTLP_ENDPOINT names runs and can be reached"
                _log.warning("the collector takes no spans", lost=self._counts.failed, advice=advice)
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See ``SpanExporter``."""
        return self._inner.force_flush(timeout_millis)


class _Allowance:
    """How many spans of events may be made: so many a second, and twice as many at once."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = self._most = 2.0 * per_s
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether there is one left."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class OtelTracing:
    """A ``Tracing`` over the SDK.

    A span takes 30 µs, with many links 80 µs, and another 30 µs in the exporter's thread. That is nothing beside a run,
    and much beside an event: so spans of events have a bound, and the cost of tracing does not grow with the events.

    Args:
        resource: What the service is.
        processor: Gets the spans of kept traces.
        ratio: Part of the traces that is kept.
        trust_incoming: Whether what comes from outside is a parent.
        event_spans_per_s: How many ``batch`` makes in a second; it says how many it has passed over since.
        counts: Told of those.
    """

    def __init__(
        self,
        resource: Resource,
        processor: SpanProcessor,
        ratio: float,
        *,
        trust_incoming: bool = False,
        event_spans_per_s: int = 50,
        counts: SpanCounts | None = None,
    ) -> None:
        def tracer(sampler: ParentBased | None) -> trace.Tracer:
            provider = TracerProvider(
                resource=resource, sampler=sampler or ALWAYS_ON, span_limits=_LIMITS, shutdown_on_exit=False
            )
            provider.add_span_processor(processor)
            return provider.get_tracer("carrel")

        self._roots = tracer(ParentBased(TraceIdRatioBased(ratio)))
        # Of what is known to be kept: children of kept traces, and where kept traces meet.
        self._kept = tracer(None)
        self._trust = trust_incoming
        self._allowance = _Allowance(event_spans_per_s)
        self._counts = counts or SpanCounts()
        self._told_passed_over = 0

    def begin(
        self, name: str, attributes: Mapping[str, Attribute] = _NOTHING, *, kind: Kind = Kind.SERVER, incoming: str = ""
    ) -> Span:
        """See ``Tracing``."""
        parent, links = Context(), []
        if incoming and (given := as_traceparent(incoming)):
            if self._trust:
                parent = _parent(given)
            else:
                links = [Link(_context_of(given))]
        span = self._roots.start_span(name, parent, _KINDS[kind], attributes, links)
        return _of(span)

    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        parent: str | None = None,
        links: Iterable[str] = (),
    ) -> Span:
        """See ``Tracing``."""
        if parent is None:
            parent = current_span().traceparent
            if not is_sampled(parent):
                return NO_SPAN
        elif not is_sampled(parent):
            return Span(parent) if parent else NO_SPAN
        linked = [Link(_context_of(text)) for text in links if is_sampled(text)]
        return _of(self._kept.start_span(name, _parent(parent), _KINDS[kind], attributes, linked))

    def batch(
        self,
        name: str,
        traceparents: Iterable[str],
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        since_ns: int = 0,
    ) -> Span:
        """See ``Tracing``."""
        # In their order, each once.
        kept = dict.fromkeys(text for text in traceparents if is_sampled(text) and as_traceparent(text))
        if not kept:
            return NO_SPAN
        counts = self._counts
        if not self._allowance.take():
            counts.passed_over += 1
            return NO_SPAN
        if counts.passed_over > self._told_passed_over:
            attributes = {**attributes, "carrel.passed_over": counts.passed_over - self._told_passed_over}
            self._told_passed_over = counts.passed_over
        first, *others = kept
        parent = _parent(first)
        if any(text[3:35] != first[3:35] for text in others):
            parent, others = Context(), _one_of_each_trace(kept)
        links = [Link(_context_of(text)) for text in others[:_MAX_LINKS]]
        return _of(self._kept.start_span(name, parent, _KINDS[kind], attributes, links, since_ns or None))


class _OtelSpan(Span):
    """A span that is recorded."""

    __slots__ = ("_inner",)

    def __init__(self, inner: trace.Span, traceparent: str) -> None:
        super().__init__(traceparent)
        self._inner = inner

    @property
    def recording(self) -> bool:
        return self._inner.is_recording()

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        self._inner.set_attributes(attributes)

    def note(self, name: str, attributes: Mapping[str, Attribute] = _NOTHING) -> None:
        self._inner.add_event(name, attributes)

    def fail(self, reason: str) -> None:
        self._inner.set_attribute("error.type", reason)
        self._inner.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        if self._inner.is_recording():
            self._inner.end()

    def _left_by(self, error: BaseException) -> None:
        if isinstance(error, CarrelError):
            self.fail(error.code)
        elif isinstance(error, Exception):
            self.fail(type(error).__name__)
        else:
            # A cancellation, or a generator that was closed: an end from outside, and no failure of its own.
            self._inner.set_attribute("carrel.cancelled", True)


def _of(span: trace.Span) -> Span:
    context = span.get_span_context()
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return _OtelSpan(span, text) if span.is_recording() else Span(text)


def _one_of_each_trace(texts: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(text[3:35], text)
    return list(found.values())


def _context_of(traceparent: str) -> SpanContext:
    return SpanContext(
        int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, TraceFlags(int(traceparent[53:], 16))
    )


def _parent(traceparent: str) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(_context_of(traceparent)), Context())
