"""The servicer: converts, calls the domain, converts back. ``RunSession`` is one ``RunInstance`` stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from grpc import aio

from carrel.context import UserExecutionContext
from carrel.errors import (
    CarrelError,
    IdentityMismatchError,
    InternalError,
    InvalidRequestError,
    PermissionDeniedError,
    TicketError,
)
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1 import agent_instance_pb2_grpc as pb_grpc
from servicekit.identity.principals import Principal, RunPrincipal, Scope
from servicekit.identity.tickets import TicketVerifier
from servicekit.logs import bind, get_logger, hash_user
from servicekit.rpc.context import current_principal
from servicekit.tasks import TaskOwner
from services.agent_instance import convert
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.core import Instance
from services.agent_instance.domain.events import EventProducer
from services.agent_instance.domain.stage import StageAttempt, StageServices
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import AuditEntry, BudgetUse, Caller, ChunkUp, JournalItem, StageStart

__all__ = ["AgentInstanceServicer", "RunSession", "StreamLimits"]

_log: Final = get_logger("agent_instance.service")
_ADMITS: Final = "execution"  # keeps users' limits, and signs the tickets of the runs that are within them
_RUN: Final = frozenset({Scope.RUN})
_QUEUED_MESSAGES: Final = 16
_MAX_GRACE_S: Final = 60.0
_END_S: Final = 5.0

MakeProducer = Callable[[str, UserExecutionContext, int, int], EventProducer]
_Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds: between heartbeats, for the first message, for an artifact to be stored, for the result to be read."""

    heartbeat_s: float = 5.0
    first_message_s: float = 10.0
    artifact_s: float = 30.0
    parting_s: float = 30.0


class RunSession:
    """One attempt on its stream: messages down to it, a bounded queue of messages up, and its end.

    Leaving it kills whatever still runs; nothing of the attempt is left afterwards. It is the domain's ``Uplink``.
    """

    def __init__(
        self,
        services: StageServices,
        instance: Instance,
        start: StageStart,
        caller: Caller,
        *,
        producer: EventProducer,
        limits: StreamLimits,
    ) -> None:
        self._caller = caller
        self._core = services.core
        self._instance = instance
        self._limits = limits
        self._up: asyncio.Queue[pb.RunInstanceResponse] = asyncio.Queue(_QUEUED_MESSAGES)
        self._desk = ArtifactDesk(self.chunk, timeout_s=limits.artifact_s)
        self._attempt = StageAttempt(services, instance, start, caller, producer=producer, uplink=self, desk=self._desk)
        self._tasks = TaskOwner(self._failed)
        self._failure: asyncio.Future[CarrelError] = asyncio.get_running_loop().create_future()
        self._runner: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._instance.end = self._end
        self._runner = self._tasks.start(self._run(), "attempt of a stage")
        _ = self._tasks.start(self._beat(), "heartbeats of an attempt")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.aclose()
        finally:
            await self._core.drop(self._instance)

    def listen(self, requests: AsyncIterator[pb.RunInstanceRequest], verify: Callable[[Any], Caller]) -> None:
        """Take the further messages down from here on, each verified before it counts."""
        self._listener = self._tasks.start(self._listen(requests, verify), "messages of execution")

    async def responses(self) -> AsyncGenerator[pb.RunInstanceResponse, None]:
        """Messages up, in order; the last one is the result.

        Raises:
            CarrelError: The stream cannot go on: a message down was refused.
        """
        while True:
            message = asyncio.ensure_future(self._up.get())
            signals: set[asyncio.Future[Any]] = {message, self._failure}
            try:
                await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    raise self._failure.result()
                response = message.result()
            finally:
                message.cancel()
            yield response
            if response.HasField("result"):
                return

    async def part(self) -> None:
        """Wait, after the result, until execution has closed its side, which it does when it has read the result.

        A call that ends while execution still writes to it fails at execution, and the result with it.
        """
        if self._listener is not None:
            await asyncio.wait({self._listener}, timeout=self._limits.parting_s)

    # The domain's Uplink.

    async def journal(self, item: JournalItem) -> None:
        """Send a journal entry."""
        await self._up.put(pb.RunInstanceResponse(journal_entry=convert.journal_entry(item)))

    async def audit(self, entry: AuditEntry) -> None:
        """Send an audit record."""
        await self._up.put(pb.RunInstanceResponse(audit_record=convert.audit_record(entry)))

    async def chunk(self, chunk: ChunkUp) -> None:
        """Send a piece of an artifact."""
        await self._up.put(pb.RunInstanceResponse(artifact_chunk=convert.artifact_chunk(chunk)))

    async def budget_use(self, use: BudgetUse) -> None:
        """Send tokens used."""
        await self._up.put(pb.RunInstanceResponse(budget_use=convert.budget_use(use)))

    async def _run(self) -> None:
        bind(run_id=self._caller.run_id, user=hash_user(self._caller.user_id))
        outcome = await self._attempt.run()
        # Not at the end of the call: how soon execution reads the result is no reason to hold a worker.
        _ = self._tasks.start(self._core.drop(self._instance), "release of an instance")
        await self._up.put(pb.RunInstanceResponse(result=convert.stage_result(outcome)))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._limits.heartbeat_s)
            beat = pb.Heartbeat(
                idle=convert.duration(self._attempt.idle_s),
                events_produced=self._attempt.events_produced,
                events_acknowledged=self._attempt.events_acknowledged,
            )
            await self._up.put(pb.RunInstanceResponse(heartbeat=beat))

    async def _listen(self, requests: AsyncIterator[pb.RunInstanceRequest], verify: Callable[[Any], Caller]) -> None:
        try:
            async for request in requests:
                self._down(request, verify(request))
        except CarrelError as error:
            if not self._failure.done():
                self._failure.set_result(error)

    def _down(self, request: pb.RunInstanceRequest, caller: Caller) -> None:
        first, now = self._caller.context, caller.context
        if (now.user_id, now.thread_id, now.run_id, now.request_id) != (
            first.user_id,
            first.thread_id,
            first.run_id,
            first.request_id,
        ):
            raise IdentityMismatchError("a message of another run on this run's stream", field="context")
        if now.ticket != self._caller.context.ticket:
            self._caller = caller
            self._attempt.refresh(caller)
        match request.WhichOneof("message"):
            case "cancel":
                grace = request.cancel.grace
                seconds = grace.ToNanoseconds() / 1e9 if request.cancel.HasField("grace") else None
                self._attempt.cancel(request.cancel.reason, None if seconds is None else min(seconds, _MAX_GRACE_S))
            case "artifact_stored":
                answer = convert.artifact_answer(request.artifact_stored, self._caller.run_id)
                self._desk.answered(request.artifact_stored.upload_id, answer)
            case "start":
                raise InvalidRequestError("an attempt is started once", advice="open another stream")
            case "refresh" | "journal_stored":
                pass
            case other:
                _log.warning("message is of no use to this version", message_kind=other)

    async def _end(self) -> None:
        """End the attempt from outside its stream, and wait for that."""
        self._attempt.cancel("the instance was released", 0.2)
        if self._runner is not None:
            await asyncio.wait({self._runner}, timeout=_END_S)

    def _failed(self, name: str, error: BaseException) -> None:
        if not self._failure.done():
            known = error if isinstance(error, CarrelError) else InternalError(f"the host failed at: {name}")
            self._failure.set_result(known)


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

    async def ListAgents(self, request: pb.ListAgentsRequest, context: _Context) -> pb.ListAgentsResponse:
        """The frozen registry."""
        registry, policy, isolation = self._core.registry, self._services.policy, self._core.isolation
        agents = [
            convert.agent_info(
                entry, policy.limits(entry, None), isolation(entry), await self._dependencies.missing(entry)
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
        return convert.pool_statistics(counts, self._verifier.identity_mismatch_total)

    async def RunInstance(
        self, request_iterator: AsyncIterator[pb.RunInstanceRequest], context: _Context
    ) -> AsyncIterator[pb.RunInstanceResponse]:
        """Run one attempt of one stage."""
        began = time.monotonic()
        first = await self._first(request_iterator)
        caller = self._verify(first)
        if first.WhichOneof("message") != "start":
            raise InvalidRequestError("the first message must be `start`", fields={"message": "must be start"})
        if caller.context.operation_depth:
            raise InvalidRequestError("a stage runs under the run's root request", fields={"context": "is a child's"})
        start = convert.stage_start(first.start)
        instance = await self._core.claim(caller, start.instance_id, start.agent_name)
        try:
            producer = self._make_producer(start.producer_id, caller.context, start.fence, start.attempt)
        except CarrelError:
            await self._core.drop(instance)
            raise
        creation = instance.creation_s if start.instance_id else time.monotonic() - began
        session = RunSession(self._services, instance, start, caller, producer=producer, limits=self._limits)
        async with session:
            yield _accepted(instance, creation)
            session.listen(request_iterator, self._verify)
            async with aclosing(session.responses()) as responses:
                async for response in responses:
                    yield response
            await session.part()

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


def _accepted(instance: Instance, creation_s: float) -> pb.RunInstanceResponse:
    accepted = pb.StageAccepted(
        instance_id=instance.instance_id, warm=instance.warm, creation_time=convert.duration(creation_s)
    )
    return pb.RunInstanceResponse(accepted=accepted)
