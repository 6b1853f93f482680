"""What the code itself says that manifests must agree with: settings, ports, edges, health names, drains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.operator_settings import OperatorSettings
from gateway.config import GatewaySettings
from servicekit.addresses import PeerAddress
from servicekit.settings import SharedSettings, load_settings
from services.agent_instance.config import AgentInstanceSettings
from services.bridge.config import BridgeSettings
from services.emitter.config import EmitterSettings
from services.execution.config import ExecutionSettings

__all__ = ["METRICS_ABOVE", "SETTINGS", "STUBBED", "TASKS", "app_of", "default_port", "load", "peers"]

# By the name in manifests.
SETTINGS: Final[Mapping[str, type[SharedSettings]]] = {
    "gateway": GatewaySettings,
    "execution": ExecutionSettings,
    "agent-instance": AgentInstanceSettings,
    "emitter": EmitterSettings,
    "bridge": BridgeSettings,
}
# What runs once: the settings that each command reads.
TASKS: Final[Mapping[str, tuple[tuple[str, type[SharedSettings]], ...]]] = {
    "migrate": (("execution", ExecutionSettings), ("bridge", BridgeSettings)),
    "doctor": (("doctor", DoctorSettings),),
    "operator": (("operator", OperatorSettings),),
}
METRICS_ABOVE: Final = 1000
# Files that are read together with the settings, of which none is here: a stub, so that the rest can be read.
STUBBED: Final[Mapping[str, str]] = {"CARREL_AGENT_INSTANCE_MCP": '{"example": {"url": "https://mcp.example.com/mcp"}}'}
# The marks that tell a peer's address from an address to listen on.
_PEER: Final = PeerAddress.__metadata__  # type: ignore[attr-defined]


def app_of(service: str) -> str:
    """A service's name in manifests: Kubernetes takes no underscore."""
    return service.replace("_", "-")


def load(app: str, environment: Mapping[str, str]) -> Any:
    """The settings of a service from what its container sees.

    Raises:
        StartupError: They are what the service itself would refuse.
    """
    stubs = {name: stub for name, stub in STUBBED.items() if environment.get(name, "").startswith("/")}
    return load_settings(SETTINGS[app], app.replace("-", "_"), {**environment, **stubs})


def default_port(app: str) -> int:
    """The port that the service listens on when nobody says otherwise."""
    return int(SETTINGS[app].model_fields["listen"].default.rpartition(":")[2])


def peers(app: str) -> Iterator[str]:
    """The services that this one calls: its settings that hold a peer's address."""
    for name, field in SETTINGS[app].model_fields.items():
        if all(mark in field.metadata for mark in _PEER):
            yield app_of(name)
