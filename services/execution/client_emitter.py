"""A run's own events on their way to the log: one producer per run on the process's stream to the emitter."""

from __future__ import annotations

import orjson

from servicekit.delivery import Outlet, Producer, Row
from servicekit.telemetry.tracing import is_sampled
from services.execution.client_contexts import RunContexts
from services.execution.models import Micros, OutboxEvent, RunIdentity

__all__ = ["EmitterSink"]


class EmitterSink:
    """``EventSink`` over the stream to the emitter."""

    def __init__(self, outlet: Outlet, contexts: RunContexts) -> None:
        self._outlet = outlet
        self._contexts = contexts

    def outbox(self, identity: RunIdentity, fence: int, deadline_at: Micros) -> _Channel:
        """See ``EventSink``."""
        context = self._contexts.of(identity, deadline_at)
        producer = Producer(self._outlet, f"{identity.run_id}:outbox", context, fence=fence)
        return _Channel(producer, identity.traceparent if is_sampled(identity.traceparent) else "")


class _Channel:
    """``OutboxChannel`` over one producer."""

    def __init__(self, producer: Producer, traceparent: str) -> None:
        self._producer = producer
        # Events of a trace that is not kept need not carry it.
        self._traceparent = traceparent

    async def emit(self, event: OutboxEvent) -> None:
        """See ``OutboxChannel``."""
        row = Row(event.number, event.event_id, event.created_at * 1000)
        data = orjson.dumps(dict(event.data))
        await self._producer.emit(
            event.event_type, data, agent_name=event.agent_name, traceparent=self._traceparent, row=row
        )

    @property
    def hops(self) -> tuple[float, float]:
        """See ``OutboxChannel``."""
        return self._producer.hops

    async def settled(self) -> None:
        """See ``OutboxChannel``."""
        await self._producer.flush()

    async def aclose(self) -> None:
        """See ``OutboxChannel``."""
        await self._producer.aclose()
