"""Builds the emitter's objects in the order they need each other, and takes them down in the reverse."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from grpc import aio

from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import add_EmitterServiceServicer_to_server
from servicekit.contracts import Phase
from servicekit.delivery import StreamOptions, stream_age_s
from servicekit.health import Readiness
from servicekit.identity.keys import KeySet
from servicekit.identity.principals import RunPrincipal, Scope
from servicekit.identity.revoked import RevokedTickets
from servicekit.identity.tickets import ContextMessage, TicketVerifier
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies, Rotation
from servicekit.rpc.server import RpcServer
from servicekit.rpc.waiting import wait_ready
from servicekit.tasks import TaskOwner
from servicekit.telemetry.calls import observe_server, observe_serving
from servicekit.telemetry.runtime import TELEMETRY_OFF, Runtime
from servicekit.tls.peers import Tls
from services.emitter.client_bridge import Publisher, fence_reader
from services.emitter.config import EmitterSettings
from services.emitter.convert import reason_name
from services.emitter.domain.guard import Guard
from services.emitter.domain.intake import MAX_ITEM_BYTES, Intake
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.sanitize import Sanitizer
from services.emitter.domain.statistics import Statistics
from services.emitter.domain.watch import Watch
from services.emitter.service import EmitterServicer
from services.emitter.service_metrics import observe_emitter

__all__ = ["app", "serve_emitter"]

_RUN: Final = frozenset({Scope.RUN})
_SWEEP_S: Final = 1.0
_CONNECT_S: Final = 1.0


@asynccontextmanager
async def app(settings: EmitterSettings, start: Starter) -> AsyncIterator[RpcServer]:
    """The emitter as a process."""
    async with start.phase(Phase.CONFIGURATION, needs=f"the tickets' public keys in {settings.ticket_jwks}"):
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
        tls = Tls.of(settings, "emitter")
    async with (
        open_channel(settings.bridge, tls=tls.to("bridge"), max_message_bytes=settings.max_message_bytes) as channel,
        Copies(settings.bridge, "bridge", max_message_bytes=settings.max_message_bytes, tls=tls) as bridges,
    ):
        async with start.phase(
            Phase.INTEGRATION,
            needs=f"the bridge at {settings.bridge}",
            advice="start the bridge first, or set CARREL_EMITTER_BRIDGE to its address",
        ):
            await wait_ready(channel, f"the bridge at {settings.bridge}", settings.downstream_wait_seconds)
        async with serve_emitter(settings, channel, bridges, verifier, start.telemetry) as server:
            yield server


@asynccontextmanager
async def serve_emitter(
    settings: EmitterSettings,
    channel: aio.Channel,
    bridges: Copies,
    verifier: TicketVerifier,
    telemetry: Runtime = TELEMETRY_OFF,
) -> AsyncIterator[RpcServer]:
    """The emitter, with a server that is not started yet.

    Args:
        channel: To the bridge, whichever copy, for single calls.
        bridges: The copies, for the stream that goes from one to the next.
        telemetry: What it tells of itself with.
    """
    statistics = Statistics()
    ledger = Ledger(settings.limits())
    guard = Guard(Sanitizer(settings.withheld_fields))
    publisher = Publisher(ledger, statistics)
    readiness = Readiness()
    revoked = RevokedTickets()
    verifier.is_revoked = revoked.refuses
    events = verifier.alike()
    events.is_revoked = revoked.refuses_event
    watch = Watch(ledger, statistics, late_s=settings.delivery_timeout, stuck_s=settings.event_timeout)

    bridge, rotation = BridgeServiceStub(channel), Rotation(bridges)
    # A message is at most this and one more item, which may have grown to twice its bound: three quarters.
    item_bytes = min(MAX_ITEM_BYTES, settings.max_message_bytes // 4)
    stream = publisher.stream(
        lambda: BridgeServiceStub(rotation.channel()).Publish(),
        options=StreamOptions(
            max_items=128 if settings.enable_batching else 1,
            max_bytes=item_bytes,
            alert_after=settings.delivery_retries,
            alert_after_s=settings.delivery_timeout,
            max_age_s=stream_age_s(settings.bridge),
        ),
        on_state=lambda _up: readiness.poke(),
    )
    servicer = EmitterServicer(
        Intake(_run_verifier(events), guard, ledger, statistics, reason_name, item_bytes, tracing=telemetry.tracing),
        guard,
        ledger,
        statistics,
        wake=publisher.wake,
        counts=lambda: {
            "batches": stream.statistics.messages,
            "mismatches": verifier.identity_mismatch_total,
            "retries": publisher.retries,
        },
        fence_of=fence_reader(bridge),
        revoked=revoked,
    )
    readiness.add("bridge", lambda: stream.connected)
    readiness.add("delivery", lambda: not watch.stuck)
    server = RpcServer(
        settings.listen,
        [(add_EmitterServiceServicer_to_server, servicer, "carrel.v1.EmitterService")],
        verifier,
        settings,
        readiness=readiness,
        telemetry=observe_server(telemetry.meters),
        tracing=telemetry.tracing,
    )
    observe_serving(telemetry.meters, server)
    observe_emitter(telemetry.meters, statistics, ledger, publisher, stream)
    async with TaskOwner() as tasks, stream:
        _ = tasks.start(_care(ledger, watch), "care")
        _ = tasks.start(_end_streams(server, servicer), "end of the streams on drain")
        # Ready from the first look on, where the bridge is there as it should be.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                await stream.wait_connected()
        try:
            yield server
        finally:
            await server.drain(grace_s=0)


def _run_verifier(verifier: TicketVerifier) -> Callable[[ContextMessage], RunPrincipal]:
    def verify(context: ContextMessage) -> RunPrincipal:
        principal = verifier.verify(context, _RUN)
        assert isinstance(principal, RunPrincipal)
        return principal

    return verify


async def _end_streams(server: RpcServer, servicer: EmitterServicer) -> None:
    await server.draining.wait()
    servicer.end_streams()


async def _care(ledger: Ledger, watch: Watch) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        now = time.monotonic()
        ledger.sweep(now)
        watch.look(now)
