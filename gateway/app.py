"""Builds the gateway's object graph, phase by phase, and takes it down in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web
from grpc import aio

from carrel.ids import new_id
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from gateway.agents import Agents
from gateway.attachment import Attachment
from gateway.config import GatewaySettings
from gateway.connections import Connections
from gateway.development import DevelopmentSignIn, Issuer
from gateway.documents import document_pages
from gateway.downstream import Downstream
from gateway.file_limit import raise_file_limit
from gateway.handshake import Handshake
from gateway.hub import Hub
from gateway.limits import AcceptLimits, ConnectionLimits
from gateway.log_reader import BridgeLogReader
from gateway.login import LoginVerifier
from gateway.login_start import LoginSource
from gateway.metrics import RequestMeter, observe_gateway
from gateway.origins import Origins
from gateway.overview import Overview
from gateway.pages import console_pages
from gateway.parts import Parts
from gateway.positioning import Positioning
from gateway.replay_pace import ReplayPace
from gateway.rest.console import ConsoleHandlers
from gateway.rest.docs import DocsHandlers
from gateway.rest.events import EventHandlers
from gateway.rest.http import MAX_BODY_BYTES, edge, on_prepare
from gateway.rest.routes import add_routes
from gateway.rest.traces import traced
from gateway.runs import Runs
from gateway.server import GatewayServer
from gateway.shared_state import AuditTrail, Once, Revocations
from gateway.socket_tokens import SignedSocketTokens, SocketTokens
from gateway.tally import Tally
from gateway.tickets import ISSUER, TicketDesk
from gateway.upstream import Upstream
from servicekit.contracts import Phase
from servicekit.features import Features, open_features
from servicekit.health import Readiness
from servicekit.identity.keys import KeySet
from servicekit.identity.signing import FollowedKey
from servicekit.identity.tickets import TicketMinter
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from servicekit.rpc.waiting import wait_ready
from servicekit.tasks import TaskOwner
from servicekit.telemetry.process import observe_readiness
from servicekit.telemetry.tracing import Tracing
from servicekit.tls.peers import Tls

__all__ = ["app", "web_application"]

# Beside sockets: requests over the limit that are told so, calls to other services, keys.
_OTHER_FILES: Final = 1_100


@asynccontextmanager
async def app(settings: GatewaySettings, start: Starter) -> AsyncIterator[GatewayServer]:
    """The gateway as a process."""
    async with start.phase(Phase.CONFIGURATION, needs="the key that signs tickets, and the keys of login tokens"):
        key = FollowedKey(settings.ticket_key, ISSUER)
        desk = TicketDesk(TicketMinter(key, ISSUER), settings.run_ticket_seconds)
        features = open_features(settings.features_file, settings.features)
        source = LoginSource(settings)
        tls = Tls.of(settings, "gateway")
    _ = raise_file_limit(settings.limits.connections + _OTHER_FILES)
    wait_s = settings.downstream_wait_seconds
    async with (
        open_channel(settings.bridge, tls=tls.to("bridge")) as bridge,
        Copies(settings.bridge, "bridge", tls=tls) as bridges,
        Copies(settings.execution, "execution", tls=tls) as executions,
        Copies(settings.agent_instance, "agent_instance", tls=tls) as instances,
        open_channel(settings.execution, tls=tls.to("execution")) as execution,
        open_channel(settings.agent_instance, tls=tls.to("agent_instance")) as agents,
        source.opened(start) as logins,
        TaskOwner() as tasks,
    ):
        async with start.phase(Phase.INTEGRATION, needs=f"the bridge at {settings.bridge}"):
            await wait_ready(bridge, f"the bridge at {settings.bridge}", wait_s)
        async with start.phase(Phase.INTEGRATION, needs=f"execution at {settings.execution}"):
            await wait_ready(execution, f"execution at {settings.execution}", wait_s)
        tokens = SignedSocketTokens(key, Once(execution, desk), keys=_public_keys(settings.ticket_jwks))
        tracing = start.telemetry.tracing
        hub = Hub(settings.max_events_per_user, settings.ring_bytes, settings.rings_bytes, tracing)
        revocations = Revocations(execution, desk, hub)
        overview = Overview({"execution": executions, "agent_instance": instances, "bridge": bridges}, desk)
        parts = _parts(settings, desk, logins, tokens, (bridge, execution, agents), hub, revocations, overview, tracing)
        logins.check = tokens.check = revocations.check
        async with start.phase(Phase.INTEGRATION, needs="the revoked users that execution knows"):
            await revocations.look()
        upstream = Upstream(Attachment(bridges, desk), parts.hub, desk, new_id("gw"), settings.upstream_options())
        readiness = _readiness(upstream, Downstream(bridge), Downstream(execution), source)
        meter = RequestMeter()
        observe_gateway(start.telemetry.meters, parts, upstream, revocations, meter)
        observe_readiness(start.telemetry.meters, readiness)
        server = GatewayServer(
            web_application(parts, readiness, settings, features, requests=meter),
            settings.listen,
            parts.connections,
            readiness,
            settings.drain_seconds,
            limits=AcceptLimits(settings.limits.connections, settings.limits.per_address, settings.proxies),
            head_s=settings.connect_seconds,
        )
        _ = tasks.start(features.follow(), "feature switches")
        _ = tasks.start(upstream.run(), "upstream")
        _ = tasks.start(revocations.look_for_ever(), "revocations")
        try:
            yield server
        finally:
            server.hasten()
            await server.drain()


def web_application(
    parts: Parts,
    readiness: Readiness,
    settings: GatewaySettings,
    features: Features | None = None,
    *,
    requests: RequestMeter | None = None,
) -> web.Application:
    """Routes, middleware and bounds over the parts."""
    positioning = Positioning(parts.log, settings.position_seconds)
    options = settings.handshake_options()
    options = replace(options, terms=replace(options.terms, features=features or Features()))
    handshake = Handshake(parts, positioning, options)
    events = EventHandlers(parts, positioning, options)
    counted = (requests or RequestMeter()).middleware()
    application = web.Application(
        middlewares=[counted, traced(parts.tracing), edge(parts.origins)], client_max_size=MAX_BODY_BYTES
    )
    application.on_response_prepare.append(on_prepare(parts.origins))
    console = _console(settings, parts) if settings.console else None
    docs = DocsHandlers(document_pages()) if settings.docs else None
    wait_s = settings.execute_wait_seconds
    add_routes(application, parts, readiness, handshake.handle, events, wait_s, console=console, docs=docs)
    return application


def _console(settings: GatewaySettings, parts: Parts) -> ConsoleHandlers:
    """The page for people. Signing in by a name needs the development secret, and a setting that does not say no."""
    login = settings.login
    by_name = settings.console_sign_in and not (settings.production or login.fetched or login.jwks)
    issuer = Issuer(settings.login_secret, login.issuer, login.audience)
    return ConsoleHandlers(console_pages(), DevelopmentSignIn(issuer, parts) if by_name else None, docs=settings.docs)


def _readiness(upstream: Upstream, bridge: Downstream, execution: Downstream, source: LoginSource) -> Readiness:
    """Whether new connections and requests are welcome; those that are open stay, whatever it says."""

    async def log() -> bool:
        # The stream may be open though the bridge cannot write.
        return upstream.attached and await bridge.ready()

    readiness = Readiness()
    readiness.add("bridge", log)
    readiness.add("execution", execution.ready)
    readiness.add("login_keys", lambda: source.usable)
    return readiness


def _parts(  # noqa: PLR0913, PLR0917 -- called once, in this file
    settings: GatewaySettings,
    desk: TicketDesk,
    logins: LoginVerifier,
    socket_tokens: SocketTokens,
    channels: tuple[aio.Channel, aio.Channel, aio.Channel],
    hub: Hub,
    revocations: Revocations,
    overview: Overview,
    tracing: Tracing,
) -> Parts:
    bridge, execution, agents = channels
    limits = settings.limits
    log = BridgeLogReader(BridgeServiceStub(bridge), desk)
    return Parts(
        origins=Origins(settings.allowed_origins, allow_local=not settings.production),
        limits=ConnectionLimits(limits.connections, limits.per_address, limits.per_user),
        logins=logins,
        socket_tokens=socket_tokens,
        desk=desk,
        connections=Connections(),
        tally=Tally(),
        hub=hub,
        log=log,
        run_log=log,
        runs=Runs(execution, desk, tracing),
        agents=Agents(agents, desk),
        exits=revocations,
        audit=AuditTrail(execution, desk),
        overview=overview,
        tracing=tracing,
        replays=ReplayPace(limits.replay_per_second),
    )


def _public_keys(path: Path) -> KeySet | None:
    """For the time while keys are rotated; a gateway alone can do without."""
    return KeySet.from_jwks_file(path) if path.exists() else None
