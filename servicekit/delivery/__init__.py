"""Delivery of events to the next hop, without loss: one stream per process and any number of producers on it.

    async with Copies("127.0.0.1:7001", "emitter") as emitters, ProducerStream.to_emitters(emitters) as stream:
        producer = Producer(stream, f"{run_id}:0:1", context, fence=fence, attempt=1)
        await producer.emit("agent_started", {"agent_name": "data"}, agent_name="data")
        await producer.flush(timeout=30)          # returns once the log has everything
        await producer.aclose()

``ReliableStream`` is the connection alone, for a process that holds its items itself (the emitter on its way to the
bridge). Not here: queues among users, sanitizing, the log.
"""

from servicekit.delivery.outlet import ProducerStream
from servicekit.delivery.producer import HARD_EVENT_BYTES, Outlet, Position, Producer, ProducerOptions, Row
from servicekit.delivery.refusals import reason_of, refusal_error, refusal_of, retry_after_s
from servicekit.delivery.stream import (
    BidiCall,
    ReliableStream,
    Source,
    StreamOptions,
    StreamStatistics,
    stream_age_s,
)
from servicekit.delivery.user_emitter import UserWebSocketEmitter

__all__ = [
    "HARD_EVENT_BYTES",
    "BidiCall",
    "Outlet",
    "Position",
    "Producer",
    "ProducerOptions",
    "ProducerStream",
    "ReliableStream",
    "Row",
    "Source",
    "StreamOptions",
    "StreamStatistics",
    "UserWebSocketEmitter",
    "reason_of",
    "refusal_error",
    "refusal_of",
    "retry_after_s",
    "stream_age_s",
]
