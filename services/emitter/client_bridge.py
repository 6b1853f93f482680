"""The one stream to the bridge: sends what the ledger holds, in the users' turns, and passes the log's word back."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from carrel.errors import NotFoundError
from carrel.v1.bridge_pb2 import PublishRequest, PublishResponse, ResolveRunRequest
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.events_pb2 import ProducerAck, ProducerEvents, RefusalReason
from servicekit.delivery import BidiCall, ReliableStream, StreamOptions
from servicekit.logs import get_logger
from servicekit.tasks import FailureHandler, end_service
from services.emitter.convert import refused_of
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics

__all__ = ["BridgeStream", "Publisher", "fence_reader"]

_log: Final = get_logger("services.emitter")
_MAX_MICROS: Final = (1 << 32) - 1

BridgeStream: TypeAlias = ReliableStream[PublishRequest, PublishResponse]


class Publisher:
    """The stream's source: what the ledger holds goes out, what the log says comes in."""

    def __init__(self, ledger: Ledger, statistics: Statistics, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._statistics = statistics
        self._clock = clock
        self._connections = 0
        self.wake: Callable[[], None] = _nothing

    @property
    def retries(self) -> int:
        """How often everything unacknowledged was sent again."""
        return max(0, self._connections - 1)

    def stream(
        self,
        open_call: Callable[[], BidiCall[PublishRequest, PublishResponse]],
        *,
        options: StreamOptions | None = None,
        on_state: Callable[[bool], None] | None = None,
        on_failure: FailureHandler = end_service,
    ) -> BridgeStream:
        """The stream that carries this source; enter it to begin."""
        return ReliableStream(
            open_call,
            lambda items: PublishRequest(items=items),
            self,
            name="bridge",
            options=options,
            on_state=on_state,
            on_failure=on_failure,
        )

    # What the stream calls.

    def bind(self, wake: Callable[[], None]) -> None:
        """Learn how to wake the stream's writer."""
        self.wake = wake

    def restart(self) -> None:
        """A new connection: what flew is sent again."""
        self._connections += 1
        self._ledger.restart()

    def take(self, max_items: int, max_bytes: int) -> Sequence[ProducerEvents]:
        """The next message's items, in the users' turns."""
        return [batch.payload for batch in self._ledger.queue.take(max_items, max_bytes)]

    def acknowledge(self, acks: Iterable[ProducerAck]) -> None:
        """What the log has, and what it refused."""
        now, unix = self._clock(), time.time()
        ledger, statistics = self._ledger, self._statistics
        for ack in acks:
            user_id, producer_id = ack.user_id, ack.producer_id
            producer, done = ledger.acknowledged(user_id, producer_id, ack.through, ack.offset, ack.epoch)
            if done:
                statistics.delivered(done, now, unix)
                ack.emitter_micros = min(int((now - done[-1].received) * 1_000_000), _MAX_MICROS)
            if producer is None:
                continue
            if ack.HasField("refusal"):
                statistics.refused[RefusalReason.Name(ack.refusal.reason)] += 1
                ledger.refused(producer, refused_of(ack), now)
            for listener in producer.listeners:
                listener.forward(user_id, producer_id, ack)
        # Acknowledgements open the windows.
        self.wake()


def fence_reader(bridge: BridgeServiceStub) -> Callable[[UserExecutionContext], Awaitable[int]]:
    """Asks the log for the highest fence it has seen of a context's run; 0 for a run it does not know."""

    async def fence_of(context: UserExecutionContext) -> int:
        try:
            run = await bridge.ResolveRun(ResolveRunRequest(context=context, run_id=context.run_id))
        except NotFoundError:
            return 0
        return run.fence

    return fence_of


def _nothing(*_: Any) -> None:
    pass
