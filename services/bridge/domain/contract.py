"""What decides the clauses of the bridge layer's contract; its text is in ``servicekit.layers``."""

from __future__ import annotations

from servicekit.contracts import FactoryLayerContract
from servicekit.layers import layer_contract
from services.bridge.domain.links import Subscription

__all__ = ["bridge_contract"]


def _has_user(subscription: Subscription) -> bool:
    return bool(subscription.user and subscription.generation > 0)


def _has_position(subscription: Subscription) -> bool:
    return len(subscription.epoch) == 16 and subscription.cursor >= 0


def bridge_contract() -> FactoryLayerContract:
    """The contract, with counts of its own; bounds in milliseconds."""
    return layer_contract("bridge_integration", {"needs.user": _has_user, "gives.position": _has_position})
