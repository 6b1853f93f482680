"""``CallMeter``: counts gRPC calls at the one seam where each is seen (``servicekit.rpc.telemetry``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from carrel.errors import Status
from servicekit.health import Readiness
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.telemetry import NO_TELEMETRY, Telemetry
from servicekit.telemetry.buckets import LATENCY_S, Buckets
from servicekit.telemetry.meters import NO_METERS, Meters
from servicekit.telemetry.process import observe_readiness

__all__ = ["CallMeter", "Serving", "observe_server", "observe_serving"]

# How long a stream lives says nothing about how quick a service is.
_STREAMS: Final = frozenset({"Attach", "Emit", "GetArtifact", "Publish", "ReadEvents", "RunInstance", "WatchRun"})


class CallMeter:
    """A ``Telemetry``: per method, how many are open, how they ended, and how long single calls took.

    Methods are those that the service has: the interceptor tells of no other, so their number is bounded.
    """

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str], int] = {}
        self._open: dict[str, int] = {}
        self._seconds: dict[str, Buckets] = {}

    def call_started(self, method: str) -> None:
        """See ``Telemetry``."""
        self._open[method] = self._open.get(method, 0) + 1

    def call_ended(self, method: str, status: Status, seconds: float) -> None:
        """See ``Telemetry``."""
        self._open[method] -= 1
        key = (method, status.name)
        self._ended[key] = self._ended.get(key, 0) + 1
        name = method.rpartition("/")[2]
        if name not in _STREAMS:
            buckets = self._seconds.get(method)
            if buckets is None:
                buckets = self._seconds[method] = Buckets(LATENCY_S)
            buckets.add(seconds)

    def observe(self, meters: Meters) -> None:
        """Register the metrics of calls."""
        meters.read("carrel_grpc_calls_total", lambda: {(_short(m), s): n for (m, s), n in self._ended.items()})
        meters.read("carrel_grpc_calls_active", lambda: {_short(m): n for m, n in self._open.items()})
        meters.histogram("carrel_grpc_call_seconds", lambda: {_short(m): b for m, b in self._seconds.items()})


class Serving(Protocol):
    """A server, as far as its metrics need it: ``servicekit.rpc.server.RpcServer``."""

    @property
    def gate(self) -> Gate: ...
    @property
    def readiness(self) -> Readiness: ...
    @property
    def verifier(self) -> TicketVerifier: ...
    @property
    def callers(self) -> Callers | None: ...


class Callers(Protocol):
    """Who was refused by its certificate: ``servicekit.rpc.callers.CallerCheck``."""

    @property
    def refused_by_caller(self) -> Mapping[str, int]: ...


class Gate(Protocol):
    """What bounds a server's calls."""

    @property
    def refused(self) -> int: ...


def observe_server(meters: Meters) -> Telemetry:
    """A meter for a server's calls, registered; where nobody reads metrics, nothing is counted."""
    if meters is NO_METERS:
        return NO_TELEMETRY
    meter = CallMeter()
    meter.observe(meters)
    return meter


def observe_serving(meters: Meters, server: Serving) -> None:
    """Register what a server counts itself, and its readiness."""
    gate, verifier = server.gate, server.verifier
    meters.read("carrel_grpc_calls_refused_total", lambda: gate.refused)
    meters.read("carrel_identity_mismatch_total", lambda: verifier.identity_mismatch_total)
    meters.read("carrel_tickets_refused_total", lambda: verifier.refused)
    callers = server.callers
    meters.read("carrel_callers_refused_total", lambda: {} if callers is None else callers.refused_by_caller)
    observe_readiness(meters, server.readiness)


def _short(method: str) -> str:
    """``ExecutionService/GetRun`` of ``/carrel.v1.ExecutionService/GetRun``."""
    return method.rpartition(".")[2]
