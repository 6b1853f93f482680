"""What the gateway asks of execution for a login: runs, inputs, threads, artifacts; for the socket and REST alike.

Mints the ids and the ticket of a new run. Whether it may run is execution's to say.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import orjson
from grpc import aio

from carrel.context import UserContextFactory, UserExecutionContext
from carrel.errors import CarrelError, Status
from carrel.v1 import context_pb2, execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from carrel.wire import context_to_proto
from gateway.login import Login
from gateway.requests import Answer, ExecuteRequest
from gateway.tickets import TicketDesk
from servicekit.rpc.channel import responses
from servicekit.telemetry.tracing import NO_TRACING, Tracing

__all__ = ["TERMINAL", "UNENDED", "Runs"]

TERMINAL: Final = frozenset(
    {
        execution_pb2.RUN_STATE_SUCCEEDED,
        execution_pb2.RUN_STATE_FAILED,
        execution_pb2.RUN_STATE_CANCELLED,
        execution_pb2.RUN_STATE_TIMED_OUT,
    }
)
UNENDED: Final = (
    execution_pb2.RUN_STATE_QUEUED,
    execution_pb2.RUN_STATE_RUNNING,
    execution_pb2.RUN_STATE_WAITING,
    execution_pb2.RUN_STATE_FINISHING,
)
_STRATEGIES: Final = {
    "reject": execution_pb2.THREAD_STRATEGY_REJECT,
    "enqueue": execution_pb2.THREAD_STRATEGY_ENQUEUE,
    "interrupt": execution_pb2.THREAD_STRATEGY_INTERRUPT,
    "rollback": execution_pb2.THREAD_STRATEGY_ROLLBACK,
}
_EXECUTE_S: Final = 15.0
_RECENT_S: Final = 86_400
_WATCH_AGAIN_S: Final = 0.2
# What a stream ends with when execution restarts.
_PASSING: Final = frozenset({Status.UNAVAILABLE, Status.CANCELLED, Status.UNKNOWN})
_ARTIFACT_S: Final = 120.0


class Runs:
    """Execution, as a login may use it. Every method raises the ``CarrelError`` that execution answers with.

    ``tracing`` is for those who ask: a trace begins with what a client asks for.
    """

    def __init__(self, channel: aio.Channel, desk: TicketDesk, tracing: Tracing = NO_TRACING) -> None:
        self.tracing = tracing
        self._stub = ExecutionServiceStub(channel)
        self._desk = desk

    async def execute(
        self, login: Login, request: ExecuteRequest, *, connection_id: str = "", audit: Mapping[str, Any] | None = None
    ) -> tuple[execution_pb2.Run, bool]:
        """Have a run admitted; the run, and whether ``client_ref`` named one that was there already."""
        context = UserContextFactory.from_request(
            login.user_id,
            thread_id=request.thread_id or None,
            websocket_client_id=connection_id or None,
            audit=audit,
        )
        message = execution_pb2.ExecutePipelineRequest(
            context=self._under_ticket(login, context),
            message=request.message,
            params_json=orjson.dumps(request.params) if request.params else b"",
            pipeline=request.pipeline,
            strategy=_STRATEGIES.get(request.strategy, execution_pb2.THREAD_STRATEGY_UNSPECIFIED),
            client_ref=request.client_ref,
            bound_to_caller=request.bound,
        )
        response = await self._stub.ExecutePipeline(message, timeout=_EXECUTE_S)
        return response.run, response.existing

    def _under_ticket(self, login: Login, context: UserExecutionContext) -> context_pb2.UserExecutionContext:
        ticket, _ = self._desk.mint_run(login, context)
        return context_to_proto(context.with_ticket(ticket))

    async def cancel(self, login: Login, run_id: str, reason: str = "") -> execution_pb2.Run:
        """Ask for a run's end."""
        request = execution_pb2.CancelRunRequest(context=self._desk.session(login), run_id=run_id, reason=reason)
        return (await self._stub.CancelRun(request)).run

    async def provide_input(self, login: Login, answer: Answer) -> execution_pb2.Run:
        """Answer a run's question."""
        request = execution_pb2.ProvideInputRequest(
            context=self._desk.session(login),
            run_id=answer.run_id,
            input_id=answer.input_id,
            value_json=answer.value_json,
        )
        return (await self._stub.ProvideInput(request)).run

    async def get(self, login: Login, run_id: str) -> execution_pb2.Run:
        """One run."""
        request = execution_pb2.GetRunRequest(context=self._desk.session(login), run_id=run_id)
        return (await self._stub.GetRun(request)).run

    async def list(
        self,
        login: Login,
        *,
        thread_id: str = "",
        states: Sequence[execution_pb2.RunState.ValueType] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> execution_pb2.ListRunsResponse:
        """A page of the login's runs, newest first."""
        request = execution_pb2.ListRunsRequest(
            context=self._desk.session(login),
            thread_id=thread_id,
            states=states,
            page_size=page_size,
            page_token=page_token,
        )
        return await self._stub.ListRuns(request)

    async def recent(self, login: Login, run_id: str = "") -> Sequence[execution_pb2.Run]:
        """How the login's runs stand, for a client that lost its place: those unended, or ended within a day.

        With ``run_id`` that run alone, whenever it ended.
        """
        if run_id:
            return [await self.get(login, run_id)]
        since = time.time() - _RECENT_S
        page = await self.list(login, page_size=200)
        return [run for run in page.runs if not run.HasField("ended_at") or run.ended_at.seconds >= since]

    async def ended(
        self, login: Login, run_id: str, within_s: float, *, keeps_alive: bool = False
    ) -> execution_pb2.Run | None:
        """The run once it has ended; None when the time is up before that.

        Args:
            login: Whose run it is.
            run_id: The run.
            within_s: How long to wait for it.
            keeps_alive: A bound run lives as long as this call, and no longer. It is waited for until it has ended;
                any other only until it waits for a person, too.
        """
        try:
            async with asyncio.timeout(within_s), aclosing(self._follow(lambda: login, run_id, keeps_alive)) as states:
                async for run in states:
                    if run.state in TERMINAL or (run.state == execution_pb2.RUN_STATE_WAITING and not keeps_alive):
                        return run
        except TimeoutError:
            pass
        return None

    async def keep(self, login: Callable[[], Login], run_id: str) -> None:
        """Keep a bound run alive for as long as this call lasts; it returns once the run has ended."""
        async with aclosing(self._follow(login, run_id, keeps_alive=True)) as states:
            async for run in states:
                if run.state in TERMINAL:
                    return

    async def _follow(
        self, login: Callable[[], Login], run_id: str, keeps_alive: bool
    ) -> AsyncGenerator[execution_pb2.Run]:
        """The run at each of its changes. Execution may restart meanwhile: the watch is taken up again."""
        while True:
            try:
                async with aclosing(self._watch(login(), run_id, keeps_alive)) as states:
                    async for run in states:
                        yield run
            except CarrelError as error:
                if not error.retryable and error.status not in _PASSING:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1.5) * _WATCH_AGAIN_S)  # noqa: S311 -- jitter

    async def _watch(self, login: Login, run_id: str, keeps_alive: bool) -> AsyncGenerator[execution_pb2.Run]:
        request = execution_pb2.WatchRunRequest(
            context=self._desk.session(login), run_id=run_id, keeps_alive=keeps_alive
        )
        call = self._stub.WatchRun(request)
        try:
            async for response in responses(call):
                yield response.run
        finally:
            call.cancel()

    async def artifact(self, login: Login, run_id: str, name: str) -> AsyncGenerator[execution_pb2.GetArtifactResponse]:
        """An artifact's reference, then its bytes in pieces."""
        request = execution_pb2.GetArtifactRequest(context=self._desk.session(login), run_id=run_id, name=name)
        call = self._stub.GetArtifact(request, timeout=_ARTIFACT_S)
        try:
            async for response in responses(call):
                yield response
        finally:
            call.cancel()

    async def threads(self, login: Login, page_size: int, page_token: str) -> execution_pb2.ListThreadsResponse:
        """A page of the login's threads."""
        request = execution_pb2.ListThreadsRequest(
            context=self._desk.session(login), page_size=page_size, page_token=page_token
        )
        return await self._stub.ListThreads(request)

    async def thread(
        self, login: Login, thread_id: str, page_size: int, page_token: str
    ) -> execution_pb2.GetThreadResponse:
        """A thread, and a page of its messages."""
        request = execution_pb2.GetThreadRequest(
            context=self._desk.session(login), thread_id=thread_id, page_size=page_size, page_token=page_token
        )
        return await self._stub.GetThread(request)

    async def delete_thread(self, login: Login, thread_id: str) -> bool:
        """Delete a thread; whether it existed."""
        request = execution_pb2.DeleteThreadRequest(context=self._desk.session(login), thread_id=thread_id)
        return (await self._stub.DeleteThread(request)).deleted
