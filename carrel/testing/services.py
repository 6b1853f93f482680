"""The services' own object graphs in one process, joined without sockets: what ``Chain`` runs agents on.

Real: tickets and their checks, the domains of all four services, their servicers and the streams between them, agents'
messages as bytes, the run store (SQLite, in a temporary folder). Not real: the gateway, gRPC's transport, worker
processes; the event log is kept in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

from carrel.context import UserExecutionContext
from carrel.testing.local import LocalChannel, OneCopy
from carrel.testing.options import ChainOptions
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from servicekit.delivery import Outlet, ProducerStream
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.principals import Scope
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.tasks import TaskOwner
from services.agent_instance.app import dependency_checker, stage_services
from services.agent_instance.client_emitter import StageProducer
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.model_calls import ModelDesk
from services.agent_instance.domain.model_endpoint import ModelEndpoint, ModelPolicy
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.service import AgentInstanceServicer
from services.agent_instance.workers.in_loop import InLoopExecutor
from services.bridge.domain.bridge import Bridge
from services.bridge.service import BridgeServicer
from services.bridge.store_memory import MemoryEventLog
from services.emitter.client_bridge import Publisher
from services.emitter.config import EmitterSettings
from services.emitter.convert import reason_name
from services.emitter.domain.guard import Guard
from services.emitter.domain.intake import Intake
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.sanitize import Sanitizer
from services.emitter.domain.statistics import Statistics
from services.emitter.service import EmitterServicer
from services.execution.client_agent_instance import GrpcAgentHost
from services.execution.client_contexts import RunContexts
from services.execution.client_emitter import EmitterSink
from services.execution.domain.admission import UserLimits
from services.execution.domain.catalogue import AgentCatalogue
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.limits import ModelLimits
from services.execution.domain.loops import keep_leases
from services.execution.domain.metrics import FactoryMetrics
from services.execution.domain.queue import promote_for_ever
from services.execution.domain.services import RunOptions, RunServices
from services.execution.domain.watch import Changes
from services.execution.store_artifacts import LocalArtifactFolder
from services.execution.store_sql_open import migrate_sqlite, open_sqlite_store

__all__ = ["Services", "open_services"]

_LEASE_S: Final = 15.0
_EVENTS: Final = frozenset({Scope.RUN})


@dataclass(frozen=True)
class Services:
    """What a chain asks: the factory that runs are asked of, what it stands on, and who may ask."""

    factory: ExecutionEngineFactory
    runs: RunServices
    minter: TicketMinter
    verifier: TicketVerifier
    tasks: TaskOwner


@dataclass(frozen=True)
class _Common:
    """Keys, and the owner of what the services start. ``failed`` is told of a fault of theirs."""

    keys: KeySet
    execution: TicketMinter
    tasks: TaskOwner
    failed: Callable[[str, BaseException], None]

    def verifier(self) -> TicketVerifier:
        return TicketVerifier(self.keys)

    def channel(self, servicer: Any) -> LocalChannel:
        return LocalChannel(servicer, self.verifier(), self.tasks)


@asynccontextmanager
async def open_services(
    registry: AgentClassRegistry,
    log: MemoryEventLog,
    options: ChainOptions,
    *,
    model: tuple[ModelEndpoint, str] | None,
    worker: Callable[[], InLoopExecutor],
    failed: Callable[[str, BaseException], None],
) -> AsyncIterator[Services]:
    """The four services, from the log upwards.

    Args:
        model: The endpoint and the default model's name.
        worker: Makes what an attempt of an agent runs in.
        failed: Told of a fault in the services themselves, which the chain does not survive.
    """
    gateway = generate_key("gateway-1", issuer="gateway")
    execution = generate_key("execution-1", issuer="execution", scopes={Scope.RUN})
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="carrel-testing-", ignore_cleanup_errors=True)))
        tasks = await stack.enter_async_context(TaskOwner(failed))
        keys = KeySet([gateway, execution])
        common = _Common(keys, TicketMinter(execution, "execution"), tasks, failed)
        bridge = await stack.enter_async_context(Bridge(log, on_failure=failed))
        emitter = await _emitter(stack, common, common.channel(BridgeServicer(bridge, common.verifier())), log, options)
        hosts = await _agent_instance(stack, common, emitter, registry, options, model=model, worker=worker)
        factory, runs = await _execution(stack, common, emitter, hosts, folder, options)
        yield Services(factory, runs, TicketMinter(gateway, "gateway"), common.verifier(), tasks)


async def _emitter(
    stack: AsyncExitStack, common: _Common, bridge: LocalChannel, log: MemoryEventLog, options: ChainOptions
) -> LocalChannel:
    settings = EmitterSettings.model_validate({"withheld_fields": options.withheld_fields})
    statistics, ledger = Statistics(), Ledger(settings.limits())
    guard = Guard(Sanitizer(settings.withheld_fields))
    publisher = Publisher(ledger, statistics)
    stub = BridgeServiceStub(cast(Any, bridge))
    await stack.enter_async_context(publisher.stream(lambda: cast(Any, stub.Publish()), on_failure=common.failed))
    events = common.verifier()

    async def fence_of(context: Any) -> int:
        run = await log.resolve_run(context.user_id, context.run_id)
        return 0 if run is None else run.fence

    intake = Intake(lambda message: cast(Any, events.verify(message, _EVENTS)), guard, ledger, statistics, reason_name)
    servicer = EmitterServicer(
        intake, guard, ledger, statistics, wake=lambda: publisher.wake(), counts=dict, fence_of=fence_of
    )
    return common.channel(servicer)


async def _outlet(stack: AsyncExitStack, common: _Common, emitter: LocalChannel) -> ProducerStream:
    stub = EmitterServiceStub(cast(Any, emitter))
    stream = ProducerStream(lambda: cast(Any, stub.Emit()), on_failure=common.failed)
    return await stack.enter_async_context(stream)


async def _agent_instance(
    stack: AsyncExitStack,
    common: _Common,
    emitter: LocalChannel,
    registry: AgentClassRegistry,
    options: ChainOptions,
    *,
    model: tuple[ModelEndpoint, str] | None,
    worker: Callable[[], InLoopExecutor],
) -> LocalChannel:
    values: dict[str, Any] = {
        "warm_workers": 0,
        "database": options.database,
        "times": {"idle": options.idle_timeout_s, "grace": options.grace_s},
    }
    desk: ModelDesk | None = None
    if model is not None:
        endpoint, name = model
        values["models"] = {"base_url": "http://in-memory", "default": name}
        desk = ModelDesk(endpoint, ModelPolicy(default=name, allowed=frozenset(options.models)))
    settings = AgentInstanceSettings.model_validate(values)
    dependencies = dependency_checker(settings)
    services = stage_services(settings, registry, dependencies, worker, desk)
    outlet: Outlet = await _outlet(stack, common, emitter)
    stack.push_async_callback(services.core.aclose)

    def producer(producer_id: str, context: UserExecutionContext, fence: int, attempt: int) -> StageProducer:
        return StageProducer(outlet, producer_id, context, fence=fence, attempt=attempt)

    return common.channel(AgentInstanceServicer(services, dependencies, common.verifier(), producer))


async def _execution(
    stack: AsyncExitStack,
    common: _Common,
    emitter: LocalChannel,
    hosts: LocalChannel,
    folder: Path,
    options: ChainOptions,
) -> tuple[ExecutionEngineFactory, RunServices]:
    path = folder / "runs.sqlite3"
    path.write_bytes(await asyncio.to_thread(_empty_store))
    store = await open_sqlite_store(
        path,
        migrate=True,
        engine_timeout_s=options.engine_timeout_s,
        lease_s=_LEASE_S,
        synchronous="OFF",
    )
    stack.push_async_callback(store.close)
    outlet = await _outlet(stack, common, emitter)
    # A run's failing task is that run's failure, as in the service.
    tasks = await stack.enter_async_context(TaskOwner(lambda name, error: None))
    contexts = RunContexts(common.execution)
    host = GrpcAgentHost(cast(Any, OneCopy(hosts)), contexts, tasks)
    runs = RunServices(
        store=store,
        folder=LocalArtifactFolder(folder / "artifacts"),
        host=host,
        sink=EmitterSink(outlet, contexts),
        catalogue=AgentCatalogue(host, tasks),
        tasks=tasks,
        metrics=FactoryMetrics(),
        changes=Changes(),
        clock=store.now,
        options=_run_options(options),
    )
    factory = ExecutionEngineFactory(runs)
    loops = await stack.enter_async_context(TaskOwner(common.failed))
    _ = loops.start(keep_leases(store, factory, _LEASE_S), "leases")
    _ = loops.start(promote_for_ever(runs, factory.holdings, runs.options.queue_poll_s), "queue")
    stack.callback(factory.stop)
    return factory, runs


@cache
def _empty_store() -> bytes:
    """A run store without runs. Making its tables takes ten times as long as copying them."""
    with TemporaryDirectory(prefix="carrel-testing-") as folder:
        path = Path(folder) / "empty.sqlite3"
        migrate_sqlite(path)
        return path.read_bytes()


def _run_options(options: ChainOptions) -> RunOptions:
    return RunOptions(
        max_attempts=options.max_attempts,
        cancel_grace_s=options.grace_s,
        limits=UserLimits(options.max_engines_per_user, options.max_unended_runs_per_user),
        models=ModelLimits(tokens=options.model_tokens),
        input_timeout_s=options.input_timeout_s,
        retry_first_s=0.01,
    )
