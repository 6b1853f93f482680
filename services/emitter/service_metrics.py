"""How the emitter's metrics are read: from its statistics, what it holds, and its stream to the bridge."""

from __future__ import annotations

import time

from servicekit.telemetry.meters import Meters
from services.emitter.client_bridge import BridgeStream, Publisher
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.statistics import Statistics

__all__ = ["observe_emitter"]


def observe_emitter(
    meters: Meters, statistics: Statistics, ledger: Ledger, publisher: Publisher, stream: BridgeStream
) -> None:
    """Register them all."""
    queue, read = ledger.queue, meters.read

    def age_s() -> float:
        oldest = queue.oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest

    read("carrel_emitters_created_total", lambda: queue.users_created)
    read("carrel_emitters_active", lambda: queue.users_active)
    read("carrel_events_sent_total", lambda: statistics.events_sent)
    read("carrel_events_failed_total", lambda: statistics.events_rejected)
    read("carrel_batches_total", lambda: stream.statistics.messages)
    meters.histogram("carrel_event_delivery_time_seconds", statistics.delivery_s)
    meters.histogram("carrel_event_log_latency_seconds", statistics.latency_s)
    read("carrel_items_refused_total", lambda: statistics.refused)
    read("carrel_unacknowledged_events", lambda: queue.events)
    read("carrel_unacknowledged_bytes", lambda: queue.bytes)
    read("carrel_unacknowledged_age_seconds", age_s)
    read("carrel_delivery_late_total", lambda: statistics.delivery_late)
    read("carrel_delivery_retries_total", lambda: publisher.retries)
    read("carrel_bridge_connected", lambda: int(stream.connected))
