"""``RunSession``: one ``RunInstance`` stream, from its place in the queue for a worker to its last message.

What runs on it is ``domain.stage``'s; who may open one is ``service``'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from carrel.context import UserExecutionContext
from carrel.errors import (
    CancelledRunError,
    CarrelError,
    DrainingError,
    IdentityMismatchError,
    InternalError,
    InvalidRequestError,
)
from carrel.v1 import agent_instance_pb2 as pb
from servicekit.logs import bind, get_logger, hash_user
from servicekit.tasks import TaskOwner
from servicekit.telemetry.names import AGENT, ATTEMPT, STAGE, of_run
from servicekit.telemetry.tracing import current_span
from services.agent_instance import convert
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.core import Instance
from services.agent_instance.domain.events import EventProducer
from services.agent_instance.domain.receipts import Receipt, Receipts
from services.agent_instance.domain.stage import StageAttempt, StageServices
from services.agent_instance.models import (
    AuditEntry,
    BudgetGrant,
    BudgetUse,
    Caller,
    ChunkUp,
    JournalItem,
    StageOutcome,
    StageStart,
)

__all__ = ["MakeProducer", "RunSession", "StreamLimits"]

_log: Final = get_logger("agent_instance.service")
_QUEUED_MESSAGES: Final = 16
_MAX_GRACE_S: Final = 60.0
_END_S: Final = 5.0

MakeProducer = Callable[[str, UserExecutionContext, int, int], EventProducer]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds: between heartbeats, for the first message, for an artifact to be stored, for the result to be read."""

    heartbeat_s: float = 5.0
    first_message_s: float = 10.0
    artifact_s: float = 30.0
    parting_s: float = 30.0


class RunSession:
    """One attempt on its stream: messages down to it, a bounded queue of messages up, and its end.

    It waits its turn for a worker first, with heartbeats going up; a cancel, or the loss of the stream, leaves the
    queue. Leaving the session kills whatever still runs; nothing of the attempt is left afterwards. It is the domain's
    ``Uplink``.
    """

    def __init__(
        self,
        services: StageServices,
        start: StageStart,
        caller: Caller,
        make_producer: MakeProducer,
        limits: StreamLimits,
    ) -> None:
        # The call's, which tasks do not inherit.
        self._traceparent = current_span().traceparent
        self._caller = caller
        self._services = services
        self._core = services.core
        self._start = start
        self._make_producer = make_producer
        self._limits = limits
        self._up: asyncio.Queue[pb.RunInstanceResponse] = asyncio.Queue(_QUEUED_MESSAGES)
        self._receipts = Receipts()
        self._journaling = asyncio.Lock()
        self._desk = ArtifactDesk(self.chunk, timeout_s=limits.artifact_s)
        self._instance: Instance | None = None
        self._attempt: StageAttempt | None = None
        self._grant: BudgetGrant | None = None
        self._tasks = TaskOwner(self._failed)
        self._failure: asyncio.Future[CarrelError] = asyncio.get_running_loop().create_future()
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._runner: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._runner = self._tasks.start(self._run(), "attempt of a stage")
        _ = self._tasks.start(self._beat(), "heartbeats of an attempt")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.aclose()
        finally:
            if self._instance is not None:
                await self._core.drop(self._instance)

    def listen(self, requests: AsyncIterator[pb.RunInstanceRequest], verify: Callable[[Any], Caller]) -> None:
        """Take the further messages down from here on, each verified before it counts."""
        self._listener = self._tasks.start(self._listen(requests, verify), "messages of execution")

    async def responses(self) -> AsyncGenerator[pb.RunInstanceResponse, None]:
        """Messages up, in order; the last one is the result, or a question.

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
            if response.HasField("result") or response.HasField("input_required"):
                return

    async def part(self) -> None:
        """Wait, after the result, until execution has closed its side, which it does when it has read the result.

        A call that ends while execution still writes to it fails at execution, and the result with it.
        """
        if self._listener is not None:
            await asyncio.wait({self._listener}, timeout=self._limits.parting_s)

    def give_back(self) -> None:
        """End without a result, because this process ends: the attempt is to be made elsewhere."""
        self._failed("drain", DrainingError("agent_instance is shutting down", retry_after_s=0.0))

    # The domain's Uplink.

    async def journal(self, item: JournalItem) -> Receipt:
        """Send a journal entry."""
        # One after the other: what waits for room in the queue may be overtaken there, and an acknowledgement covers
        # every number up to its own.
        async with self._journaling:
            receipt = self._receipts.expect(item.number)
            await self._up.put(pb.RunInstanceResponse(journal_entry=convert.journal_entry(item)))
        self._check_open()
        return receipt

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
        with self._services.tracing.span("attempt", parent=self._traceparent) as span:
            if span.recording:
                start = self._start
                span.set({AGENT: start.agent_name, STAGE: start.stage_index, ATTEMPT: start.attempt})
                span.set(of_run(self._caller.user_id, self._caller.run_id))
            await self._attempted()

    async def _attempted(self) -> None:
        began = time.monotonic()
        try:
            with self._services.tracing.span("worker"):
                instance = await self._claimed()
        except CarrelError as error:
            self._failed("the claim of an instance", error)
            return
        if instance is None:
            cancelled = CancelledRunError(f"cancelled: {self._cancelled.result()}")
            outcome = StageOutcome(answered_by=self._start.agent_name, error=cancelled)
            await self._up.put(pb.RunInstanceResponse(result=convert.stage_result(outcome)))
            return
        self._instance = instance
        instance.end = self._end
        start, caller = self._start, self._caller
        try:
            producer = self._make_producer(start.producer_id, caller.context, start.fence, start.attempt)
        except CarrelError as error:
            self._failed("the producer of an attempt", error)
            return
        attempt = self._attempt = StageAttempt(
            self._services, instance, start, caller, producer=producer, uplink=self, desk=self._desk
        )
        if self._grant is not None:
            attempt.grant(self._grant)
        if self._cancelled.done():
            attempt.cancel(self._cancelled.result())
        creation_s = instance.creation_s if start.instance_id else time.monotonic() - began
        await self._up.put(_accepted(instance, creation_s))
        outcome = await attempt.run()
        # Not at the end of the call: how soon execution reads the result is no reason to hold a worker.
        _ = self._tasks.start(self._core.drop(instance), "release of an instance")
        await self._up.put(_last(outcome))

    async def _claimed(self) -> Instance | None:
        """The instance, when it is the attempt's turn; None when it is cancelled before."""
        start = self._start
        claim = asyncio.create_task(
            self._core.claim(self._caller, start.instance_id, start.agent_name), name="wait for a worker"
        )
        signals: set[asyncio.Future[Any]] = {claim, self._cancelled}
        wanted = False
        try:
            await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
            wanted = not self._cancelled.done()
            return claim.result() if wanted else None
        finally:
            if not claim.done():
                claim.cancel()
                await asyncio.wait({claim})
            if not wanted and not claim.cancelled() and claim.exception() is None:
                # The claim has ended well in the same moment, and nobody is there for it.
                await self._core.drop(claim.result())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._limits.heartbeat_s)
            attempt = self._attempt
            beat = pb.Heartbeat()
            if attempt is not None:
                beat = pb.Heartbeat(
                    idle=convert.duration(attempt.idle_s),
                    events_produced=attempt.events_produced,
                    events_acknowledged=attempt.events_acknowledged,
                )
            await self._up.put(pb.RunInstanceResponse(heartbeat=beat))

    async def _listen(self, requests: AsyncIterator[pb.RunInstanceRequest], verify: Callable[[Any], Caller]) -> None:
        try:
            async for request in requests:
                self._down(request, verify(request))
        except CarrelError as error:
            if not self._failure.done():
                self._failure.set_result(error)
        else:
            self._closed = True
            self._check_open()

    def _check_open(self) -> None:
        # Nothing will come down any more, so whoever waits for an acknowledgement would wait until the deadline.
        if self._closed and self._receipts.open:
            message = "the stream was closed before the journal was acknowledged"
            advice = "send JournalStored for each entry, and close the stream after the result"
            self._failed("the journal", InvalidRequestError(message, advice=advice))

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
            if self._attempt is not None:
                self._attempt.refresh(caller)
        match request.WhichOneof("message"):
            case "cancel":
                grace = request.cancel.grace
                seconds = max(grace.seconds + grace.nanos / 1e9, 0.0) if request.cancel.HasField("grace") else None
                self._cancel(request.cancel.reason, None if seconds is None else min(seconds, _MAX_GRACE_S))
            case "budget_grant":
                self._grant = convert.budget_grant(request.budget_grant)
                if self._attempt is not None:
                    self._attempt.grant(self._grant)
            case "artifact_stored":
                answer = convert.artifact_answer(request.artifact_stored, self._caller.run_id)
                self._desk.answered(request.artifact_stored.upload_id, answer)
            case "start":
                raise InvalidRequestError("an attempt is started once", advice="open another stream")
            case "journal_stored":
                self._receipts.stored(request.journal_stored.through)
            case "refresh":
                pass
            case other:
                _log.warning("message is of no use to this version", message_kind=other)

    def _cancel(self, reason: str, grace_s: float | None) -> None:
        if not self._cancelled.done():
            self._cancelled.set_result(reason)
        if self._attempt is not None:
            self._attempt.cancel(reason, grace_s)

    async def _end(self) -> None:
        """End the attempt from outside its stream, and wait for that."""
        self._cancel("the instance was released", 0.2)
        if self._runner is not None:
            await asyncio.wait({self._runner}, timeout=_END_S)

    def _failed(self, name: str, error: BaseException) -> None:
        if not self._failure.done():
            known = error if isinstance(error, CarrelError) else InternalError(f"the host failed at: {name}")
            self._failure.set_result(known)


def _accepted(instance: Instance, creation_s: float) -> pb.RunInstanceResponse:
    accepted = pb.StageAccepted(
        instance_id=instance.instance_id, warm=instance.warm, creation_time=convert.duration(creation_s)
    )
    return pb.RunInstanceResponse(accepted=accepted)


def _last(outcome: StageOutcome) -> pb.RunInstanceResponse:
    if outcome.question is not None:
        required = convert.input_required(outcome.question, outcome.events_through)
        return pb.RunInstanceResponse(input_required=required)
    return pb.RunInstanceResponse(result=convert.stage_result(outcome))
