"""A gRPC server as every service runs it: bounds, health, reflection outside production, and an ordered drain.

What surrounds a call is ``servicekit.rpc.interceptor``; when a process starts and stops is ``servicekit.lifecycle``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from google.protobuf import descriptor_pool, message_factory
from grpc import aio

from carrel.errors import StartupError
from servicekit.health import HealthServicer, Readiness, add_health
from servicekit.identity.callers import METHOD_CALLERS
from servicekit.identity.principals import Scope
from servicekit.identity.scopes import METHOD_SCOPES, SERVICE_PERMISSIONS
from servicekit.identity.tickets import TicketVerifier
from servicekit.logs import get_logger
from servicekit.rpc.callers import CallerCheck
from servicekit.rpc.guard import StreamGuard
from servicekit.rpc.health_port import HealthPort
from servicekit.rpc.interceptor import CallGate, EdgeInterceptor
from servicekit.rpc.telemetry import NO_TELEMETRY, Telemetry
from servicekit.rpc.validation import warm
from servicekit.settings import SharedSettings
from servicekit.telemetry.tracing import NO_TRACING, Tracing
from servicekit.tls.peers import Tls

__all__ = ["MIN_PING_INTERVAL_MS", "RpcServer", "Service"]

_log = get_logger("servicekit.rpc")

# (generated add_…Servicer_to_server, servicer, full name of the service)
Service: TypeAlias = tuple[Callable[[Any, Any], None], object, str]

# Clients ping every 30 s (servicekit.rpc.channel); pinging more often than this ends their connection (too_many_pings).
MIN_PING_INTERVAL_MS: Final = 10_000
# Of TCP and TLS. gRPC's own is two minutes, in which a peer that says nothing holds a connection.
HANDSHAKE_MS: int = 10_000
# More than a day, which is the longest that an attempt (RunInstance) may be allowed to take, and what its log may take.
_LONGEST_CALL_MS: Final = 25 * 3_600_000


class RpcServer:
    """One listening gRPC server with its services.

    Args:
        listen: ``host:port`` (port 0: any free one) or ``unix:/path``.
        services: What it serves.
        verifier: Checks the context of every call.
        settings: Bounds, environment and drain time.
        readiness: Checks that decide whether health says SERVING; its own, empty one when None.
        telemetry: Told about each call.
        tracing: Makes a span of each call of a kept trace.
        interceptors: Further ones, outside ours.
        scopes: Method → scopes, for services that are not in the table (tests).
        permissions: Method → permission of a service ticket, likewise.
        callers: Method → the services that may call it, by their certificates; not asked without TLS.
        tls: This process's; from the settings when None.

    Stream handlers watch ``draining`` and end with a position when it is set.
    """

    def __init__(  # noqa: PLR0913 -- all but four have defaults
        self,
        listen: str,
        services: Sequence[Service],
        verifier: TicketVerifier,
        settings: SharedSettings,
        *,
        readiness: Readiness | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
        tracing: Tracing = NO_TRACING,
        interceptors: Sequence[aio.ServerInterceptor] = (),
        scopes: Mapping[str, frozenset[Scope]] = METHOD_SCOPES,
        permissions: Mapping[str, str] = SERVICE_PERMISSIONS,
        callers: Mapping[str, frozenset[str]] = METHOD_CALLERS,
        tls: Tls | None = None,
    ) -> None:
        self._tls = Tls.of(settings) if tls is None else tls
        self._listen = listen
        self._services = list(services)
        self._settings = settings
        self.verifier = verifier
        self.readiness = readiness or Readiness()
        self.draining = asyncio.Event()
        self.gate = CallGate(settings.max_concurrent_calls, self.draining)
        self.guard = StreamGuard(verifier)
        self.callers = CallerCheck(callers, self._tls.trust_domain) if self._tls.enabled else None
        edge = EdgeInterceptor(
            verifier, self.gate, telemetry, scopes, permissions, tracing, callers=self.callers, guard=self.guard
        )
        self._interceptors = [*interceptors, edge]
        self._health = HealthServicer()
        self._server: aio.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._hasten = asyncio.Event()
        self._port = 0
        self._probes: HealthPort | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the start and for a unix socket."""
        return self._port

    @property
    def address(self) -> str:
        """What clients dial."""
        if self._listen.startswith("unix:"):
            return self._listen
        return f"{self._listen.rpartition(':')[0]}:{self._port}"

    async def start(self) -> int:
        """Listen and serve; the actual port. Health says SERVING once the readiness checks hold. Idempotent.

        Raises:
            StartupError: The address cannot be listened on.
        """
        if self._server is not None or self._stopping is not None:
            return self._port
        try:
            await self._start()
        except BaseException:
            # A server that runs beyond its loop takes calls that nobody answers, and can take the process with it.
            if self._listens:
                await asyncio.shield(self.drain(0))
            raise
        return self._port

    @property
    def _listens(self) -> bool:
        return self._server is not None or self._probes is not None

    async def _start(self) -> None:
        # First, since grpc gives a bound port back only when its server has started and is stopped.
        if (listen := self._settings.tls.health_listen) is not None:
            self._probes = HealthPort(listen, self._health)
            await self._probes.start()
        self._server = self._built()
        # In a task, which a drain waits for: one that is stopped in the middle of its start is left half open.
        self._starting = asyncio.create_task(self._server.start(), name="start")
        await asyncio.shield(self._starting)
        if self._stopping is None:
            self.readiness.set_open(True)
            self._health.set_ready(await self.readiness.evaluate())
        if self._stopping is None:
            self._watcher = asyncio.create_task(self.readiness.watch(self._health.set_ready), name="readiness")

    def _built(self) -> aio.Server:
        server = aio.server(interceptors=self._interceptors, options=self._options())
        for add, servicer, _ in self._services:
            add(servicer, server)
        add_health(self._health, server)
        if not self._settings.production:
            self._add_reflection(server)
        warm([kind for _, _, name in self._services for kind in _request_types(name)])
        self._port = self._bind(server)
        return server

    async def drain(self, grace_s: float | None = None) -> None:
        """Stop in order: health says NOT_SERVING, streams are told to end, open calls may finish, the rest is cut off.

        Legal before the start and any number of times; each call waits for the end of the first one's work.
        """
        if self._stopping is None:
            grace = self._settings.drain_seconds if grace_s is None else grace_s
            self._stopping = asyncio.create_task(self._stop(grace), name="drain")
        await asyncio.shield(self._stopping)

    def hasten(self) -> None:
        """End a drain now: open calls are cut off."""
        self._hasten.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def _stop(self, grace: float) -> None:
        self.readiness.set_open(False)
        self._health.close()
        self.draining.set()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._server is not None and self._starting is not None:
            await asyncio.wait([self._starting])
            await self._stop_serving(self._server, grace)
        if self._probes is not None:
            await self._probes.stop()

    async def _stop_serving(self, server: aio.Server, grace: float) -> None:
        _log.info("draining", open_calls=self.gate.active, grace_s=grace)
        stop = asyncio.create_task(server.stop(grace), name="stop")
        hurry = asyncio.create_task(self._hasten.wait(), name="hasten")
        await asyncio.wait([stop, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stop.done():
            await server.stop(0)
        await stop
        _log.info("drained", cut_off=self.gate.active)

    def _bind(self, server: aio.Server) -> int:
        credentials = self._tls.server_credentials()
        try:
            if credentials is not None:
                return server.add_secure_port(self._listen, credentials)
            return server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._listen}",
                advice="another process may be using the address (`ss -ltnp` shows which): stop it or set another one",
                phase="READINESS",
                what=f"the address {self._listen}",
            ) from error

    def _options(self) -> list[tuple[str, Any]]:
        limit = self._settings.max_message_bytes
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.keepalive_time_ms", 30_000),
            # Also how long the kernel holds what a client does not read: one that stands still for a while, with its
            # window full, keeps its connection.
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ]
        age = self._settings.max_connection_age_seconds
        if age is not None:
            options += [
                ("grpc.max_connection_age_ms", round(age * 1000)),
                # Calls that are open go on over the old connection.
                ("grpc.max_connection_age_grace_ms", _LONGEST_CALL_MS),
            ]
        return options

    def _add_reflection(self, server: aio.Server) -> None:
        from grpc_reflection.v1alpha import reflection

        names = [name for _, _, name in self._services]
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)


def _request_types(service: str) -> list[Any]:
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return []
    return [message_factory.GetMessageClass(method.input_type) for method in descriptor.methods]
