"""The gateway's object graph as one value: what handlers are made of. Built in app, and in tests."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.agents import Agents
from gateway.connections import Connections
from gateway.hub import Hub
from gateway.limits import ConnectionLimits
from gateway.log_reader import LogReader, RunLog
from gateway.login import LoginVerifier
from gateway.origins import Origins
from gateway.runs import Runs
from gateway.socket_tokens import SocketTokens
from gateway.tally import GatewayStatistics, Tally
from gateway.tickets import TicketDesk
from servicekit.telemetry.tracing import NO_TRACING, Tracing

__all__ = ["Parts"]


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
    tracing: Tracing = NO_TRACING

    def statistics(self) -> GatewayStatistics:
        """What operators may know of this moment."""
        return GatewayStatistics.of(
            self.tally,
            self.connections.lanes(),
            connections=len(self.connections),
            users=len(self.hub),
            ring_bytes=self.hub.ring_bytes,
        )
