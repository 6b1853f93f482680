"""Messages of the contract to what the domain knows and back; nothing is decided here."""

from __future__ import annotations

import hashlib
from typing import Final

from carrel.errors import CarrelError
from carrel.v1 import emitter_pb2, events_pb2
from servicekit.delivery import reason_of, refusal_of
from servicekit.rpc.contracts import contract_to_proto
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics
from services.emitter.models import ProducerState, Refused

__all__ = [
    "known_ack",
    "merged_ack",
    "notification",
    "notify_producer",
    "reason_name",
    "refused_ack",
    "refused_of",
    "statistics_response",
]

MAX_PRODUCER_ID: Final = 200
_REWINDS: Final = frozenset({events_pb2.REFUSAL_REASON_GAP, events_pb2.REFUSAL_REASON_OVERLOADED})


def reason_name(error: CarrelError) -> str:
    """The RefusalReason of an error, by name."""
    return events_pb2.RefusalReason.Name(reason_of(error))


def refused_of(ack: events_pb2.ProducerAck) -> Refused:
    """What a refusal of the bridge asks for."""
    refusal = ack.refusal
    return Refused(
        refusal.last_number, refusal.reason in _REWINDS, refusal.reason == events_pb2.REFUSAL_REASON_GAP, ack.fence
    )


def known_ack(producer: ProducerState) -> events_pb2.ProducerAck:
    """The acknowledgement of what is known to be in the log."""
    return events_pb2.ProducerAck(
        user_id=producer.user.user_id,
        producer_id=producer.producer_id,
        through=producer.acked,
        offset=producer.offset,
        epoch=producer.epoch,
    )


def refused_ack(user_id: str, producer_id: str, error: CarrelError, last_number: int) -> events_pb2.ProducerAck:
    """The answer to an item that was not taken."""
    return events_pb2.ProducerAck(user_id=user_id, producer_id=producer_id, refusal=refusal_of(error, last_number))


def merged_ack(older: events_pb2.ProducerAck, newer: events_pb2.ProducerAck) -> events_pb2.ProducerAck:
    """Two words on one producer as one: the furthest progress, and a refusal if either has one."""
    if newer.through >= older.through and (newer.HasField("refusal") or not older.HasField("refusal")):
        return newer
    merged = events_pb2.ProducerAck()
    merged.CopyFrom(older if older.through > newer.through else newer)
    source = newer if newer.HasField("refusal") else older
    if source.HasField("refusal"):
        merged.refusal.CopyFrom(source.refusal)
        merged.fence = source.fence
    return merged


def notify_producer(run_id: str, key: str) -> str:
    """The producer of a notification: one of its own for each key, so that a repeat is a duplicate to the log."""
    plain = f"notify:{run_id}:{key}"
    if len(plain) <= MAX_PRODUCER_ID and ":" not in run_id:
        return plain
    return "notify:" + _digest(run_id, key)


def notification(
    request: emitter_pb2.NotifyRequest, data: bytes, fence: int, traceparent: str = ""
) -> events_pb2.ProducerEvents:
    """A notification as an item like any other, the same one at each repeat but for its time and trace."""
    run_id, key = request.context.run_id, request.idempotency_key
    item = events_pb2.ProducerEvents(context=request.context, producer_id=notify_producer(run_id, key), fence=fence)
    event = item.events.add(
        event_id=f"ntf-{_digest(run_id, key)}",
        number=1,
        event_type=request.event_type,
        agent_name=request.agent_name,
        data=data,
        traceparent=traceparent,
    )
    event.timestamp.GetCurrentTime()
    return item


def statistics_response(
    statistics: Statistics, ledger: Ledger, *, batches: int, mismatches: int, retries: int
) -> emitter_pb2.GetEmitterStatisticsResponse:
    """The counts as the contract names them."""
    response = emitter_pb2.GetEmitterStatisticsResponse(
        emitters_active=ledger.queue.users_active,
        emitters_created=ledger.queue.users_created,
        events_sent=statistics.events_sent,
        events_rejected=statistics.events_rejected,
        items_refused=statistics.refused,
        batches=batches,
        queued_events=ledger.queue.events,
        queued_bytes=ledger.queue.bytes,
        identity_mismatch_total=mismatches,
        delivery_retries=retries,
    )
    response.contract.CopyFrom(contract_to_proto(ledger.contract))
    response.delivery_p50.FromNanoseconds(int(statistics.delay(0.5) * 1e9))
    response.delivery_p95.FromNanoseconds(int(statistics.delay(0.95) * 1e9))
    return response


def _digest(run_id: str, key: str) -> str:
    return hashlib.blake2s(f"{run_id}\0{key}".encode(), digest_size=16).hexdigest()
