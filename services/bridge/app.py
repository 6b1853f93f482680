"""Builds the bridge's objects in the order they need each other, and takes them down in the reverse."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from carrel.errors import StartupError, StoreUnavailableError
from carrel.v1.bridge_pb2_grpc import add_BridgeServiceServicer_to_server
from servicekit.contracts import Phase
from servicekit.health import Readiness
from servicekit.identity.keys import KeySet
from servicekit.identity.revoked import RevokedTickets
from servicekit.identity.tickets import TicketVerifier
from servicekit.lifecycle import Starter
from servicekit.logs import get_logger
from servicekit.rpc.server import RpcServer
from servicekit.sealing import PLAIN
from servicekit.tasks import TaskOwner
from servicekit.telemetry.calls import observe_server, observe_serving
from servicekit.telemetry.runtime import TELEMETRY_OFF, Runtime
from servicekit.tls.peers import Tls
from services.bridge.config import BridgeSettings
from services.bridge.domain.bridge import Bridge
from services.bridge.models import IntegrationState
from services.bridge.service import BridgeServicer
from services.bridge.service_metrics import observe_bridge
from services.bridge.store import EventLog
from services.bridge.store_sealed import SealedEventLog
from services.bridge.store_sealing_marks import SealingMarks
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions

__all__ = ["app", "serve_bridge"]

# The log's writer asks for the interpreter's lock once per commit; at the default of 5 ms a busy loop makes it wait.
_SWITCH_INTERVAL_S: Final = 0.0005
_REDIS_AGAIN_S: Final = 0.5  # between attempts to reach Redis at the start
_REDIS_WAIT_S: Final = 15.0  # for it then, at most
_LOG_URL: Final = "CARREL_BRIDGE_LOG__URL"

_log = get_logger("services.bridge")


@asynccontextmanager
async def app(settings: BridgeSettings, start: Starter) -> AsyncIterator[RpcServer]:
    """The bridge as a process, its log in SQLite or Redis."""
    async with start.phase(Phase.CONFIGURATION, needs=f"the tickets' public keys in {settings.ticket_jwks}"):
        verifier = TicketVerifier(KeySet.from_jwks_file(settings.ticket_jwks))
        _ = Tls.of(settings, "bridge")  # the server's own; here so that a wrong certificate is told as a setting
        seals = settings.encryption.seals()
    async with AsyncExitStack() as stack:
        log = await (_open_sqlite(settings, start) if settings.log.url is None else _open_redis(settings, start))
        stack.push_async_callback(log.close)
        marks = SealingMarks(log, seals, settings.retention.max_age_s)
        async with start.phase(Phase.INTEGRATION, needs="the keys that the event log's entries are sealed with"):
            await marks.check()
            await marks.mark()
        if seals is not PLAIN:
            tasks = await stack.enter_async_context(TaskOwner())
            _ = tasks.start(marks.keep(), "marks of encryption keys")
            log = SealedEventLog(log, seals)
        async with start.phase(Phase.INTEGRATION, needs="an event log that works"):
            server = await stack.enter_async_context(serve_bridge(settings, log, verifier, start.telemetry))
        yield server


async def _open_sqlite(settings: BridgeSettings, start: Starter) -> EventLog:
    path = settings.log_path
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    async with start.phase(
        Phase.INTEGRATION,
        needs=f"the event log {path}",
        advice=f"make sure that {path.parent} can be written, has room, and is used by one bridge only; "
        "several bridges share a log in Redis: CARREL_BRIDGE_LOG__URL",
    ):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = SqliteOptions(
            synchronous=settings.log.synchronous,
            readers=settings.log.readers,
            max_queued_bytes=settings.log.max_queued_bytes,
        )
        return await SqliteEventLog.open(path, options=options, retention=settings.retention_bounds())


async def _open_redis(settings: BridgeSettings, start: Starter) -> EventLog:
    log, url = settings.log, settings.log.url
    assert url is not None
    async with start.phase(Phase.CONFIGURATION, needs="what a log in Redis needs"):
        try:
            from services.bridge.store_redis import RedisEventLog, RedisOptions
        except ModuleNotFoundError as error:
            if error.name != "hiredis":
                raise
            raise StartupError("Redis's client is not installed", advice="install carrel[redis]") from error
        options = RedisOptions(
            url=url,
            password=_password(log.password_file),
            prefix=log.prefix,
            timeout_s=log.timeout_s,
            min_replicas=log.min_replicas,
            min_replicas_timeout_s=log.min_replicas_timeout_s,
            max_queued_bytes=log.max_queued_bytes,
            ca_file=log.ca_file,
            production=settings.production,
        )
    async with start.phase(Phase.INTEGRATION, needs=f"the event log in {url}"):
        # Those who wait for the bridge wait for longer, so that what ends the start is the cause and no consequence.
        within_s = min(settings.downstream_wait_seconds / 2, _REDIS_WAIT_S)
        return await _reach_redis(
            lambda: RedisEventLog.open(options, retention=settings.retention_bounds()), str(url), within_s
        )


async def _reach_redis(connect: Callable[[], Awaitable[EventLog]], address: str, within_s: float) -> EventLog:
    """Try again and again.

    Raises:
        StartupError: It is not reached in time, or not fit for the log.
    """
    failure: StoreUnavailableError | None = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    return await connect()
                except StoreUnavailableError as error:
                    if failure is None:
                        _log.warning(
                            "Redis is not reached; trying again",
                            address=address,
                            reason=error.message,
                            within_s=within_s,
                        )
                    failure = error
                await asyncio.sleep(_REDIS_AGAIN_S)
    except TimeoutError:
        reason = failure.message if failure is not None else f"the event log in Redis: {address} does not answer"
        raise StartupError(
            f"Redis was not reached within {within_s:g} s: {reason}",
            advice=(failure is not None and failure.advice)
            or f"see that Redis runs at {address}, or correct {_LOG_URL}",
        ) from failure


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(
            f"the password file {path} cannot be read: {type(error).__name__}",
            advice="correct CARREL_BRIDGE_LOG__PASSWORD_FILE, or let this process read it",
        ) from error
    if not password:
        raise StartupError(f"the password file {path} is empty", advice="write Redis's password into it")
    return password


@asynccontextmanager
async def serve_bridge(
    settings: BridgeSettings, log: EventLog, verifier: TicketVerifier, telemetry: Runtime = TELEMETRY_OFF
) -> AsyncIterator[RpcServer]:
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
        revoked = RevokedTickets()
        servicer = BridgeServicer(bridge, verifier, telemetry.tracing, revoked)
        server = RpcServer(
            settings.listen,
            [(add_BridgeServiceServicer_to_server, servicer, "carrel.v1.BridgeService")],
            verifier,
            settings,
            readiness=readiness,
            telemetry=observe_server(telemetry.meters),
            tracing=telemetry.tracing,
        )
        observe_serving(telemetry.meters, server)
        observe_bridge(telemetry.meters, bridge)

        revoked.on_change(server.guard.look)

        async def end_streams() -> None:
            await server.draining.wait()
            servicer.end_streams()

        _ = tasks.start(end_streams(), "end of the streams on drain")
        _ = tasks.start(servicer.subscribers.look_for_ever(), "tickets of subscriptions")
        try:
            yield server
        finally:
            await server.drain(grace_s=0)
