"""The client of internal services: typed calls to execution, emitter and bridge over gRPC, in one user's name.

Every unary call has a deadline; what does no harm twice is tried again within it. Errors are those of the tree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import orjson
from grpc import aio

from carrel.client.backoff import Backoff
from carrel.client.calls import open_channel, stream
from carrel.client.convert import artifact_of, audit_of, event_of, position_of, position_to_proto, reset_of, run_of
from carrel.client.keeping import kept
from carrel.client.models import Artifact, AuditRecord, Event, LogReset, Position, Run, RunState
from carrel.client.tickets import TicketSource
from carrel.errors import CarrelError, InvalidRequestError, ProtocolError, Status
from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import bridge_pb2, emitter_pb2, execution_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub

__all__ = ["Endpoints", "InternalClient"]

T = TypeVar("T")

_STREAM_S: Final = 60.0
_STRATEGIES: Final[Mapping[str, execution_pb2.ThreadStrategy.ValueType]] = {
    "": execution_pb2.THREAD_STRATEGY_UNSPECIFIED,
    "reject": execution_pb2.THREAD_STRATEGY_REJECT,
    "enqueue": execution_pb2.THREAD_STRATEGY_ENQUEUE,
    "interrupt": execution_pb2.THREAD_STRATEGY_INTERRUPT,
    "rollback": execution_pb2.THREAD_STRATEGY_ROLLBACK,
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the services are, ``host:port`` each."""

    execution: str = "127.0.0.1:50051"
    emitter: str = "127.0.0.1:50053"
    bridge: str = "127.0.0.1:50054"


class InternalClient:
    """Calls in one user's name.

    Args:
        endpoints: The services' addresses.
        tickets: Gives the tickets that prove whom a call is for.
        timeout_s: Deadline of a unary call, retries included.
        tls: Credentials, with the certificate of an internal service ("client"); None means no encryption.
        trust_domain: Whose services' certificates are insisted on; with an empty one, certificates must name the
            addresses that are dialled.
        backoff: How fast to try again.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        tickets: TicketSource,
        *,
        timeout_s: float = 5.0,
        tls: grpc.ChannelCredentials | None = None,
        trust_domain: str = "carrel.internal",
        backoff: Backoff | None = None,
    ) -> None:
        self._tickets = tickets
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff(attempts=4, first_s=0.05, longest_s=1.0)
        places = {"execution": endpoints.execution, "emitter": endpoints.emitter, "bridge": endpoints.bridge}
        self._channels = [
            open_channel(at, tls, f"{service}.{trust_domain}" if trust_domain else "") for service, at in places.items()
        ]
        self._execution = ExecutionServiceStub(self._channels[0])
        self._emitter = EmitterServiceStub(self._channels[1])
        self._bridge = BridgeServiceStub(self._channels[2])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the channels; open streams end. Idempotent."""
        for channel in self._channels:
            await channel.close()

    # Runs.

    async def execute(
        self,
        message: str,
        *,
        params: Mapping[str, Any] | None = None,
        pipeline: Sequence[str] = (),
        thread_id: str = "",
        strategy: str = "",
        client_ref: str = "",
    ) -> Run:
        """``ExecutePipeline``: the admitted run, or the one that ``client_ref`` named before.

        Args:
            message: What is wanted.
            params: Parameters for the agents.
            pipeline: One agent, or several, which are put in order; empty for the deployment's default.
            thread_id: The conversation; a new one when empty.
            strategy: What to do about a run that the thread has already: reject, enqueue, interrupt or rollback.
            client_ref: Names the request: within 24 h the same one gives the same run. Minted when empty.

        Raises:
            CarrelError: It was refused, or execution cannot be reached.
        """
        return await self._execute(message, params, pipeline, thread_id, strategy, client_ref, bound=False)

    @asynccontextmanager
    async def bound_run(
        self,
        message: str,
        *,
        params: Mapping[str, Any] | None = None,
        pipeline: Sequence[str] = (),
        thread_id: str = "",
        strategy: str = "",
        client_ref: str = "",
    ) -> AsyncIterator[Run]:
        """A run that lives no longer than the block: leaving it before the run's end cancels the run.

            async with client.bound_run("Write a report") as run:
                async for state in client.watch_run(run.run_id): ...

        The arguments are those of ``execute``. Execution learns of the end by that of a stream, so that a process
        which dies within the block ends the run, too.

        Raises:
            CarrelError: It was refused, or execution cannot be reached.
        """
        run = await self._execute(message, params, pipeline, thread_id, strategy, client_ref, bound=True)
        async with kept(lambda: self._watch(run.run_id, keeps_alive=True)):
            yield run

    async def _execute(
        self,
        message: str,
        params: Mapping[str, Any] | None,
        pipeline: Sequence[str],
        thread_id: str,
        strategy: str,
        client_ref: str,
        *,
        bound: bool,
    ) -> Run:
        if strategy not in _STRATEGIES:
            raise InvalidRequestError(f"strategy must be one of {', '.join(filter(None, _STRATEGIES))}")
        ticket = await self._tickets.run(thread_id=thread_id)
        request = execution_pb2.ExecutePipelineRequest(
            context=ticket.context(),
            message=message,
            params_json=orjson.dumps(dict(params)) if params else b"",
            pipeline=pipeline,
            strategy=_STRATEGIES[strategy],
            # With a name of its own the request may be sent again.
            client_ref=client_ref or new_id("ref"),
            bound_to_caller=bound,
        )
        return run_of((await self._unary(self._execution.ExecutePipeline, request)).run)

    async def get_run(self, run_id: str) -> Run:
        """``GetRun``."""
        request = execution_pb2.GetRunRequest(context=(await self._tickets.session()).context(), run_id=run_id)
        return run_of((await self._unary(self._execution.GetRun, request)).run)

    async def list_runs(
        self, *, thread_id: str = "", states: Sequence[RunState] = (), page_size: int = 0
    ) -> AsyncIterator[Run]:
        """``ListRuns``: all of the user's runs that match, newest first, page by page as they are needed."""
        token = ""
        while True:
            request = execution_pb2.ListRunsRequest(
                context=(await self._tickets.session()).context(),
                thread_id=thread_id,
                states=[execution_pb2.RunState.Value(f"RUN_STATE_{state}") for state in states],
                page_size=page_size,
                page_token=token,
            )
            page = await self._unary(self._execution.ListRuns, request)
            for run in page.runs:
                yield run_of(run)
            token = page.next_page_token
            if not token:
                return

    async def watch_run(self, run_id: str) -> AsyncIterator[Run]:
        """``WatchRun``: the run as it is, then at each change, to its terminal state.

        Raises:
            CarrelError: There is no such run, or the stream broke; watch again to go on.
        """
        async for run in self._watch(run_id, keeps_alive=False):
            yield run

    async def watch_run_events(
        self, run_id: str, position: Position | None = None
    ) -> AsyncIterator[Run | Event | LogReset]:
        """``WatchRun`` with events: the run at each change, and its events as the log has them, in one stream.

        The terminal state comes last, after the terminal event.

        Args:
            run_id: The run.
            position: The last event seen, on any transport; from the run's first event when None.

        Raises:
            CarrelError: There is no such run, or the stream broke; watch again from the last event's ``position``.
        """
        request = execution_pb2.WatchRunRequest(
            context=(await self._tickets.session()).context(),
            run_id=run_id,
            events=True,
            position=position_to_proto(position) if position is not None else None,
        )
        async for response in stream(self._execution.WatchRun(request)):
            match response.WhichOneof("log"):
                case "entries":
                    for entry in response.entries.entries:
                        yield event_of(entry, response.entries.user_id, response.entries.epoch)
                case "reset":
                    yield reset_of(response.reset)
                case None:
                    yield run_of(response.run)

    async def _watch(self, run_id: str, *, keeps_alive: bool) -> AsyncIterator[Run]:
        request = execution_pb2.WatchRunRequest(
            context=(await self._tickets.session()).context(), run_id=run_id, keeps_alive=keeps_alive
        )
        async for response in stream(self._execution.WatchRun(request)):
            yield run_of(response.run)

    async def cancel_run(self, run_id: str, reason: str = "") -> Run:
        """``CancelRun``: the run as it then is."""
        context = (await self._tickets.session()).context()
        request = execution_pb2.CancelRunRequest(context=context, run_id=run_id, reason=reason)
        return run_of((await self._unary(self._execution.CancelRun, request)).run)

    async def provide_input(self, run_id: str, input_id: str, value: object) -> Run:
        """``ProvideInput``: answer a run's question; the run as it then is. The same answer may be given twice.

        Args:
            run_id: The run, which waits: ``waiting_for`` is its question.
            input_id: The question.
            value: The answer, of JSON values.

        Raises:
            NotWaitingError: The run does not wait for it (any more).
            InvalidInputError: The answer does not fit the question's schema.
            CarrelError: There is no such run, or execution cannot be reached.
        """
        context = (await self._tickets.session()).context()
        request = execution_pb2.ProvideInputRequest(
            context=context, run_id=run_id, input_id=input_id, value_json=orjson.dumps(value)
        )
        return run_of((await self._unary(self._execution.ProvideInput, request)).run)

    async def list_audit(
        self, *, run_id: str = "", user_id: str = "", everyone: bool = False, page_size: int = 0
    ) -> AsyncIterator[AuditRecord]:
        """``ListAuditRecords``: who did what and how it ended, newest first, page by page as they are needed.

        Args:
            run_id: Only of this run.
            user_id: Only of this user; with ``everyone``.
            everyone: Of all users, by a service ticket with ``operator:read``; otherwise the user's own.
            page_size: How many to ask for at once.

        Raises:
            CarrelError: It was refused, or execution cannot be reached.
        """
        token = ""
        while True:
            ticket = await (self._tickets.service() if everyone else self._tickets.session())
            request = execution_pb2.ListAuditRecordsRequest(
                context=ticket.context(), run_id=run_id, user_id=user_id, page_size=page_size, page_token=token
            )
            page = await self._unary(self._execution.ListAuditRecords, request)
            for record in page.records:
                yield audit_of(record)
            token = page.next_page_token
            if not token:
                return

    async def get_artifact(self, run_id: str, name: str) -> tuple[Artifact, bytes]:
        """``GetArtifact``: the reference and the bytes.

        Raises:
            CarrelError: There is none, or it did not arrive whole.
        """
        context = (await self._tickets.session()).context()
        request = execution_pb2.GetArtifactRequest(context=context, run_id=run_id, name=name)
        artifact: Artifact | None = None
        data = bytearray()
        async for piece in stream(self._execution.GetArtifact(request, timeout=_STREAM_S)):
            if piece.WhichOneof("item") == "artifact":
                artifact = artifact_of(piece.artifact)
            else:
                data += piece.data
        if artifact is None or len(data) != artifact.size:
            raise ProtocolError(f"the artifact {name} did not arrive whole")
        return artifact, bytes(data)

    # Events.

    async def read_events(
        self, position: Position | None = None, *, run_id: str = "", thread_id: str = "", follow: bool = False
    ) -> AsyncIterator[Event | LogReset]:
        """``ReadEvents``: entries after a position, oldest first; all that is kept when it is None.

        Args:
            position: The last entry seen, on any transport.
            run_id: Only this run's, from its first; with ``follow`` it ends after the terminal event.
            thread_id: Only this thread's.
            follow: Go on with new ones.

        Raises:
            NotFoundError: The log has nothing of the run; with ``follow`` it is waited for, 10 s.
            CarrelError: It was refused, or the stream broke; read again from the last event's ``position``.
        """
        request = bridge_pb2.ReadEventsRequest(
            context=(await self._tickets.session()).context(), run_id=run_id, thread_id=thread_id, follow=follow
        )
        if position is not None:
            request.position.CopyFrom(position_to_proto(position))
        async for response in stream(self._bridge.ReadEvents(request, timeout=None if follow else _STREAM_S)):
            match response.WhichOneof("item"):
                case "entries":
                    for entry in response.entries.entries:
                        yield event_of(entry, response.entries.user_id, response.entries.epoch)
                case "reset":
                    yield reset_of(response.reset)

    async def notify(
        self, run_id: str, event_type: str, data: Mapping[str, Any], *, agent_name: str = "", idempotency_key: str = ""
    ) -> tuple[str, Position]:
        """``Notify``: put one event into a run's log; its event_id and place.

        Args:
            run_id: The run, which has not ended.
            event_type: A kind of the events table that is not its owner's alone.
            data: The event's data.
            agent_name: The agent it speaks of.
            idempotency_key: Names the notification: repeating it does nothing. Minted when empty.

        Raises:
            CarrelError: It was refused, or the emitter cannot be reached.
        """
        request = emitter_pb2.NotifyRequest(
            context=(await self._tickets.run(run_id=run_id)).context(),
            idempotency_key=idempotency_key or new_id("note"),
            event_type=event_type,
            agent_name=agent_name,
            data_json=orjson.dumps(dict(data)),
        )
        response = await self._unary(self._emitter.Notify, request)
        return response.event_id, position_of(response.position)

    async def _unary(self, call: Callable[..., Awaitable[T]], request: Any) -> T:
        """Every unary call here does no harm when it arrives twice: it reads, is named by a key, or asks for an end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        failures = 0
        while True:
            try:
                return await call(request, timeout=max(deadline - loop.time(), 0.001))
            except aio.AioRpcError as error:
                problem: CarrelError = from_rpc_error(error)
            failures += 1
            delay = self._backoff.delay_s(failures, problem.retry_after_s or 0.0)
            late = delay is None or loop.time() + delay >= deadline
            if problem.status is not Status.UNAVAILABLE or late or delay is None:
                raise problem
            await asyncio.sleep(delay)
