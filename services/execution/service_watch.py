"""WatchRun: a run's states as the store tells them, and with them its events as the log has them, in one stream.

The two come from different places; what holds between them is that a terminal state follows the terminal event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Final, Protocol, TypeVar

from carrel.errors import DrainingError, InvalidRequestError
from carrel.v1 import bridge_pb2, context_pb2, events_pb2
from carrel.v1 import execution_pb2 as pb
from services.execution import convert
from services.execution.domain.watch import Changes, watch_run
from services.execution.models import TERMINAL_STATES, RunRecord, UserKey
from services.execution.store import RunStore

__all__ = ["Keeper", "Reading", "RunLog", "RunWatch"]

T = TypeVar("T")
_NOTED_S: Final = 2.0


class Reading(Protocol):
    """A run's events as they come."""

    def responses(self) -> AsyncGenerator[bridge_pb2.ReadEventsResponse]: ...

    def finish(self) -> None:
        """The run's state is terminal: nothing more will come than what the log has now."""
        ...


class RunLog(Protocol):
    """Where a run's events are read; ``client_bridge`` implements it."""

    def read(
        self, context: context_pb2.UserExecutionContext, run_id: str, position: events_pb2.Position | None
    ) -> Reading: ...


class Keeper(Protocol):
    """What bound runs live by; ``domain.bound`` has it."""

    def keeping(self, user: UserKey, run_id: str) -> AbstractContextManager[asyncio.Future[None] | None]: ...


class RunWatch:
    """Args:
    store: Where runs are.
    changes: What tells of their changes.
    bound: Runs that live as long as somebody watches.
    log: Where their events are.
    stop: Whether to end a watch before its run ends.
    """

    def __init__(
        self, store: RunStore, changes: Changes, bound: Keeper, log: RunLog, stop: Callable[[RunRecord], bool]
    ) -> None:
        self._store = store
        self._changes = changes
        self._bound = bound
        self._log = log
        self._stop = stop

    async def responses(self, request: pb.WatchRunRequest, user: UserKey) -> AsyncGenerator[pb.WatchRunResponse]:
        """What the caller is told; nothing when there is no such run.

        Raises:
            InvalidRequestError: A position without events.
            DrainingError: This process is shutting down, and the run goes on elsewhere.
            CarrelError: The events cannot be read.
        """
        if request.HasField("position") and not request.events:
            problem = "is for events"
            raise InvalidRequestError(
                "a position is where events go on", advice="set events, too", fields={"position": problem}
            )
        last: RunRecord | None = None
        keeping = self._bound.keeping(user, request.run_id) if request.keeps_alive else nullcontext()
        with keeping as noted:
            if noted is not None:
                # Before the caller hears that it is there: the last one elsewhere may leave at that moment. A store
                # that is away is told of by the watching itself.
                await asyncio.wait([noted], timeout=_NOTED_S)
            states = watch_run(self._store, self._changes, user, request.run_id, stop=self._stop)
            if not request.events:
                async for last in states:
                    yield _state(last)
            else:
                both = _Both(self._log, request, states)
                async with aclosing(both.responses()) as responses:
                    async for response in responses:
                        yield response
                last = both.last
        if last is not None and last.state not in TERMINAL_STATES:
            raise DrainingError("execution is shutting down", advice="watch the run again", retry_after_s=1.0)


class _Both:
    """States and events, each in its order, as they come; the caller's pace is that of both."""

    def __init__(self, log: RunLog, request: pb.WatchRunRequest, states: AsyncGenerator[RunRecord]) -> None:
        self._log = log
        self._request = request
        self._states = states
        self.last: RunRecord | None = None

    async def responses(self) -> AsyncGenerator[pb.WatchRunResponse]:
        request = self._request
        async with aclosing(self._states):
            # Before anything is asked of the log: to others the run does not exist.
            self.last = await anext(self._states, None)
            if self.last is None:
                return
            position = request.position if request.HasField("position") else None
            reading = self._log.read(request.context, request.run_id, position)
            if self._is_over():
                reading.finish()
            else:
                yield _state(self.last)
            async with aclosing(reading.responses()) as log, aclosing(self._merged(reading, log)) as merged:
                async for response in merged:
                    yield response
            if self._is_over():
                yield _state(self.last)

    async def _merged(
        self, reading: Reading, log: AsyncGenerator[bridge_pb2.ReadEventsResponse]
    ) -> AsyncGenerator[pb.WatchRunResponse]:
        """Both until both have ended; but for the terminal state, which is for the end."""
        state: asyncio.Task[RunRecord | None] | None = None if self._is_over() else _ask(self._states)
        piece: asyncio.Task[bridge_pb2.ReadEventsResponse | None] | None = _ask(log)
        try:
            while asking := [task for task in (state, piece) if task is not None]:
                await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                if piece is not None and piece.done():
                    response = piece.result()
                    piece = None if response is None else _ask(log)
                    if response is not None:
                        yield _piece(response)
                if state is not None and state.done():
                    run = state.result()
                    if run is None:
                        # This process is shutting down, and the run goes on elsewhere.
                        return
                    self.last = run
                    if self._is_over():
                        state = None
                        reading.finish()
                    else:
                        state = _ask(self._states)
                        yield _state(run)
        finally:
            rest = [task for task in (state, piece) if task is not None]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    def _is_over(self) -> bool:
        return self.last is not None and self.last.state in TERMINAL_STATES


def _ask(source: AsyncGenerator[T]) -> asyncio.Task[T | None]:
    async def ask() -> T | None:
        return await anext(source, None)

    return asyncio.create_task(ask(), name="watch of a run")


def _state(run: RunRecord) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(run=convert.run_to_proto(run))


def _piece(response: bridge_pb2.ReadEventsResponse) -> pb.WatchRunResponse:
    match response.WhichOneof("item"):
        case "entries":
            return pb.WatchRunResponse(entries=response.entries)
        case "reset":
            return pb.WatchRunResponse(reset=response.reset)
        case _:
            return pb.WatchRunResponse(through=response.through)
