"""Spans of one trace as a tree that people read: who did what, when it began, how long it took.

Spans come from OTLP messages or from the SDK's in-memory exporter. A span of another trace that is linked to one of
this trace (where batches of several runs met) stands below the span that it is linked to, marked as a link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["TraceSpan", "of_otlp", "of_sdk", "render", "traces"]

_FAILED: Final = 2
_SHOWN: Final = ("carrel.agent", "carrel.stage", "carrel.attempt", "carrel.events", "carrel.outcome", "error.type")


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """One span; ids are hexadecimal, times Unix time in ns. ``links`` are pairs of trace and span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    links: Sequence[tuple[str, str]] = ()
    failed: bool = False


def of_otlp(request: ExportTraceServiceRequest) -> Iterator[TraceSpan]:
    """The spans of a message that a service sends to a collector."""
    for resource in request.resource_spans:
        told = {item.key: item.value.string_value for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield TraceSpan(
                    service=told.get("service.name", ""),
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    began_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    attributes={item.key: _value(item.value) for item in span.attributes},
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    failed=span.status.code == _FAILED,
                )


def of_sdk(span: ReadableSpan) -> TraceSpan:
    """A span of the SDK's own, which has ended."""
    context = span.get_span_context()
    assert context is not None
    return TraceSpan(
        service=str(span.resource.attributes.get("service.name", "")),
        name=span.name,
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id="" if span.parent is None else f"{span.parent.span_id:016x}",
        began_ns=span.start_time or 0,
        ended_ns=span.end_time or 0,
        attributes=dict(span.attributes or {}),
        links=tuple((f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links),
        failed=span.status.status_code.value == _FAILED,
    )


def traces(spans: Iterable[TraceSpan]) -> dict[str, list[TraceSpan]]:
    """The spans by trace, each trace in the order in which its spans began."""
    found: dict[str, list[TraceSpan]] = defaultdict(list)
    for span in spans:
        found[span.trace_id].append(span)
    return {trace_id: sorted(group, key=lambda span: span.began_ns) for trace_id, group in found.items()}


def render(spans: Iterable[TraceSpan], trace_id: str) -> str:
    """The trace as an indented tree: service, name, when it began after the trace, how long it took."""
    everything = list(spans)
    own = traces(everything).get(trace_id, [])
    if not own:
        return f"no span of the trace {trace_id} has come"
    known = {span.span_id for span in own}
    below: dict[str, list[tuple[TraceSpan, bool]]] = defaultdict(list)
    for span in own:
        below[span.parent_id if span.parent_id in known else ""].append((span, False))
    for span in everything:
        if span.trace_id != trace_id:
            for linked_trace, linked in span.links[:]:
                if linked_trace == trace_id and linked in known:
                    below[linked].append((span, True))
                    break
    lines = [f"trace {trace_id}"]
    began = own[0].began_ns

    def add(span: TraceSpan, depth: int, linked: bool) -> None:
        after, took = (span.began_ns - began) / 1e6, (span.ended_ns - span.began_ns) / 1e6
        told = " ".join(
            f"{name.rpartition('.')[2]}={span.attributes[name]}" for name in _SHOWN if name in span.attributes
        )
        mark = "~ " if linked else ""
        head = f"{'  ' * depth}{mark}{span.service.removeprefix('carrel-')}: {span.name}"
        lines.append(f"{head:<64} {after:9.2f} ms {took:9.2f} ms  {'FAILED ' if span.failed else ''}{told}".rstrip())
        if not linked:
            for child, by_link in sorted(below[span.span_id], key=lambda item: item[0].began_ns):
                add(child, depth + 1, by_link)

    for root, by_link in below[""]:
        add(root, 0, by_link)
    return "\n".join(lines)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in {"string_value", "bool_value", "int_value", "double_value"} else str(value)
