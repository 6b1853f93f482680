"""The gateway's object graph as one value: what handlers are made of. Built in app, and in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gateway.agents import Agents
from gateway.connections import Connections
from gateway.hub import Hub
from gateway.limits import ConnectionLimits
from gateway.log_reader import LogReader, RunLog
from gateway.login import Login, LoginVerifier
from gateway.origins import Origins
from gateway.overview import ServicesTold
from gateway.replay_pace import ReplayPace
from gateway.runs import Runs
from gateway.socket_tokens import SocketTokens
from gateway.tally import GatewayStatistics, Tally
from gateway.tickets import TicketDesk
from servicekit.telemetry.tracing import NO_TRACING, Tracing

__all__ = ["Parts"]


class Exits(Protocol):
    """Ends logins, for all gateways."""

    async def sign_out(self, login: Login, *, everywhere: bool) -> int:
        """See ``shared_state.Revocations``."""
        ...


class Services(Protocol):
    """Counts of the services behind the gateway."""

    async def ask(self) -> ServicesTold:
        """See ``overview.Overview``."""
        ...


class Audit(Protocol):
    """Remembers acts."""

    async def record(self, user_id: str, action: str, target: str) -> None:
        """See ``shared_state.AuditTrail``."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that handlers share."""

    origins: Origins
    limits: ConnectionLimits
    logins: LoginVerifier
    socket_tokens: SocketTokens
    desk: TicketDesk
    connections: Connections
    tally: Tally
    hub: Hub
    log: LogReader
    run_log: RunLog
    runs: Runs
    agents: Agents
    exits: Exits
    audit: Audit
    overview: Services
    tracing: Tracing = NO_TRACING
    replays: ReplayPace = field(default_factory=ReplayPace)

    def statistics(self) -> GatewayStatistics:
        """What operators may know of this moment."""
        return GatewayStatistics.of(
            self.tally,
            self.connections.lanes(),
            connections=len(self.connections),
            users=len(self.hub),
            ring_bytes=self.hub.ring_bytes,
        )
