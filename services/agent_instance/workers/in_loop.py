"""An executor that runs the agent as a task of the service's own loop. No isolation against a loop that never yields.

Its worker side is ``carrel.agent_runtime`` over two bounded pipes of encoded messages: bytes, so that no object of one
side, and nothing of another run, is reachable from the other. ``kill`` can only cancel; what ignores that is abandoned.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from typing import Any, ClassVar, Final, cast

from carrel.agent_codec import decode
from carrel.agent_messages import MAX_MESSAGE_BYTES, DownMessage, UpMessage
from carrel.agent_runtime import WorkerSession
from carrel.agents import Isolation
from carrel.errors import CarrelError, ProtocolError, UnknownAgentError, WorkerLostError
from servicekit.logs import get_logger
from services.agent_instance.domain.bodies import end_task
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.workers.framing import encode_fitting

__all__ = ["InLoopExecutor", "Pipe"]

_log: Final = get_logger("agent_instance.in_loop")
_PIPE_MESSAGES: Final = 16


class Pipe:
    """A bounded queue of messages with an end. Once closed it takes nothing; what is in it can still be read."""

    def __init__(self, limit: int = _PIPE_MESSAGES) -> None:
        self._limit = limit
        self._items: deque[bytes] = deque()
        self._closed = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Add a message; waits for room. Into a closed pipe it goes nowhere."""
        while len(self._items) >= self._limit and not self._closed:
            self._writable.clear()
            await self._writable.wait()
        if not self._closed:
            self._items.append(data)
            self._readable.set()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._items:
            if self._closed:
                return None
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._items.popleft()

    def close(self, *, discard: bool = False) -> None:
        """End it; ``discard`` also throws away what has not been read."""
        self._closed = True
        if discard:
            self._items.clear()
        self._readable.set()
        self._writable.set()


class _WorkerPort:
    """The worker's end of both pipes."""

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self._up = up
        self._down = down

    async def send(self, message: UpMessage) -> None:
        await self._up.put(encode_fitting(message))

    async def receive(self) -> DownMessage | None:
        data = await self._down.get()
        return None if data is None else cast(DownMessage, decode(data))


class InLoopExecutor:
    """``domain.executor.AgentExecutor`` in this loop.

    Args:
        kill_s: How long a cancelled agent may take before it is abandoned.
    """

    isolation: ClassVar[Isolation] = "task"
    limit: ClassVar[str] = "an agent that blocks its thread holds up every other run of this process"

    def __init__(self, *, kill_s: float = 0.5) -> None:
        self._kill_s = kill_s
        self._up = Pipe()
        self._down = Pipe()
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._started = self._killed = False

    async def start(self) -> None:
        """Nothing needs to be made ready but the pipes, which are."""
        self._started = True

    async def initialize(self, entry: AgentEntry) -> None:
        """Serve this agent class; a new instance of it is made for the attempt."""
        if not self._started or self._killed or self._task is not None:
            raise WorkerLostError("the worker cannot serve: not started, killed, or used before")

        def agents(name: str) -> Any:
            if name != entry.name:
                raise UnknownAgentError(f"this worker serves {entry.name}")
            return entry.cls

        session = WorkerSession(_WorkerPort(self._up, self._down), agents)
        # An empty context: the caller's principal, deadline and log fields, which live in context variables of the
        # service, are none of the agent's business.
        self._task = asyncio.create_task(session.serve(), name=f"agent {entry.name}", context=contextvars.Context())
        self._task.add_done_callback(self._ended)

    async def send(self, message: bytes) -> None:
        """Put a message into the worker's inbox."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ProtocolError("a message to a worker is over the bound of a frame")
        await self._down.put(message)

    async def receive(self) -> bytes | None:
        """The worker's next message; None once it has ended."""
        return await self._up.get()

    @property
    def loss(self) -> CarrelError:
        """The task has ended without a last message."""
        return WorkerLostError("the task that ran the agent is gone", advice="try again")

    @property
    def output(self) -> bytes:
        """Nothing: the service's own output is everybody's."""
        return b""

    async def join(self) -> None:
        """Wait for the end of the worker's task, or of the worker when it never had one."""
        await self._over.wait()

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Wait for the worker's task, then kill it."""
        if self._task is not None and not self._task.done() and grace_s > 0:
            await asyncio.wait({self._task}, timeout=grace_s)
        await self.kill()

    async def kill(self) -> None:
        """Cancel the task; abandon it, with an error in the log, when it does not end."""
        self._killed = True
        self._down.close(discard=True)
        self._up.close(discard=True)
        if self._task is not None:
            await end_task(self._task, self._kill_s, self._task.get_name())
        self._over.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._over.set()
        self._up.close()
        self._down.close(discard=True)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, CarrelError):
            _log.warning("worker ended early", agent=task.get_name(), code=error.code)
        else:
            _log.error("worker failed", agent=task.get_name(), error=error)
