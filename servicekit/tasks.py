"""Owned tasks: every task has an owner that cancels and awaits it, and a failing one is heard of.

Not a task group: one task's failure does not by itself cancel its sisters; what follows is the owner's ``on_failure``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

from servicekit.logs import get_logger
from servicekit.rpc.context import leave_call

__all__ = ["FailureHandler", "TaskOwner", "end_service", "failure_handler"]

T = TypeVar("T")
FailureHandler: TypeAlias = Callable[[str, BaseException], None]

_STUCK_AFTER_S: Final = 5.0
_log = get_logger("servicekit.tasks")

# Set by run_service for everything that the service starts, so that a failing task ends the process that relied on it.
failure_handler: ContextVar[FailureHandler | None] = ContextVar("servicekit_failure_handler", default=None)


def end_service(name: str, error: BaseException) -> None:
    """The default ``on_failure``: end the service in order; its supervisor starts it again."""
    handler = failure_handler.get()
    if handler is not None:
        handler(name, error)


class TaskOwner:
    """Starts tasks and does not outlive them.

        async with TaskOwner() as tasks:
            tasks.start(relay(), "outbox relay")

    A failing task is logged once and reported to ``on_failure(name, error)``. On leaving, all are cancelled and
    awaited.
    """

    def __init__(self, on_failure: FailureHandler = end_service) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def start(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run the coroutine as a task of this owner, outside the call that may be served now.

        Raises:
            RuntimeError: The owner is closed.
        """
        if self._closed:
            coro.close()
            raise RuntimeError(f"the owner of the task {name} is closed")
        # What outlives a call must not inherit its deadline, which would end the calls that the task makes.
        context = copy_context()
        context.run(leave_call)
        task = asyncio.create_task(coro, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def aclose(self) -> None:
        """Cancel every task and wait until each has ended. Idempotent."""
        self._closed = True
        current = asyncio.current_task()
        pending = {task for task in self._tasks if task is not current}
        for task in pending:
            task.cancel()
        while pending:
            _, pending = await asyncio.wait(pending, timeout=_STUCK_AFTER_S)
            for task in pending:
                # It swallowed the cancellation, or waits for something that does not end: say which, and ask again.
                _log.warning("task does not end", task=task.get_name())
                task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = _stray(task) if task.cancelled() else task.exception()
        if error is None:
            return
        _log.error("task failed", error=error, task=task.get_name())
        self._on_failure(task.get_name(), error)


def _stray(task: asyncio.Task[Any]) -> BaseException | None:
    """A cancellation that nobody asked of this task is a fault: what it awaited was cancelled (a call, a sister)."""
    if task.cancelling():
        return None
    return RuntimeError("ended by a cancellation of something that it waited for")
