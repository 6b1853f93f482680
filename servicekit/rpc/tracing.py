"""A trace's way over gRPC: in the metadata, out of it at the other end, and a span of each call that is served.

By hand in the server's interceptor and the channel, since an interceptor costs a task for each call. Long streams that
carry many runs' events (Emit, Publish, Attach) belong to no trace: what they carry does.
"""

from __future__ import annotations

from typing import Any, Final

from grpc import aio

from servicekit.telemetry.tracing import (
    METADATA_KEY,
    NO_SPAN,
    NO_TRACING,
    Kind,
    Span,
    Tracing,
    as_traceparent,
    current_span,
)

__all__ = ["span_of_call", "with_trace"]

_Context = aio.ServicerContext[Any, Any]
_PACKAGE: Final = "/carrel.v1."

# Where a trace begins that no caller has begun: what internal services ask for.
_BEGINS: Final = frozenset(
    {
        "/carrel.v1.ExecutionService/ExecutePipeline",
        "/carrel.v1.ExecutionService/CancelRun",
        "/carrel.v1.ExecutionService/ProvideInput",
        "/carrel.v1.EmitterService/Notify",
    }
)


def span_of_call(tracing: Tracing, method: str, context: _Context) -> Span:
    """The span of a call that is served, for a ``with`` statement around it; in the caller's trace, if it has one."""
    if tracing is NO_TRACING:
        return NO_SPAN
    given = ""
    for key, value in context.invocation_metadata() or ():
        if key == METADATA_KEY:
            given = as_traceparent(value if isinstance(value, str) else "")
            break
    if given:
        return tracing.span(method.removeprefix(_PACKAGE), kind=Kind.SERVER, parent=given)
    if method in _BEGINS:
        return tracing.begin(method.removeprefix(_PACKAGE))
    return NO_SPAN


def with_trace(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, with the current trace in its metadata."""
    traceparent = current_span().traceparent
    if not traceparent:
        return options
    return {**options, "metadata": (*(options.get("metadata") or ()), (METADATA_KEY, traceparent))}
