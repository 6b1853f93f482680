"""Asking the host: numbers calls, pairs each with its answer, and gives up all of them at once when the run is over.

Used by ``AgentContext`` (asks) and ``WorkerSession`` (delivers answers); knows no transport but the port's two methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from carrel.agent_messages import (
    AgentReply,
    ArtifactStored,
    Ask,
    CallModel,
    CallTool,
    CancelCall,
    ChildOpened,
    DownMessage,
    EmitEvent,
    EventAccepted,
    InputReply,
    ModelDelta,
    ModelReply,
    OpenChild,
    PutArtifact,
    Refused,
    RunAgent,
    ToolReply,
    UpMessage,
)
from carrel.errors import ProtocolError, from_dict

__all__ = ["Answer", "HostCalls", "HostPort"]

Answer = EventAccepted | ToolReply | AgentReply | InputReply | ModelReply | ChildOpened | ArtifactStored | Refused
_A = TypeVar("_A", EventAccepted, ToolReply, AgentReply, InputReply, ModelReply, ChildOpened, ArtifactStored)
Call = EmitEvent | CallTool | RunAgent | Ask | CallModel | OpenChild | PutArtifact
# What goes on at the host for a caller that may leave while it does.
_AT_WORK = CallTool | RunAgent | Ask | CallModel


class HostPort(Protocol):
    """The worker's end of the way to its host.

    Messages arrive whole and in the order they were sent. ``send`` may be called from several tasks at once and waits
    while the host does not read: that is all the back-pressure there is.
    """

    async def send(self, message: UpMessage) -> None:
        """Pass one message up; waits for room."""

    async def receive(self) -> DownMessage | None:
        """The next message down; None once the host is gone."""
        ...


class HostCalls:
    """The calls of one worker that wait for the host's answer. ``over``: the run is, and nothing can be asked."""

    def __init__(self, port: HostPort) -> None:
        self._port = port
        self._last = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._listeners: dict[int, Callable[[str], None]] = {}
        self.over = False

    def next_id(self) -> int:
        """A call's number, never used before in this worker."""
        self._last += 1
        return self._last

    async def tell(self, message: UpMessage) -> None:
        """Send a message that has no answer.

        Raises:
            asyncio.CancelledError: The run is over.
        """
        if self.over:
            raise asyncio.CancelledError("the run is over")
        await self._port.send(message)

    async def ask(self, message: Call, answer: type[_A]) -> _A:
        """Send a call and wait for its answer.

        Raises:
            CarrelError: What the host refused it with, as the same class.
            ProtocolError: It answered with another type.
            asyncio.CancelledError: The run is over, or the caller was cancelled.
        """
        future = self.expect(message.call_id)
        try:
            await self.tell(message)
            return await self.answer(future, answer)
        except asyncio.CancelledError:
            # A tool may be at work for a caller that has left (`asyncio.timeout` around it); the rest ends by itself.
            if isinstance(message, _AT_WORK) and not self.over:
                await self._port.send(CancelCall(message.call_id))
            raise
        finally:
            self.forget(message.call_id)

    def expect(self, call_id: int) -> asyncio.Future[Answer]:
        """Where the answer to this call will appear; for calls of several messages. Pair with ``forget``."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        return future

    def forget(self, call_id: int) -> None:
        """Nobody waits for this call any more."""
        self._listeners.pop(call_id, None)
        future = self._waiting.pop(call_id, None)
        if future is not None:
            future.cancel()

    async def answer(self, future: asyncio.Future[Answer], kind: type[_A]) -> _A:
        """Wait for an answer and check its type; raises as ``ask`` does."""
        reply = await future
        if isinstance(reply, Refused):
            raise from_dict(reply.error)
        if not isinstance(reply, kind):
            raise ProtocolError(f"the host answered with {type(reply).__name__}, not {kind.__name__}")
        return reply

    def deliver(self, reply: Answer) -> None:
        """Hand an answer to who waits for it; one whose caller has left is dropped.

        Raises:
            ProtocolError: No such call was ever made.
        """
        if not 0 < reply.call_id <= self._last:
            raise ProtocolError("the host answered a call that was never made")
        future = self._waiting.get(reply.call_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def listen(self, call_id: int, heard: Callable[[str], None]) -> None:
        """Have ``heard`` called with each piece of a model's text. Ends with ``forget``."""
        self._listeners[call_id] = heard

    def deliver_piece(self, piece: ModelDelta) -> None:
        """Hand a piece of a model's text to who listens."""
        heard = self._listeners.get(piece.call_id)
        if heard is not None:
            heard(piece.text)

    def abandon(self) -> None:
        """The run is over: every waiting and every later call raises ``asyncio.CancelledError``."""
        self.over = True
        for future in self._waiting.values():
            future.cancel()
