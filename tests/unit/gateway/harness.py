"""A gateway in the test's own loop, over real gRPC: the real bridge, its log in memory, a fake execution, fake agents.

    async with gateway(tmp_path) as g:
        ws = await g.connect("alice")
        await g.publish("alice", "run-a", 3)

Everything between is the real one: tokens, tickets, sockets. Only processes and durable stores are missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import jwt
import orjson
from grpc import aio

from carrel.errors import (
    CarrelError,
    DrainingError,
    IdempotencyConflictError,
    InvalidInputError,
    NotWaitingError,
    UnknownArtifactError,
    UnknownRunError,
)
from carrel.ids import new_id
from carrel.v1 import (
    agent_instance_pb2,
    agent_instance_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    events_pb2,
    execution_pb2,
    execution_pb2_grpc,
)
from gateway.app import app
from gateway.config import GatewaySettings
from gateway.server import GatewayServer
from servicekit.identity.principals import SessionPrincipal
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from servicekit.rpc.context import current_principal
from servicekit.rpc.server import RpcServer
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.store_memory import MemoryEventLog
from tests.support.identity import identity, run_context, service_context
from tests.support.rpc import serving

SECRET = "a-shared-secret-of-32-bytes-or-more-for-tests"
ISSUER = "carrel-dev"
AUDIENCE = "carrel"

_Context = aio.ServicerContext[Any, Any]


def token(user: str = "alice", *, ttl_s: float = 300, secret: str = SECRET, **claims: Any) -> str:
    """A login token; ``claims`` override or add, and None takes one out."""
    now = int(time.time())
    body: dict[str, Any] = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + ttl_s} | claims
    if ttl_s <= 0:
        body["iat"] = body["exp"] - 60
    return jwt.encode({k: v for k, v in body.items() if v is not None}, secret, algorithm="HS256")


# An RPC that the gateway does not call.
_never: Any = None


@dataclass
class FakeExecution(execution_pb2_grpc.ExecutionServiceServicer):
    """Runs as rows; a test moves them with ``finish`` and ``ask``.

    A bound run is cancelled when the last stream that keeps it alive ends.
    """

    CreateEngine = CleanupEngine = ListEngines = ListAuditRecords = GetFactoryMetrics = RevokeUser = _never

    runs: dict[tuple[str, str], execution_pb2.Run] = field(default_factory=dict)
    requests: list[execution_pb2.ExecutePipelineRequest] = field(default_factory=list)
    artifacts: dict[tuple[str, str, str], tuple[str, bytes]] = field(default_factory=dict)
    error: Exception | None = None
    delay_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0
    broken: int = 0
    bound: set[str] = field(default_factory=set)
    kept: dict[str, int] = field(default_factory=dict)
    answers: list[execution_pb2.ProvideInputRequest] = field(default_factory=list)
    first_state: str = "RUNNING"
    claimed: set[str] = field(default_factory=set)
    revoked: list[execution_pb2.Revocation] = field(default_factory=list)
    signed_out: list[execution_pb2.SignedOutLogin] = field(default_factory=list)
    audited: list[tuple[str, str, str]] = field(default_factory=list)

    def finish(self, user: str, run_id: str, state: str = "SUCCEEDED", result: bytes = b'{"answer":42}') -> None:
        run = self.runs[user, run_id]
        run.state = execution_pb2.RunState.Value(f"RUN_STATE_{state}")
        if state == "SUCCEEDED":
            run.result_json = result
        run.ended_at.GetCurrentTime()
        self.changed.set()

    def ask(self, user: str, run_id: str, input_id: str = "input-1", **question: Any) -> None:
        """The run waits for an answer, which must be true or false."""
        run = self.runs[user, run_id]
        run.state = execution_pb2.RUN_STATE_WAITING
        schema = b'{"type":"boolean"}'
        run.waiting_for.CopyFrom(
            agent_instance_pb2.InputRequired(input_id=input_id, prompt="Go on?", schema_json=schema, **question)
        )
        run.waiting_for.expires_at.FromSeconds(1_900_000_000)
        self.changed.set()

    async def ClaimOnce(
        self, request: execution_pb2.ClaimOnceRequest, context: _Context
    ) -> execution_pb2.ClaimOnceResponse:
        first = request.name not in self.claimed
        self.claimed.add(request.name)
        return execution_pb2.ClaimOnceResponse(first=first)

    async def ListRevocations(
        self, request: execution_pb2.ListRevocationsRequest, context: _Context
    ) -> execution_pb2.ListRevocationsResponse:
        return execution_pb2.ListRevocationsResponse(revocations=self.revoked, signed_out=self.signed_out)

    async def SignOut(self, request: execution_pb2.SignOutRequest, context: _Context) -> execution_pb2.SignOutResponse:
        principal = current_principal()
        assert isinstance(principal, SessionPrincipal)
        if self.error is not None:
            raise self.error
        if request.everywhere:
            self.revoke(principal.user_id)
            return execution_pb2.SignOutResponse(not_before=self.revoked[-1].not_before, cancelled_runs=1)
        gone = execution_pb2.SignedOutLogin(
            login=principal.login, user_id=principal.user_id, expires_at=request.expires_at
        )
        self.signed_out.append(gone)
        return execution_pb2.SignOutResponse()

    async def RecordAudit(
        self, request: execution_pb2.RecordAuditRequest, context: _Context
    ) -> execution_pb2.RecordAuditResponse:
        if self.error is not None:
            raise self.error
        self.audited.append((request.user_id, request.action, request.target))
        return execution_pb2.RecordAuditResponse()

    def revoke(self, user: str) -> None:
        revocation = execution_pb2.Revocation(user_id=user)
        revocation.not_before.FromNanoseconds(time.time_ns())
        self.revoked.append(revocation)

    def _own(self, run_id: str) -> execution_pb2.Run:
        run = self.runs.get((current_principal().user_id, run_id))  # type: ignore[union-attr]  # a user's principal
        if run is None:
            raise UnknownRunError("no such run")
        return run

    async def ExecutePipeline(self, request: Any, context: _Context) -> Any:
        self.requests.append(request)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        user = request.context.user_id
        for run in [run for (owner, _), run in self.runs.items() if owner == user]:
            if request.client_ref and run.client_ref == request.client_ref:
                if request.message == "another":
                    raise IdempotencyConflictError("other content")
                return execution_pb2.ExecutePipelineResponse(run=run, existing=True)
        run = execution_pb2.Run(
            run_id=request.context.run_id,
            thread_id=request.context.thread_id,
            request_id=request.context.request_id,
            state=execution_pb2.RunState.Value(f"RUN_STATE_{self.first_state}"),
            client_ref=request.client_ref,
            agent_name=request.pipeline[0] if request.pipeline else "supervisor",
        )
        run.created_at.GetCurrentTime()
        self.runs[user, run.run_id] = run
        if request.bound_to_caller:
            self.bound.add(run.run_id)
        return execution_pb2.ExecutePipelineResponse(run=run)

    def break_watches(self, error: CarrelError | None = None) -> None:
        """End every watch as a restart would, or with this error."""
        self.broken += 1
        self.broken_by = error or DrainingError("execution restarts")
        self.changed.set()

    async def WatchRun(self, request: Any, context: _Context) -> AsyncIterator[Any]:
        run, broken = self._own(request.run_id), self.broken
        last: execution_pb2.RunState.ValueType = execution_pb2.RUN_STATE_UNSPECIFIED
        keeps, user = request.keeps_alive and run.run_id in self.bound, current_principal().user_id  # type: ignore[union-attr]  # a user's principal
        self.watchers += 1
        self.kept[run.run_id] = self.kept.get(run.run_id, 0) + keeps
        try:
            while last < execution_pb2.RUN_STATE_SUCCEEDED:
                if broken != self.broken:
                    raise self.broken_by
                self.changed.clear()
                if run.state != last:
                    last = run.state
                    yield execution_pb2.WatchRunResponse(run=run)
                    continue
                await self.changed.wait()
        finally:
            self.watchers -= 1
            self.kept[run.run_id] -= keeps
            if (
                keeps
                and not self.kept[run.run_id]
                and broken == self.broken
                and last < execution_pb2.RUN_STATE_SUCCEEDED
            ):
                self.finish(user, run.run_id, "CANCELLED")

    async def GetRun(self, request: Any, context: _Context) -> Any:
        return execution_pb2.GetRunResponse(run=self._own(request.run_id))

    async def ListRuns(self, request: Any, context: _Context) -> Any:
        user = request.context.user_id
        runs = [run for (owner, _), run in self.runs.items() if owner == user]
        if request.states:
            runs = [run for run in runs if run.state in request.states]
        start, size = int(request.page_token or 0), request.page_size or 50
        more = str(start + size) if start + size < len(runs) else ""
        return execution_pb2.ListRunsResponse(runs=runs[start : start + size], next_page_token=more)

    async def CancelRun(self, request: Any, context: _Context) -> Any:
        run = self._own(request.run_id)
        if run.state < execution_pb2.RUN_STATE_SUCCEEDED:
            self.finish(request.context.user_id, request.run_id, "CANCELLED")
        return execution_pb2.CancelRunResponse(run=run)

    async def ProvideInput(self, request: Any, context: _Context) -> Any:
        run = self._own(request.run_id)
        self.answers.append(request)
        if run.state != execution_pb2.RUN_STATE_WAITING or run.waiting_for.input_id != request.input_id:
            raise NotWaitingError("the run does not wait for an answer to this question")
        if request.value_json not in {b"true", b"false"}:
            raise InvalidInputError("the answer does not fit", fields={"value": "must be true or false"})
        run.ClearField("waiting_for")
        run.state = execution_pb2.RUN_STATE_QUEUED
        self.changed.set()
        return execution_pb2.ProvideInputResponse(run=run)

    async def ListThreads(self, request: Any, context: _Context) -> Any:
        user = request.context.user_id
        ids = {run.thread_id for (owner, _), run in self.runs.items() if owner == user}
        return execution_pb2.ListThreadsResponse(threads=[execution_pb2.Thread(thread_id=i) for i in sorted(ids)])

    async def GetThread(self, request: Any, context: _Context) -> Any:
        message = agent_instance_pb2.ConversationMessage(role="user", text="hello", run_id="run-1")
        thread = execution_pb2.Thread(thread_id=request.thread_id, message_count=1)
        return execution_pb2.GetThreadResponse(thread=thread, messages=[message])

    async def DeleteThread(self, request: Any, context: _Context) -> Any:
        user = request.context.user_id
        gone = [key for key, run in self.runs.items() if key[0] == user and run.thread_id == request.thread_id]
        for key in gone:
            del self.runs[key]
        return execution_pb2.DeleteThreadResponse(deleted=bool(gone))

    async def GetArtifact(self, request: Any, context: _Context) -> AsyncIterator[Any]:
        found = self.artifacts.get((request.context.user_id, request.run_id, request.name))
        if found is None:
            raise UnknownArtifactError("no such artifact")
        media_type, data = found
        reference = agent_instance_pb2.Artifact(
            name=request.name, media_type=media_type, size=len(data), sha256="ab12", run_id=request.run_id
        )
        yield execution_pb2.GetArtifactResponse(artifact=reference)
        for at in range(0, len(data), 65536):
            yield execution_pb2.GetArtifactResponse(data=data[at : at + 65536])


class FakeAgents(agent_instance_pb2_grpc.AgentInstanceServiceServicer):
    """One agent."""

    CreateInstance = ReleaseInstance = GetPoolStatistics = GetLoad = _never
    RunInstance = _never

    async def ListAgents(self, request: Any, context: _Context) -> Any:
        agent = agent_instance_pb2.AgentInfo(
            name="data", description="profiles", isolation=agent_instance_pb2.ISOLATION_PROCESS, available=True
        )
        return agent_instance_pb2.ListAgentsResponse(agents=[agent], registry_digest="d1")


class Socket:
    """A client's connection."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def send(self, **frame: Any) -> None:
        await self.ws.send_str(orjson.dumps(frame).decode())

    async def frame(self, within_s: float = 15.0) -> dict[str, Any]:
        """The next frame; fails when the connection ends instead."""
        message = await self.ws.receive(timeout=within_s)
        assert message.type is aiohttp.WSMsgType.TEXT, f"{message.type.name} {message.data} {message.extra}"
        loaded: dict[str, Any] = orjson.loads(message.data)
        return loaded

    async def control(self, kind: str) -> dict[str, Any]:
        """The next frame of this type, passing over others."""
        while True:
            frame = await self.frame()
            if frame.get("type") == kind:
                return frame

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next events, out of batches too, passing over control frames."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            frame = await self.frame()
            if frame.get("event_type") == "event_batch":
                found += frame["events"]
            elif "event_type" in frame:
                found.append(frame)
        return found

    async def closed(self, within_s: float = 15.0) -> tuple[list[dict[str, Any]], int | None]:
        """Frames up to the end, and the close code."""
        frames: list[dict[str, Any]] = []
        async with asyncio.timeout(within_s):
            while True:
                message = await self.ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return frames, self.ws.close_code
                frames.append(orjson.loads(message.data))


@dataclass
class Gateway:
    """A running gateway and what is around it."""

    server: GatewayServer
    settings: GatewaySettings
    execution: FakeExecution
    log: MemoryEventLog
    bridge: Bridge
    http: aiohttp.ClientSession
    execution_server: RpcServer
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    sockets: list[Socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.server.address}"

    async def connect(self, user: str = "alice", path: str = "/ws", **options: Any) -> Socket:
        """A connection with a bearer token; the first frame is still to be read."""
        headers = {"Authorization": f"Bearer {options.pop('token', None) or token(user)}"} | options.pop("headers", {})
        return await self.open(path, headers=headers, **options)

    async def open(self, path: str = "/ws", **options: Any) -> Socket:
        socket = Socket(await self.http.ws_connect(self.url + path, **options))
        self.sockets.append(socket)
        return socket

    async def ready(self, user: str = "alice", **options: Any) -> tuple[Socket, dict[str, Any]]:
        """A connection and its ``connected`` frame."""
        socket = await self.connect(user, **options)
        return socket, await socket.control("connected")

    async def publish(
        self,
        user: str,
        run_id: str,
        count: int = 1,
        *,
        thread: str = "thread-1",
        data: Mapping[str, Any] | None = None,
        last: bool = False,
    ) -> None:
        """Append events to the user's log, as the emitter does; with ``last`` the run's terminal event is the last."""
        await self.bridge.publish(self.numbers, user, run_id, count, thread, data, last=last)


class Bridge:
    """The real bridge over one log that outlives it: it can be killed and started again at the same address."""

    def __init__(self, log: MemoryEventLog, tmp_path: Path) -> None:
        self.log = log
        self.port = 0
        self._settings = {"state_dir": tmp_path, "drain_seconds": 0.1}
        self._stack: AsyncExitStack | None = None
        self.server: RpcServer | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> Self:
        settings = BridgeSettings.model_validate(self._settings | {"listen": self.address})
        self._stack = AsyncExitStack()
        self.server = await self._stack.enter_async_context(serve_bridge(settings, self.log, identity().verifier()))
        self.port = await self.server.start()
        return self

    async def kill(self) -> None:
        if self._stack is not None:
            assert self.server is not None
            await self.server.drain(0)
            await self._stack.aclose()
            self._stack = None

    async def state(self) -> bridge_pb2.GetStateResponse:
        """Its counts."""
        async with open_channel(self.address) as channel:
            request = bridge_pb2.GetStateRequest(context=service_context())
            return await bridge_pb2_grpc.BridgeServiceStub(channel).GetState(request)

    async def publish(
        self,
        numbers: dict[tuple[str, str], int],
        user: str,
        run_id: str,
        count: int,
        thread: str,
        data: Mapping[str, Any] | None,
        *,
        last: bool = False,
    ) -> None:
        first = numbers.get((user, run_id), 0) + 1
        numbers[user, run_id] = first + count - 1
        context = run_context(user, thread=thread, run=run_id)
        requests = []
        for begin in range(first, first + count, 100):
            item = events_pb2.ProducerEvents(context=context, producer_id=f"{run_id}:0:1", attempt=1)
            for number in range(begin, min(begin + 100, first + count)):
                event = item.events.add(event_id=new_id("evt"), number=number, event_type="agent_thinking")
                event.agent_name = "data"
                event.timestamp.GetCurrentTime()
                event.data = orjson.dumps({"text": f"{run_id} {number}", **(data or {})})
                if last and number == first + count - 1:
                    event.event_type, event.data = "run_completed", b'{"status":"SUCCEEDED"}'
            requests.append(bridge_pb2.PublishRequest(items=[item]))
        async with open_channel(self.address) as channel:
            call = bridge_pb2_grpc.BridgeServiceStub(channel).Publish()
            for request in requests:
                await call.write(request)
            through = 0
            while through < first + count - 1:
                response = await call.read()
                assert isinstance(response, bridge_pb2.PublishResponse)
                for ack in response.acks:
                    assert not ack.HasField("refusal"), ack
                    through = ack.through
            await call.done_writing()
            call.cancel()


@asynccontextmanager
async def gateway(tmp_path: Path, **changes: Any) -> AsyncIterator[Gateway]:
    """A gateway and its upstream, for the length of the block; ``changes`` are settings."""
    identity().write(tmp_path / "keys")
    secret = tmp_path / "keys" / "login.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    execution, agents, log = FakeExecution(), FakeAgents(), MemoryEventLog()
    bridge = Bridge(log, tmp_path)
    async with (
        serving(
            [(execution_pb2_grpc.add_ExecutionServiceServicer_to_server, execution, "carrel.v1.ExecutionService")]
        ) as executing,
        serving(
            [
                (
                    agent_instance_pb2_grpc.add_AgentInstanceServiceServicer_to_server,
                    agents,
                    "carrel.v1.AgentInstanceService",
                )
            ]
        ) as instances,
        aiohttp.ClientSession() as http,
    ):
        await bridge.start()
        settings = GatewaySettings.model_validate(
            {
                "state_dir": tmp_path,
                "listen": "127.0.0.1:0",
                "execution": executing.address,
                "agent_instance": instances.address,
                "bridge": bridge.address,
                "drain_seconds": 1.0,
            }
            | changes
        )
        try:
            async with app(settings, Starter("gateway")) as server:
                await server.start()
                g = Gateway(server, settings, execution, log, bridge, http, executing.server)
                yield g
                await asyncio.gather(*(socket.ws.close() for socket in g.sockets))
        finally:
            await bridge.kill()
