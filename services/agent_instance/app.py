"""Builds agent_instance's object graph: registry, pool, the stream to the emitter, the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from carrel.context import UserExecutionContext
from carrel.doctor_names import DOCTOR_AGENT
from carrel.v1.agent_instance_pb2_grpc import add_AgentInstanceServiceServicer_to_server
from servicekit.delivery import Outlet, ProducerStream
from servicekit.identity.keys import KeySet
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Phase, Starter
from servicekit.logs import get_logger
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from servicekit.tasks import TaskOwner
from servicekit.telemetry.calls import observe_server, observe_serving
from servicekit.telemetry.tracing import NO_TRACING, Tracing
from servicekit.tls.peers import Tls
from services.agent_instance.client_emitter import StageProducer
from services.agent_instance.client_mcp import open_servers
from services.agent_instance.client_model import OpenAiEndpoint
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.config_mcp import McpServers
from services.agent_instance.config_models import ModelSettings
from services.agent_instance.domain.activity import TimePolicy
from services.agent_instance.domain.core import AgentExecutionCore, CoreLimits
from services.agent_instance.domain.dispatcher import DispatchStrategy, UnifiedToolDispatcherFactory
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory
from services.agent_instance.domain.fallback import FallbackManager
from services.agent_instance.domain.mcp_servers import FIRST_LISTS_S
from services.agent_instance.domain.model_calls import ModelDesk
from services.agent_instance.domain.model_endpoint import ModelPolicy
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.domain.ports import ModelAccess, ToolServers
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.domain.stage import StageServices, StageTimes
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.proxy import ModelProxy
from services.agent_instance.service import AgentInstanceServicer, MakeProducer, StreamLimits
from services.agent_instance.service_metrics import observe_agent_instance
from services.agent_instance.workers.in_loop import InLoopExecutor
from services.agent_instance.workers.plant import Workers, open_workers

__all__ = ["app", "dependency_checker", "open_models", "open_tool_servers", "stage_services"]

_log: Final = get_logger("agent_instance.app")
_SERVICE: Final = "carrel.v1.AgentInstanceService"
# What is left of the drain for those who are given back to hear of it.
_LAST_WORDS_S: Final = 1.0


def dependency_checker(settings: AgentInstanceSettings) -> DependencyChecker:
    """Answers what agents may depend on in this deployment."""

    async def model(_entry: AgentEntry) -> str:
        return "" if settings.models.configured else "none is configured (CARREL_AGENT_INSTANCE_MODELS__BASE_URL)"

    async def tools(entry: AgentEntry) -> str:
        return "" if entry.tools or entry.servers else "it declares no tools"

    async def database(_entry: AgentEntry) -> str:
        return "" if settings.database else "the operator has declared none (CARREL_AGENT_INSTANCE_DATABASE)"

    return DependencyChecker({"llm": model, "tools": tools, "database": database})


def stage_services(
    settings: AgentInstanceSettings,
    registry: AgentClassRegistry,
    dependencies: DependencyChecker,
    workers: ExecutorFactory | None = None,
    models: ModelAccess | None = None,
    tool_servers: ToolServers | None = None,
    *,
    tracing: Tracing = NO_TRACING,
) -> StageServices:
    """What every attempt of the process uses, as the settings say.

    Args:
        workers: Makes worker processes; None to run every class as a task.
        models: The way to language models; None for none.
        tool_servers: MCP servers that agents get tools of.
        tracing: Makes the spans of what agents do.
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
        models=models,
        tool_servers=tool_servers,
        tracing=tracing,
    )


@asynccontextmanager
async def open_models(settings: ModelSettings, *, tells_trace: bool = False) -> AsyncIterator[ModelAccess | None]:
    """The way to language models for the length of the block; None when none is configured.

    Raises:
        StartupError: The package that speaks to them is not installed, or the key cannot be read.
    """
    if not settings.configured:
        yield None
        return
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(OpenAiEndpoint(settings, tells_trace=tells_trace))
        door: ModelProxy | None = None
        if settings.proxy:
            door = await stack.enter_async_context(ModelProxy(max_request_bytes=settings.max_request_bytes))
        _log.info(
            "language model",
            endpoint=urlsplit(settings.base_url).hostname,
            model=settings.default,
            proxy=door is not None,
        )
        yield ModelDesk(endpoint, _model_policy(settings), door=door)


def _model_policy(settings: ModelSettings) -> ModelPolicy:
    return ModelPolicy(
        default=settings.default,
        allowed=frozenset(settings.allowed),
        max_output_tokens=settings.max_output_tokens,
        output_limit_field=settings.output_limit_field,
        max_request_bytes=settings.max_request_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        max_proxied_bytes=settings.max_proxied_bytes,
        timeout_s=settings.timeout,
        wait_s=settings.wait,
        concurrency_per_user=settings.concurrency_per_user,
        max_waiting_per_user=settings.max_waiting_per_user,
    )


def open_tool_servers(
    configured: McpServers, registry: AgentClassRegistry, *, first_lists_s: float = FIRST_LISTS_S
) -> AbstractAsyncContextManager[ToolServers]:
    """Those MCP servers that an agent wants tools of.

    Raises:
        StartupError: The optional package is not installed.
    """
    wanted = {name for entry in registry.values() for name in entry.servers}
    if idle := [name for name in configured.by_name if name not in wanted]:
        _log.info("MCP servers that no agent wants tools of", servers=idle)
    used = McpServers({name: configured.by_name[name] for name in sorted(wanted)})
    return open_servers(used, first_lists_s=first_lists_s)


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
        registry = AgentClassRegistry.load(
            settings.sources, {} if settings.mcp is None else settings.mcp.fingerprints()
        )
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
        tls = Tls.of(settings, "agent_instance")
    dependencies = dependency_checker(settings)
    async with AsyncExitStack() as stack:
        async with start.phase(Phase.CONFIGURATION, needs="a language model's endpoint that can be used"):
            models = await stack.enter_async_context(
                open_models(settings.models, tells_trace=settings.telemetry.to_models)
            )
        workers: Workers | None = None
        # The doctor's agent follows the others: a deployment of tasks gets no zygote for its sake.
        if any(entry.isolation == "process" for entry in registry.values() if entry.name != DOCTOR_AGENT):
            async with start.phase(Phase.INTEGRATION, needs="worker processes for the agents"):
                workers = await stack.enter_async_context(open_workers(settings, registry))
        servers: ToolServers | None = None
        if settings.mcp is not None:
            async with start.phase(Phase.INTEGRATION, needs="the package that speaks with MCP servers"):
                servers = await stack.enter_async_context(open_tool_servers(settings.mcp, registry))
        services = stage_services(
            settings, registry, dependencies, workers, models, servers, tracing=start.telemetry.tracing
        )
        _tell_isolation(services.core)
        emitters = await stack.enter_async_context(Copies(settings.emitter, "emitter", tls=tls))
        async with start.phase(
            Phase.INTEGRATION,
            needs=f"the emitter at {settings.emitter}",
            advice="start the emitter, or set CARREL_AGENT_INSTANCE_EMITTER to where it is",
        ):
            await emitters.wait_for_start(settings.downstream_wait_seconds)
        outlet = await stack.enter_async_context(ProducerStream.to_emitters(emitters))
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
        server = RpcServer(
            settings.listen,
            [(add_AgentInstanceServiceServicer_to_server, servicer, _SERVICE)],
            verifier,
            settings,
            telemetry=observe_server(start.telemetry.meters),
            tracing=start.telemetry.tracing,
        )
        observe_serving(start.telemetry.meters, server)
        observe_agent_instance(start.telemetry.meters, services, None if workers is None else workers.memory)
        _ = tasks.start(_give_back(server, servicer, settings.drain_seconds), "end of the streams on drain")
        yield server


async def _give_back(server: RpcServer, servicer: AgentInstanceServicer, drain_s: float) -> None:
    """Give back what has not ended by itself in time, before it is cut off: another makes it, and no try is lost."""
    await server.draining.wait()
    await asyncio.sleep(max(0.0, drain_s - min(_LAST_WORDS_S, drain_s / 4)))
    servicer.end_streams()
