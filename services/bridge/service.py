"""The servicer of ``BridgeService``: verifies, converts, asks the bridge, converts back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from grpc import aio

from carrel.errors import CarrelError, InternalError, InvalidRequestError, PermissionDeniedError, UnavailableError
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from servicekit.identity.principals import RunPrincipal, Scope, may_see_run, user_of
from servicekit.identity.revoked import RevokedTickets
from servicekit.identity.tickets import TicketVerifier
from servicekit.logs import get_logger
from servicekit.rpc.context import current_principal
from servicekit.rpc.contracts import contract_to_proto
from servicekit.rpc.revoke import take_revocations
from servicekit.telemetry.names import EVENTS
from servicekit.telemetry.tracing import NO_SPAN, NO_TRACING, Kind, Tracing
from services.bridge import convert
from services.bridge.domain.bridge import Bridge
from services.bridge.domain.links import GatewayLink
from services.bridge.domain.reading import ReadQuery
from services.bridge.models import Append, AppendResult, Bye, ResumePoint
from services.bridge.service_subscribers import Subscribers

__all__ = ["BridgeServicer"]

_RUN: Final = frozenset({Scope.RUN})
_USER: Final = frozenset({Scope.RUN, Scope.SESSION})
_SERVICE: Final = frozenset({Scope.SERVICE})
_IN_FLIGHT: Final = 32  # requests of one Publish stream whose commit is awaited
_MESSAGE_BYTES: Final = 512 << 10

_log = get_logger("services.bridge")
_Context = aio.ServicerContext[Any, Any]
_MAX_MICROS: Final = (1 << 32) - 1


class _Batch(NamedTuple):
    """One PublishRequest on its way: what the log was asked, and what was refused before."""

    appends: list[Append]
    future: asyncio.Future[list[AppendResult]] | None
    refused: list[events_pb2.ProducerAck]
    arrived: float = 0.0


class BridgeServicer(bridge_pb2_grpc.BridgeServiceServicer):
    """Serves the contract's ``BridgeService``.

    Args:
        bridge: What it serves.
        verifier: Verifies the contexts of streamed items; those of other requests the interceptor has verified.
        tracing: Makes a span of a message's way into the log.
        revoked: Learns what execution tells of revocations; ``verifier`` is made to ask it.
    """

    def __init__(
        self,
        bridge: Bridge,
        verifier: TicketVerifier,
        tracing: Tracing = NO_TRACING,
        revoked: RevokedTickets | None = None,
    ) -> None:
        self._bridge = bridge
        self._tracing = tracing
        self._verifier = verifier
        self._revoked = RevokedTickets() if revoked is None else revoked
        verifier.is_revoked = self._revoked.refuses
        self._events = verifier.alike()
        self._events.is_revoked = self._revoked.refuses_event
        self.subscribers = Subscribers(bridge.hub, self._revoked.refuses)
        self._revoked.on_change(self.subscribers.look)
        self._publishers: set[asyncio.Task[None]] = set()
        self._draining = False

    def end_streams(self, retry_after_s: float = 0.2) -> None:
        """End every stream in order: publishers after what they have sent, the others after what is queued."""
        self._draining = True
        self._bridge.hub.say_bye(Bye("the bridge is shutting down", retry_after_s))
        for reader in self._publishers:
            reader.cancel()

    async def Publish(
        self, request_iterator: AsyncIterator[bridge_pb2.PublishRequest], context: _Context
    ) -> AsyncIterator[bridge_pb2.PublishResponse]:
        """Append batches; reading goes on while commits are under way."""
        pipeline = _Pipeline()
        reader = asyncio.create_task(self._read_batches(request_iterator, pipeline), name="publish reader")
        # The end follows the last batch, whatever ended the reading.
        reader.add_done_callback(pipeline.close)
        self._publishers.add(reader)
        if self._draining:
            reader.cancel()
        try:
            while batches := await pipeline.settled():
                acks = _Acks()
                for batch in batches:
                    acks.add_batch(batch)
                yield bridge_pb2.PublishResponse(acks=acks.values())
            _raise_failure(reader)
        finally:
            self._publishers.discard(reader)
            reader.cancel()
            await asyncio.wait([reader])

    async def _read_batches(self, requests: AsyncIterator[bridge_pb2.PublishRequest], pipeline: _Pipeline) -> None:
        async for request in requests:
            await pipeline.put(self._batch_of(request))

    def _batch_of(self, request: bridge_pb2.PublishRequest) -> _Batch:
        arrived = time.perf_counter()
        appends: list[Append] = []
        refused: list[events_pb2.ProducerAck] = []
        verify = self._events.verify
        for item in request.items:
            try:
                principal = verify(item.context, _RUN)
                assert isinstance(principal, RunPrincipal)
                appends.append(convert.append_of(item, principal))
            except CarrelError as error:
                refused.append(convert.refused_ack(item.context.user_id, item.producer_id, item.fence, error))
            except Exception as error:  # noqa: BLE001 -- the stream is everybody's, and the item would come for ever
                _log.error("an item could not be judged", error=error)
                internal = InternalError("the item could not be judged")
                refused.append(convert.refused_ack(item.context.user_id, item.producer_id, item.fence, internal))
        if not appends:
            return _Batch(appends, None, refused)
        try:
            future = self._bridge.publish(appends)
            if self._tracing is not NO_TRACING:
                self._trace(request, appends, future)
            return _Batch(appends, future, refused, arrived)
        except CarrelError as error:
            refused += (convert.refused_ack(append.user, append.producer_id, append.fence, error) for append in appends)
            return _Batch([], None, refused)

    def _trace(
        self, request: bridge_pb2.PublishRequest, appends: list[Append], future: asyncio.Future[list[AppendResult]]
    ) -> None:
        # An item is one producer's, and so one run's: its first event's trace is that of all.
        texts = [item.events[0].traceparent for item in request.items if item.events]
        span = self._tracing.batch("append", texts, kind=Kind.CONSUMER)
        if span is NO_SPAN:
            return
        span.set({EVENTS: sum(len(append.events) for append in appends), "carrel.items": len(appends)})

        def settled(done: asyncio.Future[list[AppendResult]]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                span.fail(error.code if isinstance(error, CarrelError) else type(error).__name__)
            span.end()

        future.add_done_callback(settled)

    async def Attach(
        self, request_iterator: AsyncIterator[bridge_pb2.AttachRequest], context: _Context
    ) -> AsyncIterator[bridge_pb2.AttachResponse]:
        """A gateway's stream: subscriptions up, entries down."""
        hello = await anext(aiter(request_iterator), None)
        if hello is None:
            return
        self._verifier.verify(hello.context, _SERVICE)
        if not hello.HasField("hello"):
            raise InvalidRequestError("the first message of Attach must be hello", fields={"hello": "is missing"})
        hub = self._bridge.hub
        link = hub.attach(hello.hello.gateway_id)
        reader = asyncio.create_task(self._read_subscriptions(request_iterator, link), name="attach reader")
        reader.add_done_callback(lambda _: link.finish())
        _log.info("gateway attached", gateway=link.gateway_id)
        try:
            while items := await link.take(_MESSAGE_BYTES):
                yield convert.attach_response(items)
            _raise_failure(reader)
        finally:
            # A second cancellation (the client's, then the server's stop) may end any wait here, so all is told first.
            _log.info("gateway detached", gateway=link.gateway_id)
            reader.cancel()
            self.subscribers.detach(link)
            await hub.detach(link)
            await asyncio.wait([reader])

    async def _read_subscriptions(self, requests: AsyncIterator[bridge_pb2.AttachRequest], link: GatewayLink) -> None:
        async for request in requests:
            # Answers are queued too: a gateway that does not read them is not asked for more.
            await link.room()
            self._subscription(request, link)

    def _subscription(self, request: bridge_pb2.AttachRequest, link: GatewayLink) -> None:
        hub, kind = self._bridge.hub, request.WhichOneof("message")
        generation = _generation_of(request)
        try:
            principal = user_of(self._verifier.verify(request.context, _USER))
            user = principal.user_id
            if kind == "unsubscribe":
                hub.unsubscribe(link, user, generation)
                self.subscribers.remove(link, generation, user)
                return
            if kind == "renew":
                self.subscribers.renew(link, generation, principal)
                return
            if kind != "subscribe" or not generation:
                raise InvalidRequestError(
                    "after hello, Attach takes subscribe (with a generation), renew and unsubscribe"
                )
        except CarrelError as error:
            hub.refuse(link, request.context.user_id, generation, error)
            return
        subscribe = request.subscribe
        resume = convert.resume_of(subscribe.position) if subscribe.HasField("position") else None
        hub.subscribe(link, user, generation, resume, subscribe.connections)
        self.subscribers.add(link, generation, principal)

    async def ReadEvents(
        self, request: bridge_pb2.ReadEventsRequest, context: _Context
    ) -> AsyncIterator[bridge_pb2.ReadEventsResponse]:
        """The caller's log, or a run of it."""
        principal = user_of(current_principal())
        run_id = request.run_id
        if isinstance(principal, RunPrincipal):
            run_id = run_id or principal.run_id
        if run_id and not may_see_run(principal, run_id):
            raise _other_run()
        query = ReadQuery(
            user=principal.user_id,
            resume=_resume_of(request),
            run_id=run_id,
            keep=convert.entry_filter(run_id, request.thread_id),
            follow=request.follow,
            limit=request.limit,
        )
        try:
            async with aclosing(self._bridge.read(query)) as items:
                async for item in items:
                    yield convert.read_response(principal.user_id, item)
        except UnavailableError as error:
            self._bridge.monitor.note_failure(error)
            raise

    async def ResolveRun(
        self, request: bridge_pb2.ResolveRunRequest, context: _Context
    ) -> bridge_pb2.ResolveRunResponse:
        """A row of the thread-run map."""
        principal = user_of(current_principal())
        if not may_see_run(principal, request.run_id):
            raise _other_run()
        run, epoch = await self._bridge.resolve_run(principal.user_id, request.run_id)
        return convert.run_response(run, epoch, self._bridge.hub.connections(principal.user_id))

    async def Revoke(
        self, request: bridge_pb2.BridgeServiceRevokeRequest, context: _Context
    ) -> bridge_pb2.BridgeServiceRevokeResponse:
        """Refuse these tickets from now on, and end what reads under them."""
        take_revocations(request, current_principal(), self._revoked)
        return bridge_pb2.BridgeServiceRevokeResponse()

    async def GetState(self, request: bridge_pb2.GetStateRequest, context: _Context) -> bridge_pb2.GetStateResponse:
        """The integration state and counts."""
        response = convert.state_response(self._bridge, self._verifier.identity_mismatch_total)
        response.contract.CopyFrom(contract_to_proto(self._bridge.hub.contract))
        return response


class _Pipeline:
    """Batches between a stream's reader and its acknowledgements, in order, ``_IN_FLIGHT`` at most."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    async def put(self, batch: _Batch) -> None:
        """Add a batch, once there is room."""
        self._batches.append(batch)
        if batch.future is None:
            self._woken.set()
        else:
            # Not awaited by the stream: its end must not cancel what others wait for too, the fan-out.
            batch.future.add_done_callback(self._wake)
        while len(self._batches) >= _IN_FLIGHT:
            self._room.clear()
            await self._room.wait()

    async def settled(self) -> list[_Batch]:
        """The first batches that are settled, at least one; none when there will be no more."""
        batches = self._batches
        while True:
            settled: list[_Batch] = []
            while batches and ((future := batches[0].future) is None or future.done()):
                settled.append(batches.popleft())
            if settled:
                self._room.set()
                return settled
            if self._closed and not batches:
                return []
            self._woken.clear()
            await self._woken.wait()

    def close(self, _reader: object) -> None:
        """No further batch will come."""
        self._closed = True
        self._woken.set()

    def _wake(self, _future: object) -> None:
        self._woken.set()


class _Acks:
    """Acknowledgements of one response: the latest of each producer, and its first refusal unless it was overcome."""

    def __init__(self) -> None:
        self._acks: dict[tuple[str, str], events_pb2.ProducerAck] = {}

    def values(self) -> list[events_pb2.ProducerAck]:
        """What to send."""
        return list(self._acks.values())

    def add_batch(self, batch: _Batch) -> None:
        """The outcome of a settled batch."""
        for ack in batch.refused:
            self._add(ack.user_id, ack.producer_id, ack)
        if batch.future is None:
            return
        error = batch.future.exception()
        if error is None:
            micros = min(int((time.perf_counter() - batch.arrived) * 1_000_000), _MAX_MICROS)
            for append, result in zip(batch.appends, batch.future.result(), strict=True):
                self._add(append.user, append.producer_id, convert.ack_of(append, result, micros))
            return
        if not isinstance(error, CarrelError):
            raise error
        for append in batch.appends:
            self._add(
                append.user,
                append.producer_id,
                convert.refused_ack(append.user, append.producer_id, append.fence, error),
            )

    def _add(self, user: str, producer_id: str, ack: events_pb2.ProducerAck) -> None:
        known = self._acks.setdefault((user, producer_id), ack)
        if known is ack:
            return
        if ack.HasField("refusal"):
            if not known.HasField("refusal"):
                known.refusal.CopyFrom(ack.refusal)
        elif ack.through > known.refusal.last_number:
            known.ClearField("refusal")
        if ack.through > known.through:
            known.through, known.offset, known.epoch = ack.through, ack.offset, ack.epoch


def _generation_of(request: bridge_pb2.AttachRequest) -> int:
    kind = request.WhichOneof("message")
    if kind == "unsubscribe":
        return request.unsubscribe.generation
    return request.renew.generation if kind == "renew" else request.subscribe.generation


def _resume_of(request: bridge_pb2.ReadEventsRequest) -> ResumePoint | None:
    if not request.HasField("position"):
        return None
    point = convert.resume_of(request.position)
    # Offset 0 alone asks for everything that is kept, on every transport.
    return point if point.offset or point.epoch else None


def _raise_failure(reader: asyncio.Task[None]) -> None:
    if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
        raise error


def _other_run() -> PermissionDeniedError:
    return PermissionDeniedError("a run ticket answers for its own run only", advice="ask with a session ticket")
