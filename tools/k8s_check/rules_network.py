"""Who may talk to whom: the chain's edges, both ways, and besides them what is listed here with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tools.k8s_check.code import METRICS_ABOVE, SETTINGS, default_port, peers
from tools.k8s_check.objects import APP, Edge, Manifests

__all__ = ["network_problems", "services_problems"]

_POSTGRES, _REDIS, _DNS, _OTLP = 5432, 6379, 53, 4318
# What may leave to a place that is none of ours: by who leaves, ports. DNS apart.
_OUTSIDE: Final = {
    "execution": {_POSTGRES},
    "migrate": {_POSTGRES},
    "bridge": {_REDIS},
    # Model endpoints and MCP servers: over HTTPS outside, at the usual port of their servers inside.
    "agent-instance": {443, 8000},
}
_HTTPS: Final = 443
# Internal services of the operator's own.
_CALLED_BY_CLIENTS: Final = ("execution", "emitter", "bridge")


def network_problems(manifests: Manifests) -> Iterator[str]:
    """Everything that is wrong with the policies of one build."""
    yield from _deny_all(manifests)
    ours = {workload.app for workload in manifests.workloads}
    expected = _chain() | {edge for edge in _visitors() if edge.source in ours}
    for direction, found in (("egress", manifests.egress()), ("ingress", manifests.ingress())):
        inner = {edge for edge in found if edge.source in ours and edge.target in ours}
        yield from (f"{direction} is missing: {edge}" for edge in sorted(expected - inner))
        yield from (f"{direction} is no edge of the chain: {edge}" for edge in sorted(inner - expected))
    yield from _leaving(manifests, ours)
    yield from _arriving(manifests, ours)


def _chain() -> set[Edge]:
    return {Edge(app, peer, default_port(peer)) for app in SETTINGS for peer in peers(app)}


def _visitors() -> set[Edge]:
    """Who comes now and then: the doctor to all, operators to whom gives tickets and whom they ask."""
    visits = {"doctor": tuple(SETTINGS), "operator": ("gateway", "execution")}
    return {Edge(visitor, app, default_port(app)) for visitor, apps in visits.items() for app in apps}


def _deny_all(manifests: Manifests) -> Iterator[str]:
    for policy in manifests.of("NetworkPolicy"):
        spec = policy["spec"]
        if spec["podSelector"] == {} and not spec.get("ingress") and not spec.get("egress"):
            if sorted(spec["policyTypes"]) == ["Egress", "Ingress"]:
                return
            yield f"NetworkPolicy {policy['metadata']['name']} denies one direction only"
    yield "no NetworkPolicy denies everything both ways for every pod"


def _leaving(manifests: Manifests, ours: set[str]) -> Iterator[str]:
    with_telemetry = _is_set(manifests, "CARREL_TELEMETRY__OTLP_ENDPOINT")
    with_issuer = _is_set(manifests, "CARREL_GATEWAY_LOGIN__DISCOVERY")
    resolving = set()
    for edge in sorted(manifests.egress()):
        if edge.target in ours:
            continue
        if edge.port == _DNS and edge.target in ("namespace kube-system", "network 169.254.20.10/32"):
            resolving.add(edge.source)
            continue
        allowed = set(_OUTSIDE.get(edge.source, ()))
        if with_telemetry and edge.source in SETTINGS:
            allowed.add(_OTLP)
        if with_issuer and edge.source == "gateway":
            allowed.add(_HTTPS)
        if edge.port not in allowed:
            yield f"egress leads out of the chain: {edge}"
    yield from (f"{app} cannot ask DNS" for app in sorted(ours - resolving))


def _is_set(manifests: Manifests, name: str) -> bool:
    return any(name in found.get("data", {}) for found in manifests.of("ConfigMap"))


def _arriving(manifests: Manifests, ours: set[str]) -> Iterator[str]:
    for edge in sorted(manifests.ingress()):
        if edge.source in ours:
            continue
        own = default_port(edge.target) if edge.target in SETTINGS else 0
        client = "carrel/client" in edge.source and edge.target in _CALLED_BY_CLIENTS
        if not edge.source.startswith("namespace ") or edge.port not in (own, own + METRICS_ABOVE):
            yield f"ingress comes from outside of the chain: {edge}"
        elif edge.port == own and not client and edge.target != "gateway":
            yield f"ingress lets others than the gateway be reached from outside: {edge}"


def services_problems(manifests: Manifests) -> Iterator[str]:
    """Each service has a headless Service of its name, at its port, that selects its pods."""
    for workload in manifests.services():
        service = manifests.named("Service", workload.app)
        if service is None:
            yield f"{workload} has no Service of its name"
            continue
        spec = service["spec"]
        if spec.get("clusterIP") != "None":
            yield f"Service {workload.app} is not headless: callers would see one address, and not the copies"
        if spec["selector"] != {APP: workload.app}:
            yield f"Service {workload.app} selects {spec['selector']}"
        names = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
        own = default_port(workload.app)
        for port in spec["ports"]:
            if not names.get(port["targetPort"]) == port["port"] == own:
                yield f"Service {workload.app} has port {port['port']}, and the code listens on {own}"
