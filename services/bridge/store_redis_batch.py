"""One call of ``append`` on its way: what is sent to which server, the answers gathered, replicas waited for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from carrel.errors import StoreUnavailableError
from servicekit.logs import get_logger, hash_user
from services.bridge.models import Append, AppendResult, Refusal, RefusalReason
from services.bridge.store_redis_connection import Taker
from services.bridge.store_redis_errors import is_of_one_log, refused
from services.bridge.store_redis_keys import Keys
from services.bridge.store_redis_nodes import Node, NodeSet
from services.bridge.store_redis_scripts import script_call

__all__ = ["AppendBatch", "AppendParcel"]

# A script holds up everybody else: some appends at a time, and no further one beyond so many bytes.
_PARCEL_APPENDS: Final = 16
_PARCEL_BYTES: Final = 128 << 10
_FAILED: Final = AppendResult(0, "", 0, (), Refusal(RefusalReason.FAILED, 0))

_log = get_logger("services.bridge")


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

    def took_all(self, indexes: Sequence[int], answers: Any) -> None:
        """The answer of a script: one for each of these appends, or an error for all of them."""
        alike = isinstance(answers, Exception)
        for n, index in enumerate(indexes):
            self.took(index, answers if alike else answers[n])

    def took(self, index: int, answer: Any) -> None:
        """An append's answer: what is wrong with one user's log fails that append, any other error the batch."""
        if not isinstance(answer, Exception):
            try:
                self._answers[index] = self._result_of(self._appends[index], answer)
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                self._fail(index, error)
        elif is_of_one_log(answer):
            self._fail(index, answer)
        else:
            self._current.note(answer)
            self._error = self._error or refused(answer)
        self._left -= 1
        if self._left == 0:
            self.finish()

    def _fail(self, index: int, error: Exception) -> None:
        # Only the code: what follows may quote a command, and so an event.
        reason = "WRONGTYPE" if "WRONGTYPE" in str(error) else type(error).__name__
        _log.error("a user's keys in Redis cannot be used", user=hash_user(self._appends[index].user), reason=reason)
        self._answers[index] = _FAILED

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


class AppendParcel:
    """Appends of one batch that go to one server, in as few calls of the script as is good for the others.

    Args:
        node: The server.
        shared: The arguments that are the same for all of them.
        batch: Who gets the answers.
    """

    __slots__ = ("_arguments", "_batch", "_bytes", "_indexes", "_names", "_node", "_packed", "_shared", "_takers")

    def __init__(self, node: Node, shared: tuple[str | int, ...], batch: AppendBatch) -> None:
        self._node = node
        self._shared = shared
        self._batch = batch
        self._packed: list[bytes] = []
        self._takers: list[Taker] = []
        self._begin()

    def add(self, index: int, append: Append, keys: Keys, known: tuple[str, int, str] | None) -> None:
        """One more; ``known`` is the newest position of the user's log that is known here."""
        self._names += (keys.stream, keys.meta, keys.run(append.run_id), keys.producer(append.producer_id))
        self._indexes.append(index)
        flags = ("t" if append.terminal else "") + ("n" if append.notified else "") + ("g" if append.gap else "")
        count = len(append.events)
        self._arguments += (
            12 + 2 * (count + (append.gap is not None)),
            os.urandom(8).hex(),
            append.thread_id,
            append.run_id,
            append.producer_id,
            append.fence,
            append.first_number,
            append.first_number + count - 1,
            flags,
            keys.channel,
            *(known or ("", 0, "")),
        )
        if append.gap is not None:
            self._arguments += append.gap
        for event in append.events:
            self._arguments += event
            self._bytes += len(event.blob)
        if len(self._indexes) >= _PARCEL_APPENDS or self._bytes >= _PARCEL_BYTES:
            self._end()

    def send(self) -> None:
        """Send them; when that is not possible, that is their answer."""
        if self._indexes:
            self._end()
        try:
            self._node.writes.send(self._packed, self._takers)
        except StoreUnavailableError as error:
            for taker in self._takers:
                taker(error)

    def _begin(self) -> None:
        self._names: list[str] = []
        self._arguments: list[str | bytes | int] = list(self._shared)
        self._indexes: list[int] = []
        self._bytes = 0

    def _end(self) -> None:
        self._packed.append(script_call("append", self._names, *self._arguments))
        self._takers.append(partial(self._batch.took_all, self._indexes))
        self._begin()
