"""Where tools' bodies run: in the worker, on the host's word, or in the service for ``host=True``.

A body in the service gets the same ``AgentContext`` as one in a worker. It talks to the same host through a port that
hands messages over directly, so it is bound by the same checks and has no other way in.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from carrel.agent_calls import HostCalls
from carrel.agent_context import AgentContext
from carrel.agent_messages import DownMessage, ModelDelta, UpMessage
from carrel.errors import CancelledRunError, CarrelError, ToolError, ToolFailedError
from carrel.frozen import freeze
from carrel.tools import Tool
from servicekit.logs import get_logger
from services.agent_instance.domain.calls import ToolCall
from services.agent_instance.domain.contexts import Scope
from services.agent_instance.domain.told_errors import bounded_error

__all__ = ["HostBodies", "Reply", "end_task"]

_log: Final = get_logger("agent_instance.tools")

_LAST_S: Final = 0.02
Reply = Callable[[DownMessage], Awaitable[None]]
HandleMessage = Callable[[UpMessage, int, Reply], Awaitable[None]]
BodyEnded = Callable[[str, Any, CarrelError | None], Awaitable[None]]


async def end_task(task: asyncio.Task[Any], grace_s: float, what: str) -> bool:
    """Cancel a task and wait for its end, at most ``grace_s``; False when it is abandoned, which is logged."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            _log.error("it ignores its cancellation and is abandoned", what=what, grace_s=grace_s)
            return False
    return True


class _Port:
    """The host's own end of a body's messages. It never receives: answers are delivered as they are given."""

    def __init__(self, handle: HandleMessage, source: int, reply: Reply) -> None:
        self._handle = handle
        self._source = source
        self._reply = reply

    async def send(self, message: UpMessage) -> None:
        await self._handle(message, self._source, self._reply)

    async def receive(self) -> DownMessage | None:
        return None


class HostBodies:
    """The bodies of one turn that run in the service.

    Args:
        handle: Takes a body's messages, as the worker's are taken; the number says which body they are from.
        ended: Told how a body ended.
        failed: Told when that itself failed.
        kill_s: How long a cancelled body may take to end before it is abandoned.
    """

    def __init__(
        self,
        handle: HandleMessage,
        ended: BodyEnded,
        failed: Callable[[str, BaseException], None],
        *,
        attempt: int,
        kill_s: float,
        seed: str = "",
        model: str = "",
    ) -> None:
        self._handle = handle
        self._ended = ended
        self._failed = failed
        self._attempt = attempt
        self._kill_s = kill_s
        self._seed = seed
        self._model = model
        self._cancelled_at: float | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sources = 0

    def start(self, call: ToolCall, scope: Scope) -> None:
        """Run the call's body in ``scope``."""
        self._sources += 1
        task = asyncio.create_task(self._run(call, scope, self._sources), name=f"host tool {call.tool.name}")
        self._tasks[call.call_id] = task
        task.add_done_callback(lambda done: self._done(call.call_id, done))

    async def stop(self, call: ToolCall) -> None:
        """Cancel the call's body and wait for it a little."""
        task = self._tasks.get(call.call_id)
        if task is not None and task is not asyncio.current_task():
            await end_task(task, self._patience(), f"the body of the tool {call.tool.name}")

    def cancel(self) -> None:
        """Cancel every body, without waiting; what ``stop`` and ``aclose`` wait for counts from here."""
        self._cancelled_at = time.monotonic()
        for task in self._tasks.values():
            task.cancel()

    async def aclose(self) -> None:
        """Cancel every body and wait for all of them a little."""
        tasks = [(call_id, task) for call_id, task in self._tasks.items() if task is not asyncio.current_task()]
        if tasks:
            if self._cancelled_at is None:
                self.cancel()
            await asyncio.wait([task for _, task in tasks], timeout=self._patience())
        for call_id, task in tasks:
            await end_task(task, _LAST_S, f"the body of the call {call_id}")

    def _patience(self) -> float:
        if self._cancelled_at is None:
            return self._kill_s
        return max(_LAST_S, self._kill_s - (time.monotonic() - self._cancelled_at))

    async def _run(self, call: ToolCall, scope: Scope, source: int) -> None:
        calls = HostCalls(_Port(self._handle, source, self._deliver_to(lambda: calls)))
        ctx = AgentContext(
            calls,
            scope.context,
            handle=scope.handle,
            tools=tuple(scope.tools),
            attempt=self._attempt,
            tool_call_id=call.call_id,
            seed=self._seed,
            model=self._model,
        )
        value, error = None, None
        try:
            value = await _value(call.tool, ctx, call)
        except asyncio.CancelledError:
            calls.abandon()
            raise
        # The edge between a tool's code and ours; SystemExit too, since a tool must not end the service.
        except (Exception, SystemExit) as raised:  # noqa: BLE001
            error = bounded_error(_tool_error(call.tool.name, raised))
        calls.abandon()
        await self._ended(call.call_id, value, error)

    def _done(self, call_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(call_id) is task:
            del self._tasks[call_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(task.get_name(), error)

    @staticmethod
    def _deliver_to(calls: Callable[[], HostCalls]) -> Reply:
        async def deliver(message: Any) -> None:
            if isinstance(message, ModelDelta):
                calls().deliver_piece(message)
            else:
                calls().deliver(message)

        return deliver


async def _value(tool: Tool, ctx: AgentContext, call: ToolCall) -> Any:
    arguments = tool.check_arguments(call.asked.arguments)
    result = await (tool.func(ctx, **arguments) if tool.wants_context else tool.func(**arguments))
    return freeze(result, "result")


def _tool_error(name: str, raised: BaseException) -> CarrelError:
    if isinstance(raised, ToolError | CancelledRunError):
        return raised
    if isinstance(raised, CarrelError):
        return ToolFailedError(
            f"tool {name}: {raised.message}", advice=raised.advice, tool_name=name, cause=raised.code
        )
    frames = traceback.extract_tb(raised.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    cause = type(raised).__name__
    _log.warning("host tool failed", tool=name, cause=cause, where=where)
    return ToolFailedError(f"tool {name} failed: {cause} at {where}", tool_name=name, cause=cause, where=where)
