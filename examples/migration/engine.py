"""The application's own engine: what a quote costs, and when a delivery can be. Plain functions and one table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["Engine", "price_of"]

_CENTS: Final = {"bolt": 12, "nut": 7, "washer": 3, "bracket": 240}
# From so many pieces on, so many per cent less.
_REBATES: Final = ((1000, 15), (100, 8), (10, 2))


def price_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The lines of a quote and their sum, in cents.

    Raises:
        ValueError: An article is unknown, or a count is none.
    """
    lines: list[dict[str, Any]] = []
    for item in items:
        sku, count = str(item.get("sku", "")), item.get("count", 0)
        if sku not in _CENTS:
            raise ValueError(f"there is no article {sku!r}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{sku}: a count is a whole number from 1 on")
        rebate = next((percent for least, percent in _REBATES if count >= least), 0)
        lines.append({"sku": sku, "count": count, "cents": _CENTS[sku] * count * (100 - rebate) // 100})
    return {"lines": lines, "cents": sum(int(line["cents"]) for line in lines)}


class Engine:
    """Runs in the application's process, one request beside the other, all in one loop."""

    def __init__(self) -> None:
        self.booked = 0

    async def quote(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A quote.

        Raises:
            ValueError: As ``price_of``.
        """
        await asyncio.sleep(0)
        return price_of(items)

    async def book(self, pieces: int) -> dict[str, Any]:
        """The next free delivery, which is taken from now on."""
        await asyncio.sleep(0)
        self.booked += 1
        return {"slot": self.booked, "vans": -(-pieces // 500)}
