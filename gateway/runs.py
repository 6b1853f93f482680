"""What the gateway asks of execution for a login: runs, inputs, threads, artifacts; for the socket and REST alike.

Mints the ids and the ticket of a new run. Whether it may run is execution's to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final

import orjson
from grpc import aio

from carrel.context import UserContextFactory, UserExecutionContext
from carrel.errors import CarrelError, Status
from carrel.v1 import context_pb2, execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from carrel.wire import context_to_proto
from gateway.login import Login
from gateway.requests import ExecuteRequest
from gateway.tickets import TicketDesk
from servicekit.rpc.channel import responses

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
_WATCH_AGAIN_S: Final = 0.2
_ARTIFACT_S: Final = 120.0


class Runs:
    """Execution, as a login may use it. Every method raises the ``CarrelError`` that execution answers with."""

    def __init__(self, channel: aio.Channel, desk: TicketDesk) -> None:
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

    async def provide_input(self, login: Login, run_id: str, input_id: str, value: object) -> execution_pb2.Run:
        """Answer a run's question."""
        request = execution_pb2.ProvideInputRequest(
            context=self._desk.session(login), run_id=run_id, input_id=input_id, value_json=orjson.dumps(value)
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

    async def ended(self, login: Login, run_id: str, within_s: float) -> execution_pb2.Run | None:
        """The run once it has ended or waits for a person; None when the time is up before that.

        Execution may restart meanwhile: the watch is taken up again.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        async for run in self._watch(login, run_id):
                            if run.state in TERMINAL or run.state == execution_pb2.RUN_STATE_WAITING:
                                return run
                    except CarrelError as error:
                        if error.status not in {Status.UNAVAILABLE, Status.CANCELLED, Status.UNKNOWN}:
                            raise
                    await asyncio.sleep(random.uniform(0.5, 1.5) * _WATCH_AGAIN_S)  # noqa: S311 -- jitter
        except TimeoutError:
            return None

    async def _watch(self, login: Login, run_id: str) -> AsyncIterator[execution_pb2.Run]:
        request = execution_pb2.WatchRunRequest(context=self._desk.session(login), run_id=run_id)
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
