"""The way to the emitter: the process's one stream, and a producer of events for each attempt.

``domain.events.EventProducer`` is what the domain sees of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from carrel.context import UserExecutionContext
from carrel.errors import AlreadyExistsError, CarrelError
from carrel.v1.context_pb2 import UserExecutionContext as ContextMessage
from carrel.wire import context_to_proto
from servicekit.delivery import Outlet, Producer
from servicekit.telemetry.tracing import current_span, is_sampled

__all__ = ["StageProducer"]


class StageProducer:
    """One attempt's producer: takes contexts as the domain has them.

    Raises:
        AlreadyExistsError: A producer of this id is at work for this user.
    """

    def __init__(
        self, outlet: Outlet, producer_id: str, context: UserExecutionContext, *, fence: int, attempt: int
    ) -> None:
        try:
            self._producer = Producer(outlet, producer_id, context_to_proto(context), fence=fence, attempt=attempt)
        except ValueError:
            raise AlreadyExistsError(
                "this attempt of the stage is at work here already", advice="wait for its end, or raise the attempt"
            ) from None
        # Of the attempt; what is current when an event is emitted may say it more closely.
        self._traceparent = current_span().traceparent
        self._child: tuple[UserExecutionContext, ContextMessage] | None = None

    @property
    def dead(self) -> asyncio.Future[CarrelError]:
        """Resolves with the error that ended it for good."""
        return self._producer.dead

    @property
    def emitted(self) -> int:
        """The number of the last event."""
        return self._producer.emitted

    @property
    def acknowledged(self) -> int:
        """The number of the last event that the log has."""
        return self._producer.acknowledged

    @property
    def hops(self) -> tuple[float, float]:
        """Seconds that the last acknowledged events were at the emitter, and at the bridge."""
        return self._producer.hops

    async def emit(
        self, event_type: str, data: Mapping[str, Any], *, agent_name: str, context: UserExecutionContext | None
    ) -> int:
        """Number an event and send it; waits while too many are unacknowledged."""
        message = None if context is None else self._message(context)
        traceparent = current_span().traceparent or self._traceparent
        if not is_sampled(traceparent):
            traceparent = ""
        return await self._producer.emit(
            event_type, data, agent_name=agent_name, context=message, traceparent=traceparent
        )

    async def flush(self, timeout: float | None) -> int:
        """Wait until the log has everything."""
        return await self._producer.flush(timeout)

    def refresh(self, context: UserExecutionContext) -> None:
        """Send under this context, with its fresher ticket."""
        self._producer.refresh(context_to_proto(context))

    async def aclose(self) -> None:
        """Stop sending."""
        await self._producer.aclose()

    def _message(self, context: UserExecutionContext) -> ContextMessage:
        # One is enough: a child speaks several times in a row, and the producer joins events of the same message.
        if self._child is None or self._child[0] is not context:
            self._child = (context, context_to_proto(context))
        return self._child[1]
