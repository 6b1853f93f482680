"""gRPC without a network: what a service's stubs and streams need of a channel, served by a servicer of this process.

Messages cross as bytes, so that no object is on both sides. Tickets of single calls are verified as the server's
interceptor does. There are no deadlines, no compression, no lost connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import copy_context
from typing import Any, Final

from grpc import aio

from carrel.errors import CarrelError, InternalError
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.context import enter_call
from servicekit.tasks import TaskOwner
from services.agent_instance.workers.in_loop import Pipe

__all__ = ["LocalCall", "LocalChannel", "OneCopy"]

_Handler = Callable[[AsyncIterator[Any], Any], AsyncGenerator[Any, None]]
_NOT_HERE: Final = "the in-memory chain has no calls of this kind"


class LocalCall:
    """One bidirectional call: the part of ``grpc.aio``'s that is used here."""

    def __init__(self, handler: _Handler, parse: Callable[[bytes], Any], tasks: TaskOwner, name: str) -> None:
        self._parse_response = parse
        self._parse_request: Callable[[bytes], Any] | None = None
        self._up, self._down = Pipe(), Pipe()
        self._error: CarrelError | None = InternalError(f"{name} failed; its log says why")
        self._task = tasks.start(self._serve(handler), name)

    async def wait_for_connection(self) -> None:
        """It is there."""

    async def write(self, request: Any) -> None:
        """Send a message; waits for room."""
        self._parse_request = type(request).FromString
        await self._up.put(request.SerializeToString())

    async def read(self) -> Any:
        """The next answer, or ``aio.EOF``."""
        data = await self._down.get()
        if data is not None:
            return self._parse_response(data)
        if self._error is not None:
            raise self._error
        return aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (response := await self.read()) is not aio.EOF:
            yield response

    async def done_writing(self) -> None:
        """Nothing more is sent."""
        self._up.close()

    def cancel(self) -> bool:
        """End it, whatever it does."""
        return self._task.cancel()

    async def _serve(self, handler: _Handler) -> None:
        try:
            async with aclosing(handler(self._requests(), None)) as responses:
                async for response in responses:
                    await self._down.put(response.SerializeToString())
            self._error = None
        except CarrelError as error:
            self._error = error
        finally:
            self._up.close(discard=True)
            self._down.close()

    async def _requests(self) -> AsyncIterator[Any]:
        while (data := await self._up.get()) is not None:
            assert self._parse_request is not None
            yield self._parse_request(data)


class LocalChannel:
    """A channel to one servicer of this process, for its stub.

    Args:
        servicer: Answers the calls.
        verifier: Verifies the contexts of single calls; those of streams the servicer verifies itself.
        tasks: Owns the calls.
    """

    def __init__(self, servicer: Any, verifier: TicketVerifier, tasks: TaskOwner) -> None:
        self._servicer = servicer
        self._verifier = verifier
        self._tasks = tasks

    def unary_unary(self, method: str, **_codec: Any) -> Callable[..., Awaitable[Any]]:
        """See ``aio.Channel``."""
        handler = getattr(self._servicer, method.rpartition("/")[2])

        async def call(request: Any, **_options: Any) -> Any:
            context = copy_context()
            context.run(enter_call, self._verifier.verify(request.context), None)
            return await asyncio.create_task(handler(request, None), name=method, context=context)

        return call

    def stream_stream(self, method: str, *, response_deserializer: Callable[[bytes], Any], **_codec: Any) -> Any:
        """See ``aio.Channel``."""
        handler = getattr(self._servicer, method.rpartition("/")[2])

        def call(**_options: Any) -> LocalCall:
            return LocalCall(handler, response_deserializer, self._tasks, method)

        return call

    def unary_stream(self, _method: str, **_codec: Any) -> Any:
        """See ``aio.Channel``; none of these are called here."""
        return _not_here

    stream_unary = unary_stream


class OneCopy:
    """The only copy of a service, and all of them: what ``servicekit.rpc.copies`` is to callers."""

    several: Final = False
    target: Final = "memory"
    address: Final = "memory"

    def __init__(self, channel: LocalChannel) -> None:
        self.channel = channel

    def known(self) -> Sequence[OneCopy]:
        """It is there."""
        return [self]

    @contextmanager
    def used(self) -> Iterator[OneCopy]:
        """For the length of a call."""
        yield self


def _not_here(*_: Any, **__: Any) -> Any:
    raise InternalError(_NOT_HERE)
