"""ExecutionService over gRPC: converts, calls the domain, converts back. Tickets and scopes are checked before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import psutil
from grpc import aio

from carrel.errors import (
    UnknownArtifactError,
    UnknownRunError,
    UnknownThreadError,
)
from carrel.v1 import execution_pb2 as pb
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.identity.principals import Principal, RunPrincipal, ServicePrincipal, SessionPrincipal, may_see_run
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.context import current_principal
from servicekit.rpc.contracts import contract_to_proto
from servicekit.telemetry.names import of_run
from servicekit.telemetry.tracing import current_span
from services.execution import convert
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.paging import decode_token, encode_token
from services.execution.domain.revocations import RevokedUsers
from services.execution.domain.services import RunServices
from services.execution.models import OPERATOR, TERMINAL_STATES, RunRecord, RunState, UserKey
from services.execution.service_replicas import ReplicaCalls
from services.execution.service_watch import RunLog, RunWatch

__all__ = ["ExecutionServicer"]

_Context = aio.ServicerContext[Any, Any]
_CHUNK: Final = 256 * 1024


class ExecutionServicer(ReplicaCalls, pb_grpc.ExecutionServiceServicer):
    """Its calls; those that replicas make of each other are in ``service_replicas``."""

    def __init__(
        self,
        factory: ExecutionEngineFactory,
        services: RunServices,
        verifier: TicketVerifier,
        log: RunLog,
        draining: asyncio.Event | None = None,
        revoked: RevokedUsers | None = None,
    ) -> None:
        super().__init__(services.store, revoked or RevokedUsers(services.store, factory))
        self._factory = factory
        self._services = services
        self._store = services.store
        self._verifier = verifier
        self.draining = draining or asyncio.Event()
        self._watch = RunWatch(services.store, services.changes, factory.holdings.bound, log, self._lets_go)
        self._process = psutil.Process()

    async def CreateEngine(self, request: pb.CreateEngineRequest, context: _Context) -> pb.CreateEngineResponse:
        principal = current_principal()
        assert isinstance(principal, SessionPrincipal), "the table of scopes says so"
        engine = await self._factory.create_for_user(convert.user_key(principal), principal.limits)
        return pb.CreateEngineResponse(engine=convert.engine_to_proto(engine.record))

    async def ExecutePipeline(
        self, request: pb.ExecutePipelineRequest, context: _Context
    ) -> pb.ExecutePipelineResponse:
        principal = current_principal()
        assert isinstance(principal, RunPrincipal), "the table of scopes says so"
        span = current_span()
        if span.recording:
            span.set(of_run(principal.user_id, principal.run_id))
        admitted = await self._factory.execute(convert.pipeline_request(request, principal, span.traceparent))
        return pb.ExecutePipelineResponse(run=convert.run_to_proto(admitted.run), existing=admitted.existing)

    async def WatchRun(self, request: pb.WatchRunRequest, context: _Context) -> AsyncIterator[pb.WatchRunResponse]:
        found = False
        async with aclosing(self._watch.responses(request, _for_run(request.run_id))) as responses:
            async for response in responses:
                found = True
                yield response
        if not found:
            raise _no_run(request.run_id)

    async def GetRun(self, request: pb.GetRunRequest, context: _Context) -> pb.GetRunResponse:
        run = await self._run(_for_run(request.run_id), request.run_id)
        found = convert.run_to_proto(run)
        user, run_id = run.identity.user, run.identity.run_id
        if run.state in TERMINAL_STATES:
            # It was read before who closed it has come to say so.
            self._factory.timings.close(user, run_id)
        clock = self._factory.timings.known(user, run_id)
        if clock is not None:
            found.timing.CopyFrom(convert.timing_to_proto(clock))
        return pb.GetRunResponse(run=found)

    async def ListRuns(self, request: pb.ListRunsRequest, context: _Context) -> pb.ListRunsResponse:
        page = await self._store.list_runs(
            convert.user_key(current_principal()),
            request.thread_id,
            convert.states_from_proto(request.states),
            request.page_size or 50,
            decode_token("runs", "is", request.page_token),
        )
        return pb.ListRunsResponse(
            runs=[convert.run_to_proto(run) for run in page.items], next_page_token=encode_token("runs", page.next)
        )

    async def CancelRun(self, request: pb.CancelRunRequest, context: _Context) -> pb.CancelRunResponse:
        run = await self._factory.cancel(_for_run(request.run_id), request.run_id, request.reason)
        return pb.CancelRunResponse(run=convert.run_to_proto(run))

    async def ProvideInput(self, request: pb.ProvideInputRequest, context: _Context) -> pb.ProvideInputResponse:
        user = _for_run(request.run_id)
        run = await self._factory.provide_input(user, request.run_id, request.input_id, request.value_json)
        return pb.ProvideInputResponse(run=convert.run_to_proto(run))

    async def CleanupEngine(self, request: pb.CleanupEngineRequest, context: _Context) -> pb.CleanupEngineResponse:
        user = convert.user_key(current_principal())
        return pb.CleanupEngineResponse(cleaned=await self._factory.cleanup_engine(user, request.engine_id))

    async def ListEngines(self, request: pb.ListEnginesRequest, context: _Context) -> pb.ListEnginesResponse:
        page = await self._store.list_engines(
            _own_or_all(current_principal()),
            request.page_size or 100,
            decode_token("engines", "ss", request.page_token),
        )
        return pb.ListEnginesResponse(
            engines=[convert.engine_to_proto(engine) for engine in page.items],
            next_page_token=encode_token("engines", page.next),
        )

    async def ListThreads(self, request: pb.ListThreadsRequest, context: _Context) -> pb.ListThreadsResponse:
        page = await self._store.list_threads(
            convert.user_key(current_principal()),
            request.page_size or 50,
            decode_token("threads", "is", request.page_token),
        )
        return pb.ListThreadsResponse(
            threads=[convert.thread_to_proto(thread) for thread in page.items],
            next_page_token=encode_token("threads", page.next),
        )

    async def GetThread(self, request: pb.GetThreadRequest, context: _Context) -> pb.GetThreadResponse:
        user = convert.user_key(current_principal())
        after = decode_token("messages", "i", request.page_token)
        thread = await self._store.get_thread(user, request.thread_id)
        if thread is None:
            raise UnknownThreadError("no such thread", thread_id=request.thread_id)
        page = await self._store.messages(user, request.thread_id, request.page_size or 100, after)
        return pb.GetThreadResponse(
            thread=convert.thread_to_proto(thread),
            messages=[convert.message_to_proto(message) for message in page.items],
            next_page_token=encode_token("messages", page.next),
        )

    async def DeleteThread(self, request: pb.DeleteThreadRequest, context: _Context) -> pb.DeleteThreadResponse:
        user = convert.user_key(current_principal())
        deleted = await self._factory.delete_thread(user, request.thread_id)
        return pb.DeleteThreadResponse(deleted=deleted)

    async def GetArtifact(
        self, request: pb.GetArtifactRequest, context: _Context
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        user = _for_run(request.run_id)
        # No artifact has a name with NUL in it, and not every database can be asked for one.
        record = None if "\0" in request.name else await self._store.get_artifact(user, request.run_id, request.name)
        if record is None:
            raise UnknownArtifactError("the run has no artifact of that name", run_id=request.run_id)
        data = await self._services.folder.read(user, request.run_id, record.sha256)
        yield pb.GetArtifactResponse(artifact=convert.artifact_to_proto(record))
        for start in range(0, len(data), _CHUNK):
            yield pb.GetArtifactResponse(data=data[start : start + _CHUNK])

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: _Context
    ) -> pb.ListAuditRecordsResponse:
        principal = current_principal()
        user = _own_or_all(principal)
        if user is None and request.user_id:
            user = UserKey(request.user_id)  # an operator's choice, made under operator:read
        listing, span = "audit-up" if request.oldest_first else "audit", convert.audit_span(request)
        after = decode_token(listing, "iss", request.page_token)
        if span.oldest_first and after is None and isinstance(principal, ServicePrincipal):
            await self.record(OPERATOR, "audit.export", principal.service)
        page = await self._store.list_audit(user, request.run_id, request.page_size or 100, after, span)
        return pb.ListAuditRecordsResponse(
            records=[convert.audit_to_proto(entry) for entry in page.items],
            # The last page of those in their order may be empty: what comes later goes on from where it began.
            next_page_token=encode_token(listing, page.next) or (request.page_token if request.oldest_first else ""),
        )

    async def GetFactoryMetrics(
        self, request: pb.GetFactoryMetricsRequest, context: _Context
    ) -> pb.GetFactoryMetricsResponse:
        response = convert.metrics_to_proto(self._factory.get_factory_metrics())
        response.memory_bytes = self._process.memory_info().rss
        response.cpu_time.CopyFrom(convert.seconds_to_proto(time.process_time()))
        response.identity_mismatch_total = self._verifier.identity_mismatch_total
        response.contract.CopyFrom(contract_to_proto(self._factory.contract))
        return response

    def _lets_go(self, run: RunRecord) -> bool:
        """Whether to end a watch early: while draining, of runs that will not end here."""
        ends_here = run.state is RunState.FINISHING or self._factory.drives(run.ref)
        return self.draining.is_set() and not ends_here

    async def _run(self, user: UserKey, run_id: str) -> RunRecord:
        run = await self._store.get_run(user, run_id)
        if run is None:
            raise _no_run(run_id)
        return run


def _for_run(run_id: str) -> UserKey:
    """The caller's key, if the caller may ask about this run: to others it does not exist."""
    principal = current_principal()
    if not may_see_run(principal, run_id):
        raise _no_run(run_id)
    return convert.user_key(principal)


def _own_or_all(principal: Principal) -> UserKey | None:
    return None if isinstance(principal, ServicePrincipal) else convert.user_key(principal)


def _no_run(run_id: str) -> UnknownRunError:
    return UnknownRunError("no such run", run_id=run_id)
