"""A trace begins with each request of the API. Not with sockets, whose frames begin their own, nor with event streams.

The request's own ``traceparent`` becomes a link, unless the operator trusts those who ask (servicekit.telemetry).
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from gateway.rest.http import Handler
from servicekit.telemetry.tracing import METADATA_KEY, NO_TRACING, Tracing

__all__ = ["traced"]

_API: Final = ("/api/", "/ag-ui")
# They last as long as somebody looks.
_STREAM: Final = "/events"


def traced(tracing: Tracing) -> Any:
    """The middleware around all others."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # The route's pattern: an address has ids in it, and is of no small set.
        route = "" if resource is None else resource.canonical
        if tracing is NO_TRACING or not route.startswith(_API) or route.endswith(_STREAM):
            return await handler(request)
        attributes = {"http.request.method": request.method, "http.route": route}
        incoming = request.headers.get(METADATA_KEY, "")
        with tracing.begin(f"{request.method} {route}", attributes, incoming=incoming) as span:
            response = await handler(request)
            span.set({"http.response.status_code": response.status})
            if response.status >= 500:
                span.fail(str(response.status))
        return response

    return middleware
