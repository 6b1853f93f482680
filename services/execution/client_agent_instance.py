"""Calls to agent_instance: the registry, and attempts as bidirectional streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import aio

from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import agent_instance_pb2_grpc as ai_grpc
from services.execution.client_contexts import RunContext, RunContexts
from services.execution.convert import catalogue_from_proto, downlink_to_proto, start_to_proto, uplink_from_proto
from services.execution.domain.planning import Catalogue
from services.execution.domain.ports import Downlink, StageStart, StageStream, Uplink
from services.execution.models import RunIdentity

__all__ = ["GrpcAgentHost"]

_Call = aio.StreamStreamCall[ai.RunInstanceRequest, ai.RunInstanceResponse]


class GrpcAgentHost:
    """``AgentHost`` over a channel.

    Args:
        channel: To agent_instance.
        address: What it was dialled by, kept in the rows of runs.
        contexts: The contexts of runs, with tickets.
    """

    def __init__(self, channel: aio.Channel, address: str, contexts: RunContexts) -> None:
        self._stub = ai_grpc.AgentInstanceServiceStub(channel)
        self._address = address
        self._contexts = contexts

    @property
    def address(self) -> str:
        """See ``AgentHost``."""
        return self._address

    async def catalogue(self) -> Catalogue:
        """See ``AgentHost``."""
        request = ai.ListAgentsRequest(context=self._contexts.asking())
        return catalogue_from_proto(await self._stub.ListAgents(request))

    @asynccontextmanager
    async def run_stage(self, start: StageStart) -> AsyncIterator[StageStream]:
        """See ``AgentHost``."""
        context = self._contexts.of(start.identity, start.deadline_at)
        # After a restart of agent_instance the channel may still be backing off; the silence limit bounds the wait.
        call = self._stub.RunInstance(wait_for_ready=True)
        try:
            stream = _Stream(call, context, start.identity)
            await stream.begin(start)
            yield stream
        finally:
            call.cancel()


class _Stream:
    """``StageStream`` over one call."""

    def __init__(self, call: _Call, context: RunContext, identity: RunIdentity) -> None:
        self._call = call
        self._context = context
        self._identity = identity
        # grpc.aio takes one write at a time.
        self._writing = asyncio.Lock()

    async def begin(self, start: StageStart) -> None:
        """Send the first message. Raises ``CarrelError`` when there is nobody to hear it."""
        try:
            await self._call.write(ai.RunInstanceRequest(context=self._context(), start=start_to_proto(start)))
        except aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.InvalidStateError:
            return  # over already: whoever reads it learns why

    async def __aiter__(self) -> AsyncIterator[Uplink]:
        try:
            while isinstance(response := await self._call.read(), ai.RunInstanceResponse):
                message = uplink_from_proto(response, self._identity)
                if message is not None:
                    yield message
        except aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def send(self, message: Downlink) -> None:
        """See ``StageStream``."""
        request = downlink_to_proto(message, self._context())
        try:
            async with self._writing:
                await self._call.write(request)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            # Whoever reads the stream learns why it ended.
            return
        except asyncio.CancelledError:
            # grpc.aio answers so, too, when the call is cancelled because the attempt is over.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
