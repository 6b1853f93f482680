"""Builds the bridge's objects in the order they need each other, and takes them down in the reverse."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from carrel.v1.bridge_pb2_grpc import add_BridgeServiceServicer_to_server
from servicekit.contracts import Phase
from servicekit.health import Readiness
from servicekit.identity.keys import KeySet
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Starter
from servicekit.logs import get_logger
from servicekit.rpc.server import RpcServer
from servicekit.tasks import TaskOwner
from services.bridge.config import BridgeSettings
from services.bridge.domain.bridge import Bridge
from services.bridge.models import IntegrationState
from services.bridge.service import BridgeServicer
from services.bridge.store import EventLog
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions

__all__ = ["app", "serve_bridge"]

# The log's writer asks for the interpreter's lock once per commit; at the default of 5 ms a busy loop makes it wait.
_SWITCH_INTERVAL_S: Final = 0.0005

_log = get_logger("services.bridge")


@asynccontextmanager
async def app(settings: BridgeSettings, start: Starter) -> AsyncIterator[RpcServer]:
    """The bridge as a process, its log in SQLite."""
    async with start.phase(Phase.CONFIGURATION, needs=f"the tickets' public keys in {settings.ticket_jwks}"):
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    async with AsyncExitStack() as stack:
        path = settings.log_path
        async with start.phase(
            Phase.INTEGRATION,
            needs=f"the event log {path}",
            advice=f"make sure that {path.parent} can be written, has room, and is used by one bridge only",
        ):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            options = SqliteOptions(
                synchronous=settings.log.synchronous,
                readers=settings.log.readers,
                max_queued_bytes=settings.log.max_queued_bytes,
            )
            log = await SqliteEventLog.open(path, options=options, retention=settings.retention_bounds())
            stack.push_async_callback(log.close)
            server = await stack.enter_async_context(serve_bridge(settings, log, verifier))
        yield server


@asynccontextmanager
async def serve_bridge(settings: BridgeSettings, log: EventLog, verifier: TicketVerifier) -> AsyncIterator[RpcServer]:
    """The bridge over a log that is open, with a server that is not started yet."""
    readiness = Readiness()

    def state_changed(state: IntegrationState) -> None:
        if state in {IntegrationState.DEGRADED, IntegrationState.FAILED}:
            _log.warning("integration state", state=state.name, reason=bridge.monitor.last_error)
        else:
            _log.info("integration state", state=state.name)
        readiness.poke()

    bridge = Bridge(
        log,
        hub_options=settings.hub_options(),
        recovery=settings.recovery_options(),
        state_changed=state_changed,
    )
    readiness.add("event log", lambda: bridge.monitor.active)
    async with bridge, TaskOwner() as tasks:
        servicer = BridgeServicer(bridge, verifier)
        server = RpcServer(
            settings.listen,
            [(add_BridgeServiceServicer_to_server, servicer, "carrel.v1.BridgeService")],
            verifier,
            settings,
            readiness=readiness,
        )

        async def end_streams() -> None:
            await server.draining.wait()
            servicer.end_streams()

        _ = tasks.start(end_streams(), "end of the streams on drain")
        try:
            yield server
        finally:
            await server.drain(grace_s=0)
