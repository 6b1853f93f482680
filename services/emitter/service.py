"""The emitter's RPCs: streams of items in, acknowledgements out; single notifications; counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

from grpc import aio

from carrel.errors import CarrelError, PermissionDeniedError, StaleFenceError, UnavailableError
from carrel.v1 import emitter_pb2, events_pb2
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2_grpc import EmitterServiceServicer
from servicekit.delivery import refusal_error
from servicekit.identity.revoked import RevokedTickets
from servicekit.rpc.context import current_principal
from servicekit.rpc.revoke import take_revocations
from servicekit.telemetry.tracing import current_span, is_sampled
from services.emitter.convert import known_ack, merged_ack, notification, refused_ack, statistics_response
from services.emitter.domain.guard import Guard, check_notifiable
from services.emitter.domain.intake import Intake
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics
from services.emitter.models import ProducerState

__all__ = ["AckStream", "EmitterServicer", "NotifyWaiter"]

MAX_ACKS: Final = 1000
# How often the log is asked for a run's fence for one notification: each time but the first, a holder has come since.
_FENCES: Final = 5
_FENCES_AGAIN_S: Final = 0.2
_Context: TypeAlias = aio.ServicerContext[Any, Any]
_Ack: TypeAlias = events_pb2.ProducerAck


class AckStream:
    """What one Emit stream has yet to hear: the latest word on each of its producers, however slowly it reads."""

    def __init__(self) -> None:
        self.producers: set[ProducerState] = set()
        self._acks: dict[tuple[str, str], _Ack] = {}
        self._wake = asyncio.Event()

    def known(self, producer: ProducerState) -> None:
        """Acknowledge what is known to be in the log."""
        self.forward(producer.user.user_id, producer.producer_id, known_ack(producer))

    def refused(self, user_id: str, producer_id: str, error: CarrelError, last_number: int) -> None:
        """Answer an item that was not taken."""
        self.forward(user_id, producer_id, refused_ack(user_id, producer_id, error, last_number))

    def forward(self, user_id: str, producer_id: str, ack: _Ack) -> None:
        """Pass an acknowledgement on as it is, or merged with one that has not been sent yet."""
        key = (user_id, producer_id)
        older = self._acks.get(key)
        self._acks[key] = ack if older is None else merged_ack(older, ack)
        self._wake.set()

    def wake(self) -> None:
        """Look whether there is a reason to end."""
        self._wake.set()

    async def wait(self) -> None:
        """Wait until something was said since the last ``take``."""
        await self._wake.wait()

    def take(self) -> list[_Ack]:
        """The next response's acknowledgements; empty when there are none."""
        if len(self._acks) <= MAX_ACKS:
            acks = list(self._acks.values())
            self._acks.clear()
            self._wake.clear()
            return acks
        keys = list(self._acks)[:MAX_ACKS]
        return [self._acks.pop(key) for key in keys]


class NotifyWaiter:
    """Waits for the log's word on one notification."""

    def __init__(self) -> None:
        self.producers: set[ProducerState] = set()
        self.done: asyncio.Future[_Ack] = asyncio.get_running_loop().create_future()

    def known(self, producer: ProducerState) -> None:
        """A repeat of what is in the log."""
        self.forward("", "", known_ack(producer))

    def refused(self, user_id: str, producer_id: str, error: CarrelError, last_number: int) -> None:
        """Not taken."""
        if not self.done.done():
            self.done.set_exception(error)

    def forward(self, user_id: str, producer_id: str, ack: _Ack) -> None:
        """The bridge's word."""
        if self.done.done():
            return
        if ack.through >= 1:
            self.done.set_result(ack)
        elif ack.HasField("refusal"):
            self.done.set_exception(refusal_error(ack.refusal))


class EmitterServicer(EmitterServiceServicer):
    """Serves ``carrel.v1.EmitterService``.

    Args:
        intake: Takes items.
        guard: Judges a notification before it is taken, so that its caller hears what is wrong with it.
        ledger: What is held.
        wake: Called when something new can be sent.
        counts: Messages to the bridge, identity mismatches, resends.
        fence_of: Asks the log for a run's fence: a notification never raises it.
        revoked: Learns what execution tells of revocations.
    """

    def __init__(  # noqa: PLR0913 -- what it is built of
        self,
        intake: Intake,
        guard: Guard,
        ledger: Ledger,
        statistics: Statistics,
        *,
        wake: Callable[[], None],
        counts: Callable[[], dict[str, int]],
        fence_of: Callable[[UserExecutionContext], Awaitable[int]],
        revoked: RevokedTickets | None = None,
    ) -> None:
        self._revoked = RevokedTickets() if revoked is None else revoked
        self._intake = intake
        self._guard = guard
        self._ledger = ledger
        self._statistics = statistics
        self._wake = wake
        self._counts = counts
        self._fence_of = fence_of
        self._streams: set[AckStream] = set()
        self._draining = False

    def end_streams(self) -> None:
        """Take nothing new, and end each stream once the log has what was taken on it."""
        self._draining = True
        for stream in self._streams:
            stream.wake()

    async def Emit(
        self, request_iterator: AsyncIterator[emitter_pb2.EmitRequest], _context: _Context
    ) -> AsyncIterator[emitter_pb2.EmitResponse]:
        """Take items, and acknowledge them as the log does."""
        stream = AckStream()
        self._streams.add(stream)
        reader = asyncio.create_task(self._read(request_iterator, stream), name="emit reader")
        reader.add_done_callback(lambda _: stream.wake())
        try:
            while True:
                acks = stream.take()
                if acks:
                    yield emitter_pb2.EmitResponse(acks=acks)
                    continue
                if self._draining:
                    reader.cancel()
                if reader.done() and (_failed(reader) or not self._ledger.pending_of(stream)):
                    break
                await stream.wait()
            if _failed(reader):
                reader.result()
        finally:
            self._streams.discard(stream)
            self._ledger.leave(stream)
            reader.cancel()
            await asyncio.wait({reader})

    async def _read(self, requests: AsyncIterator[emitter_pb2.EmitRequest], stream: AckStream) -> None:
        take, wake, clock = self._intake.take, self._wake, time.monotonic
        async for request in requests:
            now = clock()
            for item in request.items:
                take(item, stream, now)
            wake()

    async def Notify(self, request: emitter_pb2.NotifyRequest, _context: _Context) -> emitter_pb2.NotifyResponse:
        """Emit one event and return when it is in the log."""
        check_notifiable(request.event_type)
        data = self._guard.admit_data(request.event_type, request.data_json)
        for _ in range(_FENCES):
            fence = await self._fence_of(request.context)
            if request.fence > fence:
                raise PermissionDeniedError(
                    "a notification's fence is higher than the run's",
                    advice="leave fence out: the log knows the run's own",
                    field="fence",
                )
            try:
                return await self._notify(request, data, request.fence or fence)
            except StaleFenceError:
                # A caller that names a fence speaks of that holder. One that names none means the run: its holder has
                # written between the question and the append, the first one or a next one, and the log knows more now.
                if request.fence:
                    raise
        raise UnavailableError(
            "the run went from holder to holder while the notification was on its way",
            advice="send it again under the same idempotency_key",
            retry_after_s=_FENCES_AGAIN_S,
        )

    async def _notify(self, request: emitter_pb2.NotifyRequest, data: bytes, fence: int) -> emitter_pb2.NotifyResponse:
        traceparent = current_span().traceparent
        item = notification(request, data, fence, traceparent if is_sampled(traceparent) else "")
        waiter = NotifyWaiter()
        try:
            self._intake.take(item, waiter, time.monotonic(), notified=True)
            self._wake()
            ack = await waiter.done
        finally:
            self._ledger.leave(waiter)
        response = emitter_pb2.NotifyResponse(event_id=item.events[0].event_id)
        response.position.epoch = ack.epoch
        response.position.offset = ack.offset
        response.position.event_id = response.event_id if ack.offset else ""
        return response

    async def GetEmitterStatistics(
        self, request: emitter_pb2.GetEmitterStatisticsRequest, _context: _Context
    ) -> emitter_pb2.GetEmitterStatisticsResponse:
        """Counts since the start."""
        return statistics_response(self._statistics, self._ledger, **self._counts())

    async def Revoke(
        self, request: emitter_pb2.EmitterServiceRevokeRequest, _context: _Context
    ) -> emitter_pb2.EmitterServiceRevokeResponse:
        """Refuse these tickets from now on."""
        take_revocations(request, current_principal(), self._revoked)
        return emitter_pb2.EmitterServiceRevokeResponse()


def _failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None
