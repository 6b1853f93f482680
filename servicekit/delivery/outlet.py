"""The producers of one process on their common stream to the emitter: who sends next, who hears which acknowledgement.

Producers take turns, one item each, so a busy run does not delay another. Nothing is stored here: producers hold their
events. Not the emitter's fairness among users, which lies behind the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from carrel.v1.emitter_pb2 import EmitRequest, EmitResponse
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.events_pb2 import ProducerAck, ProducerEvents
from servicekit.delivery.producer import Producer
from servicekit.delivery.stream import BidiCall, ReliableStream, StreamOptions, StreamStatistics, stream_age_s
from servicekit.rpc.copies import Copies, Rotation
from servicekit.tasks import FailureHandler, end_service

__all__ = ["ProducerStream"]


class ProducerStream:
    """The process's one stream to the emitter, on which any number of ``Producer`` send.

    Use it as an async context manager; close the producers (after ``flush``) before leaving it.

    Args:
        open_call: Starts the Emit call.
        on_state: Called with True when connected and False when the connection is lost.
        on_failure: Called when the stream ends by a fault of ours (never by the peer's).
    """

    def __init__(
        self,
        open_call: Callable[[], BidiCall[EmitRequest, EmitResponse]],
        *,
        options: StreamOptions | None = None,
        on_state: Callable[[bool], None] | None = None,
        on_failure: FailureHandler = end_service,
    ) -> None:
        self._producers: dict[tuple[str, str], Producer] = {}
        self._ready: deque[Producer] = deque()
        self._wake: Callable[[], None] = _nothing
        self._stream = ReliableStream(
            open_call,
            lambda items: EmitRequest(items=items),
            self,
            name="emitter",
            options=options,
            on_state=on_state,
            on_failure=on_failure,
        )

    @classmethod
    def to_emitters(cls, emitters: Copies, *, options: StreamOptions | None = None) -> Self:
        """The stream to the emitter; among several, to one after the other, so that each gets its share.

        Args:
            emitters: Where they are; to be left after the stream.
            options: By default those of ``StreamOptions``, with the age that fits how many there may be.
        """
        rotation = Rotation(emitters)
        options = options or StreamOptions(max_age_s=stream_age_s(emitters.target))
        return cls(lambda: EmitterServiceStub(rotation.channel()).Emit(), options=options)

    @property
    def connected(self) -> bool:
        """Whether the emitter can be reached now (for readiness; producers work on regardless)."""
        return self._stream.connected

    async def wait_connected(self) -> None:
        """Wait until the emitter can be reached."""
        await self._stream.wait_connected()

    @property
    def statistics(self) -> StreamStatistics:
        """Counts of the stream since its start."""
        return self._stream.statistics

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    # What producers call.

    def register(self, producer: Producer) -> None:
        """Route acknowledgements of this producer to it.

        Raises:
            ValueError: The user has a live producer of that id: two would number over each other.
        """
        key = (producer.user_id, producer.producer_id)
        if key in self._producers:
            raise ValueError("a producer of this id is at work already")
        self._producers[key] = producer

    def forget(self, producer: Producer) -> None:
        """Stop routing to it. Another producer that took over the id since is left alone."""
        key = (producer.user_id, producer.producer_id)
        if self._producers.get(key) is producer:
            del self._producers[key]

    def ready(self, producer: Producer) -> None:
        """The producer has something to send."""
        if not producer.queued:
            producer.queued = True
            self._ready.append(producer)
            self._wake()

    # What the stream calls (it is the stream's Source).

    def bind(self, wake: Callable[[], None]) -> None:
        """Learn how to wake the stream's writer."""
        self._wake = wake

    def restart(self) -> None:
        """Have every producer send again what it holds."""
        for producer in self._producers.values():
            if producer.restart():
                self.ready(producer)

    def take(self, max_items: int, max_bytes: int) -> Sequence[ProducerEvents]:
        """One item of each producer in turn."""
        ready, total = self._ready, 0
        items: list[ProducerEvents] = []
        while ready and len(items) < max_items and total < max_bytes:
            producer = ready.popleft()
            taken = producer.take()
            if taken is not None:
                items.append(taken[0])
                total += taken[1]
            producer.queued = taken is not None and producer.sendable
            if producer.queued:
                ready.append(producer)
        return items

    def acknowledge(self, acks: Iterable[ProducerAck]) -> None:
        """Pass each acknowledgement to its producer."""
        for ack in acks:
            producer = self._producers.get((ack.user_id, ack.producer_id))
            if producer is not None:
                producer.acknowledge(ack)


def _nothing() -> None:
    pass
