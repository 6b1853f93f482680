"""Counts that operators read past the gateway, of every copy of every service; what cannot be read is said, and why.

Reads alone: no call here changes anything, and none is in a user's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.cli.doctor.report import SkipCheck
from carrel.errors import CarrelError
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2, bridge_pb2, context_pb2, emitter_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from servicekit.health import READINESS

__all__ = ["SERVICES", "Operator", "Services"]

SERVICES: Final = ("execution", "agent_instance", "emitter", "bridge")
_CALL_S: Final = 5.0
_STATISTICS: Final[Mapping[str, tuple[Any, str, Any]]] = {
    "execution": (ExecutionServiceStub, "GetFactoryMetrics", execution_pb2.GetFactoryMetricsRequest),
    "agent_instance": (AgentInstanceServiceStub, "GetPoolStatistics", agent_instance_pb2.GetPoolStatisticsRequest),
    "emitter": (EmitterServiceStub, "GetEmitterStatistics", emitter_pb2.GetEmitterStatisticsRequest),
    "bridge": (BridgeServiceStub, "GetState", bridge_pb2.GetStateRequest),
}

Operator = Callable[[], Awaitable[str]]
"""Gives a service ticket with ``operator:read``; raises a CarrelError where there is none to be had."""


class Services:
    """Calls to the services that are within reach.

    Args:
        addresses: ``host:port`` of every copy, by service; none for a service that is out of reach.
        operator: Gives tickets.
        credentials: For mutual TLS; None for none.
    """

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]],
        operator: Operator,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.addresses = {name: list(addresses.get(name, ())) for name in SERVICES}
        self._operator = operator
        self._credentials = credentials
        self._channels: dict[str, aio.Channel] = {}
        self._ticket = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def ready(self, address: str) -> str:
        """Empty when a copy says that it wants work; otherwise what is wrong."""
        stub = health_pb2_grpc.HealthStub(self._channel(address))
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=READINESS), timeout=_CALL_S)
        except aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if serving else health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def statistics(self, service: str) -> list[Any]:
        """The counts of every copy.

        Raises:
            SkipCheck: They cannot be read from here; the text says why.
        """
        stub, method, request = _STATISTICS[service]
        at = self._within_reach(service)
        context = await self._context(service)
        calls = (self._call(service, getattr(stub(self._channel(a)), method), request(context=context)) for a in at)
        return list(await asyncio.gather(*calls))

    async def engines(self) -> list[execution_pb2.Engine]:
        """Every engine of every user.

        Raises:
            SkipCheck: They cannot be read from here.
        """
        stub = ExecutionServiceStub(self._channel(self._within_reach("execution")[0]))
        context, found, token = await self._context("execution"), list[execution_pb2.Engine](), ""
        while True:
            request = execution_pb2.ListEnginesRequest(context=context, page_size=1000, page_token=token)
            page = await self._call("execution", stub.ListEngines, request)
            found += page.engines
            token = page.next_page_token
            if not token:
                return found

    def _within_reach(self, service: str) -> list[str]:
        if not self.addresses[service]:
            name = f"CARREL_DOCTOR_{service.upper()}"
            raise SkipCheck(f"the address of {service} is not known: set {name} where it may be reached")
        return self.addresses[service]

    async def _context(self, service: str) -> context_pb2.UserExecutionContext:
        if not self._ticket:
            try:
                self._ticket = await self._operator()
            except CarrelError as error:
                raise SkipCheck(f"{service} tells operators alone: {error.message}") from None
        return context_pb2.UserExecutionContext(ticket=self._ticket)

    async def _call(self, service: str, call: Any, request: Any) -> Any:
        try:
            return await call(request, timeout=_CALL_S)
        except aio.AioRpcError as error:
            problem = from_rpc_error(error)
            raise SkipCheck(f"{service} cannot be asked: {problem.message}") from None

    def _channel(self, address: str) -> aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            options = [("grpc.enable_http_proxy", 0)]
            if self._credentials is None:
                channel = aio.insecure_channel(address, options)
            else:
                channel = aio.secure_channel(address, self._credentials, options)
            self._channels[address] = channel
        return channel
