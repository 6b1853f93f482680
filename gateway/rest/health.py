"""What asks for no login: is the process alive, does it want work, what is it."""

from __future__ import annotations

from aiohttp import web

import carrel
from gateway.parts import Parts
from gateway.rest.http import json_response
from servicekit.health import Readiness

__all__ = ["HealthHandlers"]


class HealthHandlers:
    """``/healthz``, ``/readyz`` and ``/``."""

    def __init__(self, parts: Parts, readiness: Readiness) -> None:
        self._parts = parts
        self._readiness = readiness

    async def live(self, _request: web.Request) -> web.StreamResponse:
        """``GET /healthz``: the process turns its loop."""
        return json_response({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.StreamResponse:
        """``GET /readyz``: new connections and requests are welcome. Names what is missing when they are not."""
        ready = await self._readiness.evaluate()
        if ready:
            return json_response({"status": "ready"})
        draining = self._parts.connections.draining
        body = {"status": "draining" if draining else "not_ready", "failing": list(self._readiness.failing)}
        return json_response(body, 503, {"Retry-After": "1"})

    async def root(self, _request: web.Request) -> web.StreamResponse:
        """``GET /``: what this is."""
        return json_response(
            {
                "name": "carrel gateway",
                "version": carrel.__version__,
                "websocket": "/ws",
                "protocol": "carrel.v1",
                "execute": "POST /api/agents/execute",
            }
        )
