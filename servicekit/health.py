"""Health as Kubernetes and the other services ask for it: `liveness`, `readiness`, and `` (the same as readiness).

Readiness is honest: every check that a service adds must hold. Our own servicer, since the package's loses watchers of
a name when one of them leaves. Not metrics.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit.logs import get_logger

__all__ = ["LIVENESS", "READINESS", "Check", "HealthServicer", "Readiness", "add_health"]

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
_POLL_S: Final = 1.0

Check: TypeAlias = Callable[[], bool | Awaitable[bool]]
_log = get_logger("servicekit.health")


class Readiness:
    """All checks of a service, and whether it may be sent work.

    It is ready once it is open (the start is over, no drain has begun) and every check holds. A check that raises or
    takes longer than a second does not hold. Watched by the server every second and whenever ``poke`` is called.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._failing: tuple[str, ...] = ()
        self._open = False
        self._poked = asyncio.Event()

    def add(self, name: str, check: Check) -> None:
        """Add a check: a function, or a coroutine function, that returns whether the thing named is usable."""
        if name in self._checks:
            raise ValueError(f"the readiness check {name} exists already")
        self._checks[name] = check

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all checks."""
        return tuple(self._checks)

    @property
    def ready(self) -> bool:
        """The state as of the last look."""
        return self._open and not self._failing

    @property
    def failing(self) -> tuple[str, ...]:
        """Names of the checks that did not hold at the last look."""
        return self._failing

    def set_open(self, is_open: bool) -> None:
        """Begin to say ready (the start is over), or stop for good (a drain begins)."""
        self._open = is_open
        self._poked.set()

    def poke(self) -> None:
        """Look again now: something has changed."""
        self._poked.set()

    async def evaluate(self) -> bool:
        """Run every check and return whether the service is ready."""
        results = await asyncio.gather(*(self._holds(name, check) for name, check in self._checks.items()))
        failing = tuple(name for name, holds in zip(self._checks, results, strict=True) if not holds)
        if failing != self._failing:
            (_log.warning if failing else _log.info)("readiness changed", failing=failing)
            self._failing = failing
        return self.ready

    async def watch(self, changed: Callable[[bool], None]) -> None:
        """Evaluate for ever, telling ``changed`` the state each time it was looked at."""
        while True:
            self._poked.clear()
            changed(await self.evaluate())
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def _holds(self, name: str, check: Check) -> bool:
        try:
            result = check()
            if inspect.isawaitable(result):
                async with asyncio.timeout(_POLL_S):
                    result = await result
            return bool(result)
        except Exception as error:  # noqa: BLE001 -- whatever a check raises, the thing it looks at is not usable
            _log.debug("readiness check failed", check=name, error_type=type(error).__name__)
            return False


class HealthServicer:
    """``grpc.health.v1`` over a few names."""

    def __init__(self) -> None:
        self._serving = {"": False, READINESS: False, LIVENESS: True}
        self._changed = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Not ready any more, for good; watchers are told and let go, since a drain would wait for them."""
        self.set_ready(False)
        self._closed = True
        self._changed.set()

    def set_ready(self, ready: bool) -> None:
        """Set readiness (and the empty name) and wake watchers."""
        if self._serving[READINESS] != ready and not self._closed:
            self._serving[READINESS] = self._serving[""] = ready
            # A new event for the next change: each watcher waits for the one it saw.
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(  # noqa: N802 -- the RPC's name
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The state of one name; NOT_FOUND for others."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no health is kept under this name")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 -- the RPC's name
        self, request: health_pb2.HealthCheckRequest, _context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state of one name now and at each change."""
        last = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue  # it may have changed, and have been closed, while that was on its way
            if self._closed:
                return
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
        serving = self._serving.get(service)
        if serving is None:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING


def add_health(servicer: HealthServicer, server: aio.Server) -> None:
    """Register the servicer at a server."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
