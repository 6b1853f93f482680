"""What the bridge's layer of the chain asks for, promises, may raise, and how quick it means to be."""

from __future__ import annotations

from typing import Final

from carrel.errors import (
    EventGapError,
    IdentityMismatchError,
    QueueFullError,
    SealedLogError,
    StaleFenceError,
    StoreUnavailableError,
    UnknownRunError,
)
from servicekit.contracts import Clause, FactoryLayerContract
from services.bridge.domain.links import Subscription

__all__ = ["bridge_contract"]


def _has_user(subscription: Subscription) -> bool:
    return bool(subscription.user and subscription.generation > 0)


def _has_position(subscription: Subscription) -> bool:
    return len(subscription.epoch) == 16 and subscription.cursor >= 0


_INPUT: Final = (
    Clause("a subscription is of a verified user and has a generation", _has_user),
    Clause("every item of a stream carries a context with a ticket of its own"),
)
_OUTPUT: Final = (
    Clause("a subscription that has begun has a place in its user's log", _has_position),
    Clause("an acknowledged event is durable, at one offset, for good"),
    Clause("a gateway gets each entry after its position once, in order, and no other user's"),
)


def bridge_contract() -> FactoryLayerContract:
    """The contract, with counts of its own; bounds in milliseconds."""
    return FactoryLayerContract(
        name="bridge_integration",
        input_requirements=_INPUT,
        output_guarantees=_OUTPUT,
        error_conditions=(
            IdentityMismatchError,
            EventGapError,
            StaleFenceError,
            SealedLogError,
            QueueFullError,
            StoreUnavailableError,
            UnknownRunError,
        ),
        performance_bounds={"subscribe": 5.0},
    )
