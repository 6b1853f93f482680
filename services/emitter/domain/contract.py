"""What the emitter's layer of the chain asks for, promises, may raise, and how quick it means to be."""

from __future__ import annotations

from carrel.errors import (
    EventGapError,
    IdentityMismatchError,
    InvalidEventError,
    QueueFullError,
    SealedLogError,
    StaleFenceError,
    TicketError,
)
from servicekit.contracts import Clause, FactoryLayerContract
from services.emitter.models import Offer, ProducerState

__all__ = ["emitter_contract"]


def _is_of_a_run(offer: Offer) -> bool:
    return bool(offer.user_id and offer.run_id and offer.producer_id)


def _is_consecutive(offer: Offer) -> bool:
    return 1 <= offer.first <= offer.last


def _is_fresh(producer: ProducerState) -> bool:
    return bool(producer.user.user_id) and not producer.pending and producer.acked == 0


def emitter_contract() -> FactoryLayerContract:
    """The contract, with counts of its own; bounds in milliseconds."""
    return FactoryLayerContract(
        name="websocket_emitter",
        input_requirements=(
            Clause("an item is of a verified run and names its producer", _is_of_a_run),
            Clause("its numbers are consecutive, from 1", _is_consecutive),
            Clause("its events are of kinds that a producer may write; others are replaced by event_rejected"),
        ),
        output_guarantees=(
            Clause("a producer met for the first time shares nothing with another", _is_fresh),
            Clause("an event is acknowledged only when the log has it"),
            Clause("no secret that is known by its form leaves"),
            Clause("no user waits for another's flood longer than for a few hundred events"),
        ),
        error_conditions=(
            TicketError,
            IdentityMismatchError,
            InvalidEventError,
            QueueFullError,
            EventGapError,
            StaleFenceError,
            SealedLogError,
        ),
        performance_bounds={"create_emitter": 1.0},
    )
