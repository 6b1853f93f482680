"""What docker-compose.yaml promises, read from the file itself; no engine is needed. That it works is test_stack's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.keys import HOLDERS
from carrel.cli.operator_settings import OperatorSettings
from servicekit.settings import SERVICES, SharedSettings
from servicekit.settings_env import variables
from tests.container.engine import ROOT

# The chain's edges (docs/architecture.md), and nothing else: callers to callees.
EDGES = {
    frozenset(edge)
    for edge in [
        ("gateway", "execution"),
        ("gateway", "agent-instance"),
        ("gateway", "bridge"),
        ("execution", "agent-instance"),
        ("execution", "emitter"),
        ("execution", "bridge"),
        ("execution", "postgres"),
        ("agent-instance", "emitter"),
        ("emitter", "bridge"),
        ("bridge", "redis"),
    ]
}
SERVICES_OF_OURS = {"gateway", "execution", "agent-instance", "emitter", "bridge"}
LASTING = SERVICES_OF_OURS | {"redis", "postgres"}
# They end, or are started by hand, or see what services send: the file says what each reaches and why.
OTHERS = {"keys", "migrate", "cli", "doctor", "operator", "otel-collector"}
# Whose own way out it is; the others lead nowhere but to their members.
OPEN_NETWORKS = {"front": {"gateway"}, "models": {"agent-instance"}, "telemetry": set[str]()}


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))
    return loaded


def members(stack: dict[str, Any]) -> dict[str, set[str]]:
    """The lasting services in each network."""
    found: dict[str, set[str]] = {name: set() for name in stack["networks"]}
    for name in LASTING:
        for network in stack["services"][name].get("networks", ()):
            found[network].add(name)
    return found


def test_each_network_is_one_edge_of_the_chain_and_each_edge_has_one(stack: dict[str, Any]) -> None:
    inner = {name: who for name, who in members(stack).items() if name not in OPEN_NETWORKS}
    assert sorted(map(sorted, inner.values())) == sorted(map(sorted, EDGES))
    for name in inner:
        assert stack["networks"][name]["internal"] is True
    for name, who in OPEN_NETWORKS.items():
        assert members(stack)[name] == who


def test_every_service_is_confined(stack: dict[str, Any]) -> None:
    assert stack["services"].keys() == LASTING | OTHERS
    for name, service in stack["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] <= 1024, name
        assert service["mem_limit"], name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys(), name
        for mount in service.get("tmpfs", ()):
            assert "size=" in mount, f"{name}: {mount} may fill the memory"


def test_only_the_gateway_and_the_collector_listen_for_this_machine_alone(stack: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in stack["services"].items() if "ports" in service}
    assert published.keys() == {"gateway", "otel-collector"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_each_service_has_its_own_keys_and_can_only_read_them(stack: dict[str, Any]) -> None:
    holders: dict[str, list[str]] = {}
    for name, service in stack["services"].items():
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            if source.startswith("keys"):
                holders.setdefault(source, []).append(name)
                assert name == "keys" or rest.endswith(":ro"), f"{name}: {volume}"
    assert holders.pop("keys") == ["keys", "cli", "doctor"]
    for volume, who in holders.items():
        owner = volume.removeprefix("keys-")
        assert set(who) <= {"keys", owner, *(["migrate"] if owner == "postgres" else [])}, volume
    # The database's password and no key: what signs tickets is the services' alone.
    assert "migrate" in holders["keys-postgres"]
    assert HOLDERS["postgres"] == ("postgres.password",)


def test_no_variable_holds_a_secret(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for variable in service.get("environment", {}):
            path = variable == "CARREL_TLS__KEY"
            assert path or not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)$", variable), f"{name}: {variable}"


def test_services_are_in_production_with_certificates_and_only_logins_are_for_development(
    stack: dict[str, Any],
) -> None:
    for name in (*SERVICES_OF_OURS, "operator"):
        environment = stack["services"][name]["environment"]
        assert environment["CARREL_TLS__CERT"] == "/run/carrel/keys/tls.crt", name
        lenient = name == "gateway"
        assert environment["CARREL_ENVIRONMENT"] == ("${CARREL_ENVIRONMENT:-development}" if lenient else "production")
    assert "--certs" in stack["services"]["keys"]["command"]
    assert stack["services"]["doctor"]["environment"]["CARREL_TLS__CERT"].endswith("/tls/doctor/tls.crt")


def test_services_wait_for_their_stores_and_have_time_to_drain(stack: dict[str, Any]) -> None:
    assert stack["services"]["bridge"]["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert stack["services"]["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert stack["services"]["execution"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    settings = SharedSettings.model_validate({})
    for name in SERVICES_OF_OURS:
        grace = float(stack["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace > settings.drain_seconds + settings.close_seconds + 2


def test_every_setting_is_one(stack: dict[str, Any]) -> None:
    from gateway.config import GatewaySettings
    from services.agent_instance.config import AgentInstanceSettings
    from services.bridge.config import BridgeSettings
    from services.emitter.config import EmitterSettings
    from services.execution.config import ExecutionSettings

    classes: dict[str, type[SharedSettings]] = {
        "gateway": GatewaySettings,
        "execution": ExecutionSettings,
        "agent-instance": AgentInstanceSettings,
        "bridge": BridgeSettings,
        "emitter": EmitterSettings,
        "doctor": DoctorSettings,
        "operator": OperatorSettings,
    }
    for name, cls in classes.items():
        known = {item.name for item in variables(cls, name.replace("-", "_"))}
        used = stack["services"][name]["environment"].keys()
        assert set(used) <= known, name
    assert "GATEWAY" in SERVICES


def test_the_example_of_settings_names_every_variable_of_the_file_with_its_default() -> None:
    text = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{([A-Z_0-9]+):?-([^}]*)\}", text))
    example = dict(_lines(ROOT / ".env.example"))
    # Asked for by an operator in trouble, not by a newcomer.
    rare = {"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER"}
    assert used.keys() - rare == example.keys()
    plain = ("IMAGE_PREFIX", "TAG", "GATEWAY_PORT", "AGENT_MEMORY", "REDIS_IMAGE", "POSTGRES_IMAGE", "COLLECTOR_PORT")
    for name in (*plain, "OTEL_COLLECTOR_IMAGE", "CARREL_AGENT_INSTANCE_MAX_WORKERS"):
        assert example[name] == used[name], name


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"#?([A-Z][A-Z_0-9]+)=(.*)", line):
            yield match[1], match[2]
