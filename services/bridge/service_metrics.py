"""How the bridge's metrics are read: from its counts, its monitor and its hub."""

from __future__ import annotations

from servicekit.telemetry.meters import Meters
from services.bridge.domain.bridge import Bridge
from services.bridge.models import IntegrationState

__all__ = ["observe_bridge"]


def observe_bridge(meters: Meters, bridge: Bridge) -> None:
    """Register them all."""
    counts, hub, monitor = bridge.counts, bridge.hub, bridge.monitor
    meters.read(
        "carrel_integration_state", lambda: {state.name: int(state is monitor.state) for state in IntegrationState}
    )
    meters.read(
        "carrel_log_events_total",
        lambda: {"appended": counts.appended, "duplicate": counts.duplicate, "refused": counts.refused},
    )
    meters.read("carrel_log_commits_total", lambda: bridge.commits)
    meters.histogram("carrel_log_append_seconds", counts.append_s)
    meters.read("carrel_log_errors_total", lambda: counts.failed)
    meters.read("carrel_attached_gateways", lambda: hub.gateways)
    meters.read("carrel_subscriptions", lambda: hub.subscriptions)
    meters.read("carrel_users_behind", lambda: hub.users_behind)
