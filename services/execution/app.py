"""Builds execution's object graph, phase by phase, and takes it down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from carrel.errors import UnavailableError
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.delivery import ProducerStream
from servicekit.features import PLACE_BY_LOAD, Features, open_features
from servicekit.health import Readiness
from servicekit.identity.keys import KeySet
from servicekit.identity.signing import FollowedKey
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.lifecycle import Phase, Running, Starter
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from servicekit.tasks import TaskOwner
from servicekit.telemetry.calls import observe_server, observe_serving
from servicekit.telemetry.runtime import Runtime
from servicekit.tls.peers import Tls
from services.execution.client_agent_instance import GrpcAgentHost
from services.execution.client_bridge import BridgeRunLog
from services.execution.client_contexts import RunContexts
from services.execution.client_emitter import EmitterSink
from services.execution.client_revocations import RevocationTeller, to_bridge, to_emitter
from services.execution.config import ExecutionSettings
from services.execution.domain.catalogue import AgentCatalogue
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.loops import clean_up_for_ever, keep_leases, take_over
from services.execution.domain.metrics import FactoryMetrics
from services.execution.domain.placement import Placement
from services.execution.domain.ports import StageStart
from services.execution.domain.queue import DecisionWatch, promote_for_ever, watch_decisions
from services.execution.domain.revocations import RevokedUsers
from services.execution.domain.services import RunServices
from services.execution.domain.timing import RunTimings
from services.execution.domain.wakeups import HintedLooks
from services.execution.domain.watch import Changes
from services.execution.models import RunRef
from services.execution.service import ExecutionServicer
from services.execution.service_metrics import observe_execution
from services.execution.store import RunStore
from services.execution.store_open import open_stores

__all__ = ["app"]

_SERVICE = "carrel.v1.ExecutionService"


@asynccontextmanager
async def app(settings: ExecutionSettings, start: Starter) -> AsyncIterator[Running]:
    """The service, from its settings. Leaving it ends runs' tasks, hands their leases on and closes the stores."""
    async with start.phase(Phase.CONFIGURATION, needs="the ticket keys", advice="`carrel up` makes them"):
        contexts = RunContexts(TicketMinter(FollowedKey(settings.ticket_key, "execution"), "execution"))
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
        features = open_features(settings.features_file, settings.features)
        tls = Tls.of(settings, "execution")
    async with start.phase(Phase.INTEGRATION, needs=settings.store_name):
        stores = await open_stores(settings)
    store = stores.store
    try:
        async with (
            Copies(settings.agent_instance, "agent_instance", tls=tls) as agents,
            Copies(settings.emitter, "emitter", tls=tls) as emitters,
            open_channel(settings.bridge, tls=tls.to("bridge")) as bridge,
            Copies(settings.bridge, "bridge", tls=tls) as bridges,
            ProducerStream.to_emitters(emitters) as outlet,
            # A run's failing task is that run's failure: it is logged, and the others go on.
            TaskOwner(on_failure=_ignore) as run_tasks,
            TaskOwner() as loops,
        ):
            wait_s = settings.downstream_wait_seconds
            async with start.phase(Phase.INTEGRATION, needs=f"agent_instance at {settings.agent_instance}"):
                await agents.wait_for_start(wait_s)
            async with start.phase(Phase.INTEGRATION, needs=f"the emitter at {settings.emitter}"):
                await emitters.wait_for_start(wait_s)
            metrics = FactoryMetrics()
            host = GrpcAgentHost(
                agents,
                contexts,
                run_tasks,
                partial(_keep_place, store, run_tasks),
                Placement(by_load=partial(features.on, PLACE_BY_LOAD)),
            )
            services = RunServices(
                store=store,
                folder=stores.folder,
                host=host,
                sink=EmitterSink(outlet, contexts),
                catalogue=AgentCatalogue(host, run_tasks),
                tasks=run_tasks,
                metrics=metrics,
                changes=Changes(stores.wakeups.changed),
                clock=store.now,
                options=settings.run_options(),
                wakeups=stores.wakeups,
                timings=RunTimings(metrics.run_ended),
                tracing=start.telemetry.tracing,
            )
            factory = ExecutionEngineFactory(services)
            async with start.phase(Phase.INTEGRATION, needs="the agents of agent_instance"):
                await services.catalogue.covering()
                await take_over(store, factory)
            _ = loops.start(host.keep_asking(), "agent_instances' load")
            _start_loops(loops, settings, services, factory, features)
            revoked = await _revocations(loops, store, factory, verifier)
            teller = RevocationTeller(revoked, contexts.asking_again, [(emitters, to_emitter), (bridges, to_bridge)])
            _ = loops.start(teller.tell_for_ever(), "revocations for emitters and bridges")
            # Not waited for: runs need the emitter, and only those who watch a run's events the bridge.
            servicer = ExecutionServicer(factory, services, verifier, BridgeRunLog(bridge), revoked=revoked)
            server = _server(settings, services, servicer, verifier, start.telemetry)
            revoked.on_change = server.guard.look
            observe_execution(start.telemetry.meters, factory, services, stores.times, revoked)
            yield _Execution(server, factory, settings.drain_seconds)
            factory.stop()
    finally:
        # Whoever is next takes over at once. If the store is away, it does when the leases expire.
        with contextlib.suppress(UnavailableError):
            await store.release_leases()
        await store.close()


async def _revocations(
    loops: TaskOwner, store: RunStore, factory: ExecutionEngineFactory, verifier: TicketVerifier
) -> RevokedUsers:
    """Who is revoked, known before the first call and learned for ever; tickets are held to it."""
    revoked = RevokedUsers(store, factory)
    await revoked.look()
    verifier.is_revoked = revoked.refuses
    _ = loops.start(revoked.look_for_ever(), "revocations")
    return revoked


def _start_loops(
    loops: TaskOwner,
    settings: ExecutionSettings,
    services: RunServices,
    factory: ExecutionEngineFactory,
    features: Features,
) -> None:
    """What goes on by itself; where other processes are on the same store, with an ear for what they tell."""
    options, holdings = services.options, factory.holdings
    _ = loops.start(features.follow(), "feature switches")
    _ = loops.start(keep_leases(services.store, factory, settings.lease_seconds), "leases")
    _ = loops.start(promote_for_ever(services, holdings, options.queue_poll_s), "queue")
    if services.store.shared:
        looks = HintedLooks(services, holdings)
        _ = loops.start(services.wakeups.listen(looks.heard), "hints")
        _ = loops.start(looks.look_for_ever(), "looks")
        _ = loops.start(watch_decisions(services, DecisionWatch(services, holdings)), "decisions")
    _ = loops.start(clean_up_for_ever(services, factory, settings.cleanup_interval), "clean-up")


class _Execution:
    """The server, whose drain is also the runs'."""

    def __init__(self, server: RpcServer, factory: ExecutionEngineFactory, drain_s: float) -> None:
        self._server = server
        self._factory = factory
        self._drain_s = drain_s

    @property
    def address(self) -> str:
        """See ``Running``."""
        return self._server.address

    async def start(self) -> int:
        """See ``Running``."""
        return await self._server.start()

    async def drain(self) -> None:
        """See ``Running``."""
        await asyncio.gather(self._server.drain(), self._factory.shutdown(self._drain_s))

    def hasten(self) -> None:
        """See ``Running``."""
        self._server.hasten()
        self._factory.hasten()


def _server(
    settings: ExecutionSettings,
    services: RunServices,
    servicer: ExecutionServicer,
    verifier: TicketVerifier,
    telemetry: Runtime,
) -> RpcServer:
    async def writable() -> bool:
        await services.store.probe()
        await services.folder.probe()
        return True

    readiness = Readiness()
    readiness.add("run store", writable)
    server = RpcServer(
        settings.listen,
        [(pb_grpc.add_ExecutionServiceServicer_to_server, servicer, _SERVICE)],
        verifier,
        settings,
        readiness=readiness,
        telemetry=observe_server(telemetry.meters),
        tracing=telemetry.tracing,
    )
    observe_serving(telemetry.meters, server)
    servicer.draining = server.draining
    return server


def _keep_place(store: RunStore, tasks: TaskOwner, start: StageStart, address: str) -> None:
    """For operators: nothing waits for it, and a run that has moved on is left as it is."""

    async def keep() -> None:
        with contextlib.suppress(UnavailableError):
            await store.place_attempt(RunRef(start.identity.user, start.identity.run_id, start.fence), address)

    _ = tasks.start(keep(), "place of an attempt")


def _ignore(name: str, error: BaseException) -> None:
    """The owner has logged it."""
