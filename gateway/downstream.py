"""Whether a service that the gateway calls says that it is ready: asked by its health, at most once a second.

For the gateway's own readiness, which decides about new connections and requests only. Nothing that is open depends on
it; what a lost stream does to connections is the upstream's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.errors import CarrelError
from servicekit.health import READINESS

__all__ = ["Downstream"]

_KEPT_S: Final = 1.0
# Below the second that a readiness check may take.
_CALL_S: Final = 0.8


class Downstream:
    """Asks one service; however often it is asked itself, an answer is kept for a second."""

    def __init__(self, channel: aio.Channel, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stub = health_pb2_grpc.HealthStub(channel)
        self._clock = clock
        self._asking = asyncio.Lock()
        self._until = float("-inf")
        self._ready = False

    async def ready(self) -> bool:
        """Whether it was ready within the last second."""
        async with self._asking:
            if self._clock() >= self._until:
                self._ready = await self._ask()
                self._until = self._clock() + _KEPT_S
        return self._ready

    async def _ask(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=READINESS)
        try:
            answer = await self._stub.Check(request, timeout=_CALL_S)
        except (CarrelError, aio.AioRpcError):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
