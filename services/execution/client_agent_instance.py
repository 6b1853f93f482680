"""Calls to agent_instance, whichever copy: the registry, how busy each is, and attempts as bidirectional streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import grpc
from grpc import aio

from carrel.errors import CarrelError, TooLargeError, UnavailableError, WorkerLostError, WorkersBusyError
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import agent_instance_pb2_grpc as ai_grpc
from servicekit.rpc.channel import MAX_MESSAGE_BYTES
from servicekit.rpc.copies import Copies, Copy
from servicekit.tasks import TaskOwner
from services.execution.client_contexts import RunContext, RunContexts
from services.execution.convert import catalogue_from_proto
from services.execution.convert_stage import downlink_to_proto, start_to_proto, uplink_from_proto
from services.execution.domain.placement import Placement
from services.execution.domain.planning import Catalogue
from services.execution.domain.ports import Downlink, RefreshTicket, StageResult, StageStart, StageStream, Uplink
from services.execution.models import RunIdentity

__all__ = ["GrpcAgentHost"]

_Call = aio.StreamStreamCall[ai.RunInstanceRequest, ai.RunInstanceResponse]
_PARTING_S: Final = 10.0
_ASK_S: Final = 1.0
# How long an attempt waits for a copy to be there before it is asked anew whether it is still wanted.
_NOBODY_S: Final = 2.0
_DETAILS: Final = "grpc-status-details-bin"
# What gRPC itself ends a call with when the peer is gone. Our services put details into whatever they answer.
_OF_TRANSPORT: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


class GrpcAgentHost:
    """``AgentHost`` over every copy of agent_instance: each attempt goes where workers are free.

    Args:
        copies: Who is there.
        contexts: The contexts of runs, with tickets.
        tasks: Own the ends of calls, which nobody waits for.
        placed: Told where an attempt went, when there was a choice.
    """

    def __init__(
        self,
        copies: Copies,
        contexts: RunContexts,
        tasks: TaskOwner,
        placed: Callable[[StageStart, str], None] = lambda start, address: None,
        placement: Placement | None = None,
    ) -> None:
        self._copies = copies
        self._contexts = contexts
        self._tasks = tasks
        self._placed = placed
        self._placement = placement or Placement()

    @property
    def address(self) -> str:
        """See ``AgentHost``."""
        return "" if self._copies.several else self._copies.target

    async def catalogue(self) -> Catalogue:
        """See ``AgentHost``."""
        request = ai.ListAgentsRequest(context=self._contexts.asking())
        copy = random.choice(await self._there())  # noqa: S311 -- they all load the same agents
        return catalogue_from_proto(await ai_grpc.AgentInstanceServiceStub(copy.channel).ListAgents(request))

    @asynccontextmanager
    async def run_stage(self, start: StageStart) -> AsyncIterator[StageStream]:
        """See ``AgentHost``."""
        ready = {copy.address: copy for copy in await self._there()}
        address = self._placement.choose(list(ready))
        self._placement.began(address)
        try:
            with ready[address].used() as copy:
                if self._copies.several:
                    self._placed(start, address)
                async with self._attempt(copy, start) as stream:
                    yield stream
        except (UnavailableError, WorkersBusyError, WorkerLostError):
            self._placement.refused(address)
            raise
        finally:
            self._placement.ended(address)

    async def keep_asking(self) -> None:
        """Ask each copy how busy it is, once a second, until cancelled. With one copy there is nothing to choose."""
        while self._copies.several:
            ready = self._copies.ready()
            self._placement.forget([copy.address for copy in self._copies.known()])
            if len(ready) > 1:
                await asyncio.gather(*(self._ask(copy) for copy in ready))
            await asyncio.sleep(_ASK_S * random.uniform(0.9, 1.1))  # noqa: S311 -- spreads load, guards nothing

    async def _ask(self, copy: Copy) -> None:
        request = ai.GetLoadRequest(context=self._contexts.asking_again())
        # One that does not answer is judged by what is known of it, until health says that it is away.
        with suppress(CarrelError):
            load = await ai_grpc.AgentInstanceServiceStub(copy.channel).GetLoad(request, timeout=_ASK_S)
            self._placement.said(copy.address, busy=load.active + load.waiting, capacity=load.capacity)

    async def _there(self) -> list[Copy]:
        """Copies that an attempt may go to; the only one whatever its state, since its channel waits for it.

        Raises:
            UnavailableError: None is ready for a while.
        """
        if not self._copies.several:
            return self._copies.known()
        return await self._copies.wait_ready(_NOBODY_S)

    @asynccontextmanager
    async def _attempt(self, copy: Copy, start: StageStart) -> AsyncIterator[_Stream]:
        context = self._contexts.of(start.identity, start.deadline_at)
        # After a restart of the only agent_instance the channel may still be backing off; the silence limit bounds the
        # wait. Among copies another is tried.
        call = ai_grpc.AgentInstanceServiceStub(copy.channel).RunInstance(wait_for_ready=not self._copies.several)
        stream = _Stream(call, context, start.identity)
        try:
            await stream.begin(start)
            yield stream
        finally:
            if stream.answered:
                _ = self._tasks.start(stream.part(), "end of an attempt's call")
            else:
                call.cancel()


class _Stream:
    """``StageStream`` over one call."""

    def __init__(self, call: _Call, context: RunContext, identity: RunIdentity) -> None:
        self._call = call
        self._context = context
        self._identity = identity
        self.answered = False
        # What agent_instance has been given.
        self._ticket = ""
        # grpc.aio takes one write at a time.
        self._writing = asyncio.Lock()

    async def begin(self, start: StageStart) -> None:
        """Send the first message. Raises ``CarrelError`` when it is too large, or there is nobody to hear it."""
        context = self._context()
        self._ticket = context.ticket
        request = ai.RunInstanceRequest(context=context, start=start_to_proto(start))
        if (size := request.ByteSize()) > MAX_MESSAGE_BYTES:
            # gRPC would neither send it nor say so, and each further try would end the same.
            raise TooLargeError(
                f"what the attempt would begin with has {size} bytes; {MAX_MESSAGE_BYTES} can be sent",
                advice="let agents give, ask for and be asked less in one run: large values are for artifacts",
                limit="max_message_bytes",
                limit_value=MAX_MESSAGE_BYTES,
                use=size,
            )
        try:
            await self._call.write(request)
        except aio.AioRpcError as error:
            raise _broken_off(error) from None
        except asyncio.InvalidStateError:
            return  # over already: whoever reads it learns why

    async def __aiter__(self) -> AsyncIterator[Uplink]:
        try:
            # Not `read()`: once the call is over, that withholds what came before its end.
            async for response in self._call:
                message = uplink_from_proto(response, self._identity)
                if message is not None:
                    self.answered = isinstance(message, StageResult)
                    yield message
                # Heartbeats come every few seconds. The key that signed the former may be taken back at any moment.
                if self._context().ticket != self._ticket:
                    await self.send(RefreshTicket())
        except aio.AioRpcError as error:
            raise _broken_off(error) from None

    async def send(self, message: Downlink) -> None:
        """See ``StageStream``."""
        context = self._context()
        request, self._ticket = downlink_to_proto(message, context), context.ticket
        try:
            async with self._writing:
                # After the result there is nobody to hear it, and a write to a call that is over would fail the call.
                if not self.answered:
                    await self._call.write(request)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            # Whoever reads the stream learns why it ended.
            return
        except asyncio.CancelledError:
            # grpc.aio answers so, too, when the call is cancelled because the attempt is over.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise

    async def part(self) -> None:
        """Tell agent_instance, which waits for it, that the result has come, and let it end the call."""
        try:
            with suppress(aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(_PARTING_S):
                    async with self._writing:
                        await self._call.done_writing()
                    async for _ in self._call:
                        pass
        finally:
            self._call.cancel()


def _broken_off(error: aio.AioRpcError) -> CarrelError:
    """What agent_instance said; or, where the failure is gRPC's own (a peer that was killed can end a call with
    INTERNAL or UNKNOWN as well), that it is gone."""
    told = from_rpc_error(error)
    if error.code() in _OF_TRANSPORT and not any(key == _DETAILS for key, _ in error.trailing_metadata() or ()):
        return UnavailableError(told.message)
    return told
