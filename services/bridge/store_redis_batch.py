"""One call of ``append`` on its way: answers gathered, replicas waited for where a terminal event is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from carrel.errors import InternalError
from services.bridge.models import Append, AppendResult
from services.bridge.store_redis_connection import ReplyError
from services.bridge.store_redis_errors import refused
from services.bridge.store_redis_nodes import Node, NodeSet

__all__ = ["AppendBatch"]


class AppendBatch:
    """One call of ``append`` under way: its future ends when every answer is here.

    Args:
        current: The servers that were asked.
        appends: What was asked.
        result_of: Makes a result of an answer.
        settled: Told once, before the future ends.
    """

    __slots__ = ("_answers", "_appends", "_current", "_error", "_left", "_result_of", "_settled", "future", "waits")

    def __init__(
        self,
        current: NodeSet,
        appends: Sequence[Append],
        result_of: Callable[[Append, list[Any]], AppendResult],
        settled: Callable[[], None],
    ) -> None:
        self._current = current
        self._appends = appends
        self._result_of = result_of
        self._settled = settled
        self._answers: list[Any] = [None] * len(appends)
        self._left = len(appends)
        self._error: Exception | None = None
        self.waits: list[tuple[Node, str]] = []
        self.future: asyncio.Future[list[AppendResult]] = asyncio.get_running_loop().create_future()

    def took(self, index: int, answer: Any) -> None:
        """An append's answer."""
        if isinstance(answer, Exception):
            self._current.note(answer)
            self._error = self._error or _failure(answer)
        else:
            self._answers[index] = self._result_of(self._appends[index], answer)
        self._left -= 1
        if self._left == 0:
            self.finish()

    def finish(self) -> None:
        """All answers are here; wait for the replicas if that is asked."""
        if self.waits and self._error is None:
            waits, self.waits = self.waits, []
            self._left = len(waits)
            for node, key in waits:
                assert node.wait is not None
                node.wait.reached(key).add_done_callback(self._waited)
            return
        self._settled()
        if self.future.done():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._answers)

    def _waited(self, done: asyncio.Future[None]) -> None:
        if (error := done.exception()) is not None:
            assert isinstance(error, Exception)
            self._error = error
        self._left -= 1
        if self._left == 0:
            self.finish()


def _failure(error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, ReplyError) and text.startswith(("ERR user_script", "WRONGTYPE")):
        # What the script cannot take would be sent again for ever.
        return InternalError(f"the event log could not take this: {text.split(' ', 1)[0]}")
    return refused(error)
