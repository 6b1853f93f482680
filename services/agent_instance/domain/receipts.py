"""What execution has not acknowledged yet of a stage's journal.

An agent that has the result of a call acts on it. Were its entry lost then, a repeated attempt would make the call
again although the agent had gone on. So a result is handed over only once its entry is durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

__all__ = ["Receipt", "Receipts", "durable"]

# Done when an entry is durable. Never fails: an attempt whose execution is gone ends, and with it who waits.
Receipt: TypeAlias = "asyncio.Future[None]"


class Receipts:
    """The entries of one attempt that execution has not acknowledged yet."""

    def __init__(self) -> None:
        self._open: deque[tuple[int, Receipt]] = deque()

    @property
    def open(self) -> int:
        """How many entries are on their way."""
        return len(self._open)

    def expect(self, number: int) -> Receipt:
        """This entry is about to be sent; entries are sent in the order of their numbers."""
        receipt: Receipt = asyncio.get_running_loop().create_future()
        self._open.append((number, receipt))
        return receipt

    def stored(self, through: int) -> None:
        """Execution has every entry up to this number. It says so of what was sent, never of what is to come."""
        while self._open and self._open[0][0] <= through:
            _, receipt = self._open.popleft()
            if not receipt.done():  # else nobody waits for it any more
                receipt.set_result(None)


async def durable(receipt: Receipt | None) -> None:
    """Wait until an entry is stored; at once for None, a call that is not journaled."""
    if receipt is not None:
        await receipt
