"""agent_instance over real gRPC, between a scripted emitter and a scripted execution. Not a test module."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from grpc import aio

from carrel import Agent
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1 import agent_instance_pb2_grpc, emitter_pb2, emitter_pb2_grpc
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.events_pb2 import Event, ProducerAck, RefusalReason
from servicekit.delivery import ProducerStream
from servicekit.rpc.copies import Copies
from services.agent_instance.app import dependency_checker, open_tool_servers, stage_services
from services.agent_instance.client_emitter import StageProducer
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.domain.stage import StageServices
from services.agent_instance.service import AgentInstanceServicer, StreamLimits
from tests.support.identity import identity, new_run_context
from tests.support.rpc import serving


@dataclass(frozen=True)
class Logged:
    """One event as the emitter got it."""

    number: int
    kind: str
    data: dict[str, Any]
    request_id: str
    user_id: str
    agent: str
    ticket: str


class FakeEmitter(emitter_pb2_grpc.EmitterServiceServicer):
    """Keeps every event and acknowledges it, unless acknowledgements are withheld or refused."""

    def __init__(self) -> None:
        self.log: dict[tuple[str, str], list[Logged]] = {}
        self.acks = asyncio.Event()
        self.acks.set()
        self.refuse: RefusalReason.ValueType | None = None
        self.verifier = identity().verifier()

    async def Revoke(
        self, request: emitter_pb2.EmitterServiceRevokeRequest, context: Any
    ) -> emitter_pb2.EmitterServiceRevokeResponse:
        return emitter_pb2.EmitterServiceRevokeResponse()

    async def Emit(
        self, request_iterator: AsyncIterator[emitter_pb2.EmitRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[emitter_pb2.EmitResponse]:
        async for request in request_iterator:
            acks = [self._take(item) for item in request.items]
            await self.acks.wait()
            yield emitter_pb2.EmitResponse(acks=acks)

    async def Notify(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def GetEmitterStatistics(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def _take(self, item: Any) -> ProducerAck:
        self.verifier.verify(item.context)
        key = (item.context.user_id, item.producer_id)
        ack = ProducerAck(user_id=key[0], producer_id=key[1], epoch="e")
        log = self.log.setdefault(key, [])
        if self.refuse is not None:
            ack.through = len(log)
            ack.refusal.reason = self.refuse
            return ack
        for event in item.events:
            if event.number == len(log) + 1:
                log.append(_logged(event, item.context))
        ack.through = len(log)
        return ack


def _logged(event: Event, context: UserExecutionContext) -> Logged:
    data = orjson.loads(event.data)
    return Logged(
        event.number, event.event_type, data, context.request_id, context.user_id, event.agent_name, context.ticket
    )


@dataclass
class Attempt:
    """Execution's side of one RunInstance stream: stores artifacts, acknowledges the journal, keeps what comes up."""

    context: UserExecutionContext
    call: Any
    producer_id: str
    store: bool = True
    acknowledge: bool = True
    up: list[pb.RunInstanceResponse] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    _parts: dict[str, tuple[str, str, bytearray]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Any]:
        return [getattr(message, kind) for message in self.up if message.WhichOneof("message") == kind]

    @property
    def result(self) -> pb.StageResult:
        (result,) = self.of("result")
        assert isinstance(result, pb.StageResult)
        return result

    @property
    def value(self) -> Any:
        assert self.result.WhichOneof("outcome") == "result_json", self.result
        return orjson.loads(self.result.result_json)

    async def read(self) -> pb.RunInstanceResponse | None:
        message = await self.call.read()
        if message is aio.EOF:
            return None
        self.up.append(message)
        if message.HasField("artifact_chunk"):
            await self._chunk(message.artifact_chunk)
        if message.HasField("journal_entry") and self.acknowledge:
            await self.send(journal_stored=pb.JournalStored(through=message.journal_entry.number))
        assert isinstance(message, pb.RunInstanceResponse)
        return message

    async def finish(self, *, half_close: bool = True) -> pb.StageResult:
        while (message := await self.read()) is not None:
            if message.HasField("result"):
                if half_close:
                    await self.call.done_writing()
                assert await self.read() is None
                return message.result
        raise AssertionError("the stream ended without a result")

    async def send(self, **message: Any) -> None:
        await self.call.write(pb.RunInstanceRequest(context=self.context, **message))

    async def _chunk(self, chunk: pb.ArtifactChunk) -> None:
        assert len(chunk.data) <= 256 * 1024
        if chunk.name:
            self._parts[chunk.upload_id] = (chunk.name, chunk.media_type, bytearray())
        name, media_type, data = self._parts[chunk.upload_id]
        data += chunk.data
        if chunk.last and self.store:
            self.artifacts[name] = bytes(data)
            artifact = pb.Artifact(
                name=name, media_type=media_type, size=len(data), sha256=hashlib.sha256(data).hexdigest()
            )
            await self.send(artifact_stored=pb.ArtifactStored(upload_id=chunk.upload_id, artifact=artifact))


@dataclass
class Deployment:
    """A running agent_instance, its emitter, and a stub to it."""

    emitter: FakeEmitter
    services: StageServices
    stub: agent_instance_pb2_grpc.AgentInstanceServiceStub

    def events(self, attempt: Attempt) -> list[Logged]:
        return self.emitter.log.get((attempt.context.user_id, attempt.producer_id), [])

    def kinds(self, attempt: Attempt) -> list[str]:
        return [event.kind for event in self.events(attempt)]

    async def start(
        self,
        agent: str,
        *,
        context: UserExecutionContext | None = None,
        params: dict[str, Any] | None = None,
        permissions: Sequence[str] = ("*",),
        user: str = "alice",
        number: int = 1,
        **fields: Any,
    ) -> Attempt:
        context = context or new_run_context(user, permissions=permissions)
        producer_id = f"{context.run_id}:0:{number}"
        start = pb.StartStage(
            agent_name=agent,
            attempt=number,
            fence=number,
            producer_id=producer_id,
            message="hello",
            params_json=orjson.dumps(params or {}),
            **fields,
        )
        attempt = Attempt(context, self.stub.RunInstance(), producer_id)
        await attempt.send(start=start)
        return attempt

    async def run(self, agent: str, *, half_close: bool = True, **options: Any) -> Attempt:
        attempt = await self.start(agent, **options)
        await attempt.finish(half_close=half_close)
        return attempt


@asynccontextmanager
async def deployment(
    *agents: type[Agent], heartbeat_s: float = 5.0, parting_s: float = 30.0, **settings: Any
) -> AsyncIterator[Deployment]:
    """agent_instance with these agents, as ``app`` builds it, for the length of the block."""
    configured = AgentInstanceSettings.model_validate({"warm_workers": 0, **settings})
    dependencies = dependency_checker(configured)
    emitter = FakeEmitter()
    async with AsyncExitStack() as stack:
        mcp = configured.mcp
        registry = AgentClassRegistry.of(*agents, servers={} if mcp is None else mcp.fingerprints())
        servers = None
        if mcp is not None:
            # However busy the machine is: these tests are about tools that are listed.
            servers = await stack.enter_async_context(open_tool_servers(mcp, registry, first_lists_s=60))
        services = stage_services(configured, registry, dependencies, tool_servers=servers)
        add = emitter_pb2_grpc.add_EmitterServiceServicer_to_server
        rpc = await stack.enter_async_context(serving([(add, emitter, "carrel.v1.EmitterService")]))
        emitters = await stack.enter_async_context(Copies(rpc.address, "emitter"))
        outlet = await stack.enter_async_context(ProducerStream.to_emitters(emitters))

        def producer(producer_id: str, context: Any, fence: int, attempt: int) -> StageProducer:
            return StageProducer(outlet, producer_id, context, fence=fence, attempt=attempt)

        verifier = identity().verifier()
        servicer = AgentInstanceServicer(
            services,
            dependencies,
            verifier,
            producer,
            limits=StreamLimits(heartbeat_s=heartbeat_s, first_message_s=0.3, parting_s=parting_s),
        )
        stack.push_async_callback(services.core.aclose)
        add_own = agent_instance_pb2_grpc.add_AgentInstanceServiceServicer_to_server
        own = await stack.enter_async_context(
            serving([(add_own, servicer, "carrel.v1.AgentInstanceService")], verifier=verifier)
        )
        yield Deployment(emitter, services, agent_instance_pb2_grpc.AgentInstanceServiceStub(own.channel))
        emitter.acks.set()
