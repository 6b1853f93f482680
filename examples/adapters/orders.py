"""The orders of a small shop, and what can be done with them."""

from __future__ import annotations

from typing import Final

__all__ = ["INSTRUCTIONS", "find", "refund"]

INSTRUCTIONS: Final = (
    "You work at the order desk of a small shop. Look orders up with find_order. "
    "Refund an order with refund_order when the customer asks for that. Answer in one sentence."
)
_ORDERS: Final = {7: ("two lamps", "on its way, expected on Friday"), 8: ("a chair", "delivered on Monday")}


def find(number: int) -> str:
    """What the order is of and where it is, in words."""
    if number not in _ORDERS:
        return f"there is no order {number}"
    what, where = _ORDERS[number]
    return f"order {number} ({what}) is {where}"


def refund(number: int) -> str:
    """Pay the order back."""
    return f"order {number} is refunded" if number in _ORDERS else f"there is no order {number}"
