"""How the gateway's metrics are read: from its tally and its connections; and the count of HTTP requests.

Connections are looked at in slices, since ten thousand of them take longer than anybody should wait for the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.connections import Connections
from gateway.parts import Parts
from gateway.shared_state import Revocations
from gateway.tally import Lane
from gateway.upstream import Upstream
from servicekit.telemetry.buckets import Buckets
from servicekit.telemetry.meters import Meters

__all__ = ["LaneLook", "RequestMeter", "observe_gateway"]

_SLICE: Final = 500
_OTHER: Final = "other"
# How long they are open says nothing about how quick the gateway is.
_STREAMS: Final = frozenset({"/ws", "/ws/{user_id}", "/api/events", "/api/runs/{run_id}/events"})
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestMeter:
    """Counts requests by route and status, and how long each route takes. Routes are the gateway's own: bounded."""

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str], int] = {}
        self.seconds: dict[str, Buckets] = {}

    def middleware(self) -> Middleware:
        """The outermost middleware, which sees answers as they leave."""

        @web.middleware
        async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
            began, status = time.perf_counter(), 499  # the client went away before there was an answer
            try:
                response = await handler(request)
                status = response.status
            except web.HTTPException as error:
                status = error.status
                raise
            finally:
                self._count(request, status, time.perf_counter() - began)
            return response

        return count

    def _count(self, request: web.Request, status: int, seconds: float) -> None:
        resource = request.match_info.route.resource
        route = _OTHER if resource is None else resource.canonical
        key = (route, str(status))
        self.ended[key] = self.ended.get(key, 0) + 1
        if route not in _STREAMS:
            if route not in self.seconds:
                self.seconds[route] = Buckets()
            self.seconds[route].add(seconds)


@dataclass(slots=True)
class LaneLook:
    """What all connections were like when they were last looked at."""

    window_events: int = 0
    window_full: int = 0
    stalled: int = 0
    lag: int = 0
    lag_max: int = 0
    stuck_s: float = 0.0


class _Lanes:
    """Looks at connections; remembers of those that are behind where they stood, and since when."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._behind: dict[Lane, tuple[int, float]] = {}
        self.found = LaneLook()

    async def refresh(self) -> None:
        """Look at all, a slice at a time."""
        look, behind, now = LaneLook(), dict[Lane, tuple[int, float]](), time.monotonic()
        for number, lane in enumerate(list(self._connections.lanes()), 1):
            look.window_events += lane.unacknowledged
            look.window_full += lane.window_full
            look.stalled += lane.stalled
            if lag := lane.lag:
                look.lag += lag
                look.lag_max = max(look.lag_max, lag)
                offset = lane.place.offset
                known = self._behind.get(lane)
                since = known[1] if known is not None and known[0] == offset else now
                behind[lane] = (offset, since)
                look.stuck_s = max(look.stuck_s, now - since)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        self.found, self._behind = look, behind


def observe_gateway(
    meters: Meters, parts: Parts, upstream: Upstream, revocations: Revocations, requests: RequestMeter
) -> None:
    """Register them all."""
    tally, hub, read = parts.tally, parts.hub, meters.read
    lanes = _Lanes(parts.connections)
    meters.refresh("connections", lanes.refresh)
    meters.histogram("carrel_event_latency_seconds", tally.latency_s)
    read("carrel_connections", lambda: len(parts.connections))
    read("carrel_connected_users", lambda: len(hub))
    read("carrel_connections_accepted_total", lambda: tally.accepted)
    read("carrel_connections_closed_total", lambda: tally.ended)
    read("carrel_heartbeats_total", lambda: tally.heartbeats)
    read("carrel_heartbeats_missed_total", lambda: tally.silent)
    read("carrel_socket_events_total", lambda: tally.events_sent)
    read("carrel_socket_batches_total", lambda: tally.batches_sent)
    read("carrel_socket_bytes_total", lambda: tally.bytes_sent)
    read("carrel_socket_acks_total", lambda: tally.acks)
    read("carrel_socket_resets_total", lambda: tally.resets)
    read("carrel_socket_gaps_total", lambda: tally.gaps)
    read("carrel_undelivered_events", lambda: lanes.found.lag)
    read("carrel_undelivered_events_max", lambda: lanes.found.lag_max)
    read("carrel_undelivered_age_seconds", lambda: lanes.found.stuck_s)
    read("carrel_connections_stalled", lambda: lanes.found.stalled)
    read("carrel_connections_window_full", lambda: lanes.found.window_full)
    read("carrel_unacknowledged_window_events", lambda: lanes.found.window_events)
    read("carrel_ring_bytes", lambda: hub.ring_bytes)
    read("carrel_log_reads_total", lambda: tally.log_reads)
    read("carrel_log_read_failures_total", lambda: tally.log_read_failures)
    read("carrel_upstream_attached", lambda: int(upstream.attached))
    read("carrel_http_requests_total", lambda: requests.ended)
    meters.histogram("carrel_http_request_seconds", lambda: requests.seconds)
    read("carrel_revoked_users", lambda: len(revocations))
    read("carrel_revocations_age_seconds", lambda: revocations.age_s)
