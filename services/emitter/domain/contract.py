"""What decides the clauses of the emitter layer's contract; its text is in ``servicekit.layers``."""

from __future__ import annotations

from servicekit.contracts import FactoryLayerContract
from servicekit.layers import layer_contract
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
    holds = {"needs.run": _is_of_a_run, "needs.numbers": _is_consecutive}
    return layer_contract("websocket_emitter", {**holds, "gives.fresh": _is_fresh})
