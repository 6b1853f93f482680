"""Builds agent_instance's object graph: registry, pool, the stream to the emitter, the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from carrel.context import UserExecutionContext
from carrel.v1.agent_instance_pb2_grpc import add_AgentInstanceServiceServicer_to_server
from servicekit.delivery import Outlet, ProducerStream
from servicekit.identity.keys import KeySet
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Phase, Starter
from servicekit.logs import get_logger
from servicekit.rpc.channel import open_channel
from servicekit.rpc.server import RpcServer
from servicekit.rpc.waiting import wait_ready
from servicekit.tasks import TaskOwner
from services.agent_instance.client_emitter import StageProducer
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.activity import TimePolicy
from services.agent_instance.domain.core import AgentExecutionCore, CoreLimits
from services.agent_instance.domain.dispatcher import DispatchStrategy, UnifiedToolDispatcherFactory
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory
from services.agent_instance.domain.fallback import FallbackManager
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.domain.stage import StageServices, StageTimes
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.service import AgentInstanceServicer, MakeProducer, StreamLimits
from services.agent_instance.workers.in_loop import InLoopExecutor
from services.agent_instance.workers.plant import open_workers

__all__ = ["app", "dependency_checker", "stage_services"]

_log: Final = get_logger("agent_instance.app")
_SERVICE: Final = "carrel.v1.AgentInstanceService"


def dependency_checker(settings: AgentInstanceSettings) -> DependencyChecker:
    """Answers what agents may depend on in this deployment."""

    async def model(_entry: AgentEntry) -> str:
        return "this version has no model access"

    async def tools(entry: AgentEntry) -> str:
        return "" if entry.tools else "it declares no tools"

    async def database(_entry: AgentEntry) -> str:
        return "" if settings.database else "the operator has declared none (CARREL_AGENT_INSTANCE_DATABASE)"

    return DependencyChecker({"llm": model, "tools": tools, "database": database})


def stage_services(
    settings: AgentInstanceSettings,
    registry: AgentClassRegistry,
    dependencies: DependencyChecker,
    workers: ExecutorFactory | None = None,
) -> StageServices:
    """What every attempt of the process uses, as the settings say.

    Args:
        workers: Makes worker processes; None to run every class as a task.
    """
    times, tools, chosen = settings.times, settings.tools, settings.workers

    def in_loop() -> AgentExecutor:
        return InLoopExecutor(kill_s=times.kill)

    pool = ResourcePool(workers or in_loop, warm=settings.warm_workers, start_timeout_s=chosen.start_timeout)
    strategy = DispatchStrategy.SEQUENTIAL if tools.sequential else DispatchStrategy.CONCURRENT
    return StageServices(
        core=AgentExecutionCore(
            registry,
            pool,
            dependencies,
            CoreLimits(
                capacity=settings.max_workers,
                user_capacity=settings.max_workers_per_user,
                children=chosen.max_children,
                waiting=chosen.max_waiting,
                waiting_per_user=chosen.max_waiting_per_user,
                wait_s=chosen.wait,
                reserve_s=times.reserve,
            ),
            in_loop=in_loop,
            isolation="task" if workers is None else "process",
        ),
        fallbacks=FallbackManager(registry, limit=settings.max_fallbacks),
        periodic=PeriodicUpdateManager(interval_s=times.periodic_update, limit=settings.max_periodic_updates),
        dispatchers=UnifiedToolDispatcherFactory(strategy, concurrency=tools.concurrency, max_open=tools.max_open),
        policy=TimePolicy(times.idle, times.idle_max, times.wall, times.wall_max),
        times=StageTimes(grace_s=times.grace, kill_s=times.kill, log_wait_s=times.log_wait),
    )


def _tell_isolation(core: AgentExecutionCore) -> None:
    by_kind: dict[str, list[str]] = {"process": [], "task": []}
    for entry in core.registry.values():
        by_kind[core.isolation(entry)].append(entry.name)
    _log.info("how agents run", **{kind: names for kind, names in by_kind.items() if names})
    if by_kind["task"]:
        _log.warning("agents that run in the service's own loop", agents=by_kind["task"], limit=InLoopExecutor.limit)


def _producers(outlet: Outlet) -> MakeProducer:
    def make(producer_id: str, context: UserExecutionContext, fence: int, attempt: int) -> StageProducer:
        return StageProducer(outlet, producer_id, context, fence=fence, attempt=attempt)

    return make


@asynccontextmanager
async def app(settings: AgentInstanceSettings, start: Starter) -> AsyncIterator[RpcServer]:
    """The service, ready to be started; leaving it ends every attempt and closes what it opened, in reverse."""
    async with start.phase(Phase.CONFIGURATION, needs="agent classes that can be loaded, and the ticket keys"):
        registry = AgentClassRegistry.load(settings.agents)
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
    dependencies = dependency_checker(settings)
    async with AsyncExitStack() as stack:
        workers: ExecutorFactory | None = None
        if any(entry.isolation == "process" for entry in registry.values()):
            async with start.phase(Phase.INTEGRATION, needs="worker processes for the agents"):
                workers = await stack.enter_async_context(open_workers(settings, registry))
        services = stage_services(settings, registry, dependencies, workers)
        _tell_isolation(services.core)
        channel = await stack.enter_async_context(open_channel(settings.emitter))
        async with start.phase(
            Phase.INTEGRATION,
            needs=f"the emitter at {settings.emitter}",
            advice="start the emitter, or set CARREL_AGENT_INSTANCE_EMITTER to where it is",
        ):
            await wait_ready(channel, f"the emitter at {settings.emitter}", settings.downstream_wait_seconds)
        outlet = await stack.enter_async_context(ProducerStream.to_emitter(channel))
        tasks = await stack.enter_async_context(TaskOwner())
        stack.push_async_callback(services.core.aclose)
        _ = tasks.start(services.core.housekeeping(), "instances' housekeeping")
        servicer = AgentInstanceServicer(
            services,
            dependencies,
            verifier,
            _producers(outlet),
            limits=StreamLimits(heartbeat_s=settings.times.heartbeat),
        )
        # Readiness says nothing of the emitter: events wait here while it is away, and nothing is lost.
        yield RpcServer(
            settings.listen, [(add_AgentInstanceServiceServicer_to_server, servicer, _SERVICE)], verifier, settings
        )
