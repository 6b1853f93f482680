"""``AgentExecutor``: one worker for one attempt, behind a Protocol, so that agents and hosts do not notice its kind.

Host and worker meet in encoded messages only (``carrel.agent_messages``): whatever an implementation uses, no object
of the service is reachable from the worker's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from carrel.agents import Isolation
from carrel.errors import CarrelError
from services.agent_instance.domain.registry import AgentEntry

__all__ = ["AgentExecutor", "ExecutorFactory"]


class AgentExecutor(Protocol):
    """One worker. It is started without an agent (warm), given one attempt, and never used again.

    Guarantees: messages arrive in order and whole. ``kill`` and ``aclose`` are legal at any time, also before ``start``
    and more than once. After ``kill`` returns, nothing the worker sends is received any more, and nothing of it is
    left: no process, descriptor, task or file.
    """

    isolation: ClassVar[Isolation]

    async def start(self) -> None:
        """Make the worker ready to take any agent.

        Raises:
            WorkerLostError: It cannot be made.
        """

    async def initialize(self, entry: AgentEntry) -> None:
        """Give it the agent class to serve; it waits for the host's first message.

        Raises:
            WorkerLostError: It is gone.
        """

    async def send(self, message: bytes) -> None:
        """Send one message to the worker; waits while its inbox is full. A worker that has ended hears nothing.

        Raises:
            ProtocolError: The message is over the bound of a frame.
        """

    async def receive(self) -> bytes | None:
        """The worker's next message; None once it has ended and everything it sent has been received."""
        ...

    @property
    def loss(self) -> CarrelError:
        """Why it ended without a word; valid once ``receive`` gave None.

        ``WorkerLostError`` (it died, and may be tried again), ``WorkerLimitError`` (it used more than it may; ``limit``
        is memory, cpu or files) or ``ProtocolError`` (what it sent was no frame).
        """
        ...

    @property
    def output(self) -> bytes:
        """What it has written to standard output and error so far, bounded: the first and last parts, with a line
        between them that says how much was left out. Still there after ``kill``. Empty when it is not captured."""
        ...

    async def join(self) -> None:
        """Wait until the worker has ended, whatever ended it."""

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Let it end by itself within the grace, then kill it; free everything."""

    async def kill(self) -> None:
        """End it now."""


ExecutorFactory = Callable[[], AgentExecutor]
