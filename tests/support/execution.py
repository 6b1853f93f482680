"""execution in the test's own loop, between a scripted agent_instance and an emitter that plays the log. No tests here.

async with running_execution(tmp_path) as world:
    world.agents.scripts["data"] = answer({"rows": 3})
    response = await world.execute(pipeline=["data"])
    run = await world.ended(response.run.run_id)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from carrel.ids import new_id
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import agent_instance_pb2_grpc as ai_grpc
from carrel.v1 import context_pb2, emitter_pb2, emitter_pb2_grpc, events_pb2
from carrel.v1 import execution_pb2 as pb
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.identity.scopes import Scope
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from services.execution.app import app
from services.execution.config import ExecutionSettings
from tests.support.identity import identity, run_context, service_context, session_context
from tests.support.rpc import serving

Up = ai.RunInstanceResponse
Script = Callable[["Attempt"], AsyncIterator[Up]]

TERMINAL = {pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED, pb.RUN_STATE_TIMED_OUT}


@dataclass
class Attempt:
    """One attempt as the scripted agent sees it."""

    start: ai.StartStage
    context: context_pb2.UserExecutionContext
    messages: asyncio.Queue[ai.RunInstanceRequest] = field(default_factory=asyncio.Queue)
    half_closed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False


def result(value: Mapping[str, Any], answered_by: str = "") -> Up:
    """A successful end."""
    return Up(result=ai.StageResult(result_json=orjson.dumps(dict(value)), answered_by=answered_by))


def answer(value: Mapping[str, Any]) -> Script:
    """A script that accepts and succeeds at once."""

    async def script(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
        yield result(value, attempt.start.agent_name)

    return script


def asks(input_id: str, then: Mapping[str, Any], schema: Mapping[str, Any] | None = None) -> Script:
    """A script that asks a person, and once it has the answer succeeds with ``then`` and the answer."""

    async def script(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
        for given in attempt.start.inputs:
            if given.input_id == input_id:
                yield result({**then, "answer": orjson.loads(given.value_json)})
                return
        question = ai.InputRequired(input_id=input_id, prompt="sure?", schema_json=orjson.dumps(dict(schema or {})))
        yield Up(input_required=question)

    return script


async def stuck(attempt: Attempt) -> AsyncIterator[Up]:
    """A script that accepts and then ignores everything, cancellation too; its host still gives signs of life."""
    yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
    while True:
        await asyncio.sleep(0.05)
        yield Up(heartbeat=ai.Heartbeat())


async def silent(attempt: Attempt) -> AsyncIterator[Up]:
    """A script that accepts and says nothing more."""
    yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
    await asyncio.Event().wait()


class ScriptedAgents(ai_grpc.AgentInstanceServiceServicer):
    """agent_instance whose agents are scripts. ``agents`` is its registry: name → (requires, plans)."""

    def __init__(self, verifier: TicketVerifier) -> None:
        self._verifier = verifier
        self.agents: dict[str, tuple[tuple[str, ...], bool]] = {
            "supervisor": ((), True),
            "data": ((), False),
            "optimization": (("data",), False),
            "report": (("data", "optimization"), False),
            "left": (("right",), False),
            "right": (("left",), False),
        }
        self.scripts: dict[str, Script] = {}
        self.attempts: list[Attempt] = []

    async def ListAgents(self, request: ai.ListAgentsRequest, context: Any) -> ai.ListAgentsResponse:
        infos = [
            ai.AgentInfo(name=name, requires=requires, plans=plans) for name, (requires, plans) in self.agents.items()
        ]
        return ai.ListAgentsResponse(agents=infos, registry_digest="d1")

    async def RunInstance(
        self, requests: AsyncIterator[ai.RunInstanceRequest], context: Any
    ) -> AsyncIterator[ai.RunInstanceResponse]:
        first = await anext(aiter(requests))
        self._verifier.verify(first.context, frozenset({Scope.RUN}))
        attempt = Attempt(first.start, first.context)
        self.attempts.append(attempt)

        async def listen() -> None:
            async for request in requests:
                self._verifier.verify(request.context, frozenset({Scope.RUN}))
                attempt.messages.put_nowait(request)
            attempt.half_closed.set()

        listener = asyncio.create_task(listen())
        try:
            async for response in self.scripts[first.start.agent_name](attempt):
                yield response
        finally:
            attempt.closed = True
            listener.cancel()
            await asyncio.wait([listener])

    async def CreateInstance(self, request: ai.CreateInstanceRequest, context: Any) -> ai.CreateInstanceResponse:
        raise NotImplementedError

    async def ReleaseInstance(self, request: ai.ReleaseInstanceRequest, context: Any) -> ai.ReleaseInstanceResponse:
        raise NotImplementedError

    async def GetPoolStatistics(
        self, request: ai.GetPoolStatisticsRequest, context: Any
    ) -> ai.GetPoolStatisticsResponse:
        raise NotImplementedError

    async def GetLoad(self, request: ai.GetLoadRequest, context: Any) -> ai.GetLoadResponse:
        raise NotImplementedError

    def attempt(self, agent: str) -> Attempt | None:
        """The latest attempt of an agent."""
        return next((a for a in reversed(self.attempts) if a.start.agent_name == agent), None)


class LogEmitter(emitter_pb2_grpc.EmitterServiceServicer):
    """An emitter that plays the log too: idempotent by number, sealed by the terminal event. `hold` withholds acks."""

    def __init__(self, verifier: TicketVerifier) -> None:
        self._verifier = verifier
        self.events: dict[tuple[str, str], list[events_pb2.Event]] = defaultdict(list)
        self.fences: dict[tuple[str, str], int] = {}
        self.sealed: set[tuple[str, str]] = set()
        self.hold: Callable[[events_pb2.Event], bool] = lambda event: False
        self.released = asyncio.Event()
        self._numbers: dict[tuple[str, str], int] = defaultdict(int)

    async def Emit(
        self, requests: AsyncIterator[emitter_pb2.EmitRequest], context: Any
    ) -> AsyncIterator[emitter_pb2.EmitResponse]:
        async for request in requests:
            for item in request.items:
                if any(self.hold(event) for event in item.events):
                    await self.released.wait()
                yield emitter_pb2.EmitResponse(acks=[self._take(item)])

    async def Notify(self, request: emitter_pb2.NotifyRequest, context: Any) -> emitter_pb2.NotifyResponse:
        raise NotImplementedError

    async def Revoke(
        self, request: emitter_pb2.EmitterServiceRevokeRequest, context: Any
    ) -> emitter_pb2.EmitterServiceRevokeResponse:
        return emitter_pb2.EmitterServiceRevokeResponse()

    async def GetEmitterStatistics(
        self, request: emitter_pb2.GetEmitterStatisticsRequest, context: Any
    ) -> emitter_pb2.GetEmitterStatisticsResponse:
        raise NotImplementedError

    def _take(self, item: events_pb2.ProducerEvents) -> events_pb2.ProducerAck:
        self._verifier.verify(item.context, frozenset({Scope.RUN}))
        user, run = item.context.user_id, item.context.run_id
        key = (user, item.producer_id)
        ack = events_pb2.ProducerAck(user_id=user, producer_id=item.producer_id)
        if item.fence < self.fences.get((user, run), 0):
            ack.refusal.reason = events_pb2.REFUSAL_REASON_STALE_FENCE
            return ack
        self.fences[user, run] = item.fence
        for event in item.events:
            if event.number <= self._numbers[key]:
                continue
            if (user, run) in self.sealed:
                ack.refusal.reason = events_pb2.REFUSAL_REASON_SEALED
                break
            if event.number != self._numbers[key] + 1:
                ack.refusal.reason = events_pb2.REFUSAL_REASON_GAP
                ack.refusal.last_number = self._numbers[key]
                break
            self._numbers[key] = event.number
            self.events[user, run].append(event)
            if event.event_type == "run_completed":
                self.sealed.add((user, run))
        ack.through = self._numbers[key]
        return ack

    def log(self, run: str, user: str = "alice") -> list[tuple[str, dict[str, Any]]]:
        """What the log has of a run: kinds and data."""
        return [(event.event_type, orjson.loads(event.data)) for event in self.events[user, run]]

    def kinds(self, run: str, user: str = "alice") -> list[str]:
        """The kinds of the log's events of a run."""
        return [kind for kind, _ in self.log(run, user)]


@dataclass
class World:
    """Everything around a running execution."""

    agents: ScriptedAgents
    emitter: LogEmitter
    stub: Any
    address: str
    folder: Path

    async def execute(
        self,
        *,
        user: str = "alice",
        run: str = "",
        thread: str = "",
        pipeline: Sequence[str] = ("data",),
        limits: Mapping[str, int] | None = None,
        timeout: float = 20.0,
        message: str = "hello",
        **fields: Any,
    ) -> pb.ExecutePipelineResponse:
        """Ask for a run under a run ticket of its own."""
        context = run_context(
            user,
            thread=thread or new_id("thread"),
            run=run or new_id("run"),
            request=new_id("req"),
            permissions=["trace:read"],
            limits=limits,
        )
        request = pb.ExecutePipelineRequest(context=context, message=message, pipeline=pipeline, **fields)
        response: pb.ExecutePipelineResponse = await self.stub.ExecutePipeline(request, timeout=timeout)
        return response

    async def run(self, run_id: str, user: str = "alice") -> pb.Run:
        """The run as it is now."""
        response = await self.stub.GetRun(pb.GetRunRequest(context=session_context(user), run_id=run_id), timeout=20.0)
        run: pb.Run = response.run
        return run

    async def watched(self, run_id: str, user: str = "alice", within: float = 20.0) -> list[pb.Run]:
        """Every state that WatchRun tells, to the last."""
        call = self.stub.WatchRun(pb.WatchRunRequest(context=session_context(user), run_id=run_id), timeout=within)
        return [response.run async for response in call]

    async def ended(self, run_id: str, user: str = "alice", within: float = 20.0) -> pb.Run:
        """The run once it is terminal."""
        return (await self.watched(run_id, user, within))[-1]

    async def cancel(self, run_id: str, user: str = "alice", reason: str = "") -> pb.Run:
        """Ask for a run's end."""
        request = pb.CancelRunRequest(context=session_context(user), run_id=run_id, reason=reason)
        run: pb.Run = (await self.stub.CancelRun(request, timeout=20.0)).run
        return run

    async def reaches(
        self, run_id: str, state: pb.RunState.ValueType, user: str = "alice", within: float = 20.0
    ) -> pb.Run:
        """The run once it is in this state."""
        request = pb.WatchRunRequest(context=session_context(user), run_id=run_id)
        call = self.stub.WatchRun(request, timeout=within)
        try:
            async for response in call:
                if response.run.state == state:
                    found: pb.Run = response.run
                    return found
        finally:
            call.cancel()
        raise AssertionError(f"the run has ended otherwise than {pb.RunState.Name(state)}")

    async def provide(self, run_id: str, input_id: str, value: Any, user: str = "alice") -> pb.Run:
        """Answer a run's question."""
        request = pb.ProvideInputRequest(
            context=session_context(user), run_id=run_id, input_id=input_id, value_json=orjson.dumps(value)
        )
        run: pb.Run = (await self.stub.ProvideInput(request, timeout=20.0)).run
        return run

    def keep(self, run_id: str, user: str = "alice", *, alive: bool = True) -> Any:
        """A stream that keeps a bound run alive."""
        request = pb.WatchRunRequest(context=session_context(user), run_id=run_id, keeps_alive=alive)
        return self.stub.WatchRun(request)

    async def metrics(self) -> pb.GetFactoryMetricsResponse:
        """The factory's counts."""
        request = pb.GetFactoryMetricsRequest(context=service_context())
        response: pb.GetFactoryMetricsResponse = await self.stub.GetFactoryMetrics(request, timeout=20.0)
        return response


def execution_settings(folder: Path, agents: str, emitter: str, **changes: Any) -> ExecutionSettings:
    """Settings of an execution in ``folder``, with the test identity's keys."""
    jwks, _, key = identity().write(folder / "keys")
    values = {
        "listen": "127.0.0.1:0",
        "agent_instance": agents,
        "emitter": emitter,
        "ticket_jwks": jwks,
        "ticket_key": key,
        "data_dir": folder / "data",
        "drain_seconds": 0.2,
        "cancel_grace_seconds": 0.3,
    }
    return ExecutionSettings.model_validate(values | changes)


@asynccontextmanager
async def neighbours() -> AsyncIterator[tuple[ScriptedAgents, str, LogEmitter, str]]:
    """The two services below execution, on ports of their own, with their addresses."""
    agents, emitter = ScriptedAgents(identity().verifier()), LogEmitter(identity().verifier())
    async with (
        serving(
            [(ai_grpc.add_AgentInstanceServiceServicer_to_server, agents, "carrel.v1.AgentInstanceService")]
        ) as agent_rpc,
        serving(
            [(emitter_pb2_grpc.add_EmitterServiceServicer_to_server, emitter, "carrel.v1.EmitterService")]
        ) as emitter_rpc,
    ):
        yield agents, agent_rpc.address, emitter, emitter_rpc.address


@asynccontextmanager
async def running_execution(
    folder: Path, *, scripts: Mapping[str, Script] | None = None, **changes: Any
) -> AsyncIterator[World]:
    """execution as its ``app`` builds it; ``changes`` are settings. ``scripts`` are there when it resumes runs."""
    async with neighbours() as (agents, agents_at, emitter, emitter_at):
        agents.scripts |= scripts or {}
        settings = execution_settings(folder, agents_at, emitter_at, **changes)
        async with app(settings, Starter("execution")) as running:
            await running.start()
            async with open_channel(running.address) as channel:
                yield World(agents, emitter, pb_grpc.ExecutionServiceStub(channel), running.address, folder)
            await running.drain()


@asynccontextmanager
async def running_replicas(
    folder: Path, store_url: str, *, count: int = 2, scripts: Mapping[str, Script] | None = None, **changes: Any
) -> AsyncIterator[list[World]]:
    """Several executions on one PostgreSQL database, between the same neighbours; ``changes`` are settings of each."""
    async with neighbours() as (agents, agents_at, emitter, emitter_at), AsyncExitStack() as stack:
        agents.scripts |= scripts or {}
        worlds = []
        for number in range(count):
            home = folder / f"replica-{number}"
            settings = execution_settings(home, agents_at, emitter_at, store_url=store_url, **changes)
            running = await stack.enter_async_context(app(settings, Starter("execution")))
            stack.push_async_callback(running.drain)
            await running.start()
            channel = await stack.enter_async_context(open_channel(running.address))
            worlds.append(World(agents, emitter, pb_grpc.ExecutionServiceStub(channel), running.address, home))
        yield worlds


def refusals(results: Iterable[Any], kind: type[BaseException]) -> list[Any]:
    """Those of the results that are errors of this kind."""
    return [item for item in results if isinstance(item, kind)]
