"""The servicer: converts, calls the domain, converts back. A ``RunInstance`` stream is a ``RunSession``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from grpc import aio

from carrel.errors import InvalidRequestError, PermissionDeniedError, TicketError
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1 import agent_instance_pb2_grpc as pb_grpc
from servicekit.identity.principals import Principal, RunPrincipal, Scope
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.context import current_principal
from servicekit.rpc.contracts import contract_to_proto
from services.agent_instance import convert
from services.agent_instance.domain.stage import StageServices
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import Caller
from services.agent_instance.service_session import MakeProducer, RunSession, StreamLimits

__all__ = ["AgentInstanceServicer", "MakeProducer", "RunSession", "StreamLimits"]

_ADMITS: Final = "execution"  # keeps users' limits, and signs the tickets of the runs that are within them
_RUN: Final = frozenset({Scope.RUN})
_Context = aio.ServicerContext[Any, Any]


class AgentInstanceServicer(pb_grpc.AgentInstanceServiceServicer):
    """``carrel.v1.AgentInstanceService``."""

    def __init__(
        self,
        services: StageServices,
        dependencies: DependencyChecker,
        verifier: TicketVerifier,
        make_producer: MakeProducer,
        *,
        limits: StreamLimits | None = None,
    ) -> None:
        self._services = services
        self._core = services.core
        self._dependencies = dependencies
        self._verifier = verifier
        self._make_producer = make_producer
        self._limits = limits or StreamLimits()
        self._sessions: set[RunSession] = set()

    def end_streams(self) -> None:
        """Give back the attempts that still run."""
        for session in self._sessions:
            session.give_back()

    async def ListAgents(self, request: pb.ListAgentsRequest, context: _Context) -> pb.ListAgentsResponse:
        """The frozen registry, with the tools of MCP servers as they are known now."""
        registry, policy, isolation = self._core.registry, self._services.policy, self._core.isolation
        servers = self._services.tool_servers
        agents = [
            convert.agent_info(
                entry,
                entry.tools.values() if servers is None else servers.listed(entry),
                policy.limits(entry, None),
                isolation(entry),
                await self._dependencies.missing(entry),
            )
            for entry in registry.values()
        ]
        return pb.ListAgentsResponse(agents=agents, registry_digest=registry.digest)

    async def CreateInstance(self, request: pb.CreateInstanceRequest, context: _Context) -> pb.CreateInstanceResponse:
        """Reserve an instance."""
        caller = convert.caller_of(request.context, _admitted(current_principal()))
        instance = await self._core.create(caller, request.agent_name)
        return pb.CreateInstanceResponse(instance_id=instance.instance_id, warm=instance.warm)

    async def ReleaseInstance(
        self, request: pb.ReleaseInstanceRequest, context: _Context
    ) -> pb.ReleaseInstanceResponse:
        """End an instance."""
        caller = convert.caller_of(request.context, current_principal())
        return pb.ReleaseInstanceResponse(released=await self._core.release(caller, request.instance_id))

    async def GetPoolStatistics(
        self, request: pb.GetPoolStatisticsRequest, context: _Context
    ) -> pb.GetPoolStatisticsResponse:
        """The pool's counts."""
        counts = self._core.statistics(periodic_updates_active=self._services.periodic.active)
        response = convert.pool_statistics(counts, self._verifier.identity_mismatch_total)
        response.contract.CopyFrom(contract_to_proto(self._core.contract))
        return response

    async def GetLoad(self, request: pb.GetLoadRequest, context: _Context) -> pb.GetLoadResponse:
        """How much room there is."""
        _admitted(current_principal())
        load = self._core.load()
        return pb.GetLoadResponse(active=load.active, waiting=load.waiting, capacity=load.capacity)

    async def RunInstance(
        self, request_iterator: AsyncIterator[pb.RunInstanceRequest], context: _Context
    ) -> AsyncIterator[pb.RunInstanceResponse]:
        """Run one attempt of one stage."""
        first = await self._first(request_iterator)
        caller = self._verify(first)
        if first.WhichOneof("message") != "start":
            raise InvalidRequestError("the first message must be `start`", fields={"message": "must be start"})
        if caller.context.operation_depth:
            raise InvalidRequestError("a stage runs under the run's root request", fields={"context": "is a child's"})
        start = convert.stage_start(first.start)
        session = RunSession(self._services, start, caller, self._make_producer, self._limits)
        async with session, self._listed(session):
            session.listen(request_iterator, self._verify)
            async with aclosing(session.responses()) as responses:
                async for response in responses:
                    yield response
            await session.part()

    @asynccontextmanager
    async def _listed(self, session: RunSession) -> AsyncIterator[None]:
        self._sessions.add(session)
        try:
            yield
        finally:
            self._sessions.discard(session)

    async def _first(self, requests: AsyncIterator[pb.RunInstanceRequest]) -> pb.RunInstanceRequest:
        try:
            async with asyncio.timeout(self._limits.first_message_s):
                return await anext(requests)
        except (StopAsyncIteration, TimeoutError):
            raise InvalidRequestError("the stream began without `start`", advice="send `start` first") from None

    def _verify(self, request: pb.RunInstanceRequest) -> Caller:
        if not request.HasField("context"):
            raise TicketError("the message carries no context", advice="send a context with a ticket in it")
        return convert.caller_of(request.context, _admitted(self._verifier.verify(request.context, _RUN)))


def _admitted(principal: Principal) -> RunPrincipal:
    """The principal of a run that execution has admitted; a ticket to ask for a run starts nothing."""
    assert isinstance(principal, RunPrincipal)
    if principal.issuer != _ADMITS:
        raise PermissionDeniedError(
            "only a run that execution has admitted may have instances",
            advice="ask execution for the run (ExecutePipeline); it starts what the run needs",
        )
    return principal
