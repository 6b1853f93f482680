"""Results of tool calls on their way to who called: in the order of their ends, each once its entry is durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from carrel.errors import CarrelError
from services.agent_instance.domain.activity import ActivityClock
from services.agent_instance.domain.calls import ToolCall
from services.agent_instance.domain.receipts import Receipt, durable

__all__ = ["Deliveries", "Result"]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """How a call ended, and the receipt that its caller has to wait for, if there is one."""

    call: ToolCall
    value: Any
    error: CarrelError | None
    receipt: Receipt | None


class Deliveries:
    """Results of one turn's tool calls on their way to who called: in the order in which the calls ended.

    Args:
        clock: Stands still while the first one waits for execution.
        deliver: Hands a result over.
        start: Starts a task that ends with the turn.
    """

    def __init__(
        self,
        clock: ActivityClock,
        deliver: Callable[[Result], Awaitable[None]],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._clock = clock
        self._deliver = deliver
        self._start = start
        self._waiting: deque[Result] = deque()
        self._dropped = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def add(self, result: Result) -> None:
        """Hand it over now when nothing has to be waited for, else later, without holding up who calls this."""
        durable_by_now = result.receipt is None or result.receipt.done()
        if self._dropped or (durable_by_now and not self._waiting):
            await self._deliver(result)
            return
        self._waiting.append(result)
        if len(self._waiting) == 1:
            self._start(self._hand_over(), "results that wait for the journal")

    def drop(self) -> list[ToolCall]:
        """Nobody waits for results any more, nor for what still comes; the calls of those that were on their way."""
        self._dropped = True
        calls = [result.call for result in self._waiting]
        self._waiting.clear()
        return calls

    async def _hand_over(self) -> None:
        while self._waiting:
            result = self._waiting[0]
            with self._clock.stopped():
                await durable(result.receipt)
            if not self._waiting:
                return  # dropped meanwhile
            await self._deliver(result)
            # Only now, so that a later one does not overtake it.
            if self._waiting:
                self._waiting.popleft()
