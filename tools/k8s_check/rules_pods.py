"""What pods may do, how they are asked for their health, how they end, and how many of them there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from carrel.errors import StartupError
from gateway.connections import SPREAD_S_PER_CONNECTION, SPREAD_SHARE
from gateway.jitter import window_ms
from gateway.rest.routes import OPEN_PATHS
from servicekit.health import LIVENESS, READINESS
from tools.k8s_check.code import METRICS_ABOVE, SETTINGS, default_port, load, peers
from tools.k8s_check.objects import APP, Manifests, Workload, quantity

__all__ = ["pod_problems", "scale_problems"]

_USER: Final = 10001
# After drain and close the process is ended at once: servicekit.lifecycle.
_LAST_RESORT_S: Final = 2.0
_LIVE: Final = {"grpc": LIVENESS, "http": "/healthz"}
_READY: Final = {"grpc": READINESS, "http": "/readyz"}
_PROBES: Final[Mapping[str, Mapping[str, str]]] = {
    "startupProbe": _LIVE,
    "livenessProbe": _LIVE,
    "readinessProbe": _READY,
}


def pod_problems(manifests: Manifests) -> Iterator[str]:
    """Everything that is wrong with pods, one by one."""
    expected = set(SETTINGS)
    found = {workload.app for workload in manifests.services()}
    yield from (f"{app} is not deployed" for app in sorted(expected - found))
    for workload in manifests.workloads:
        yield from (f"{workload}: {problem}" for problem in _confined(manifests, workload))
    for workload in manifests.services():
        try:
            settings = load(workload.app, manifests.environment(workload))
        except StartupError:
            continue  # told by the rules for settings
        for rule in (_ports, _probes, _ends, _starts):
            yield from (f"{workload}: {problem}" for problem in rule(workload, settings))


def _confined(manifests: Manifests, workload: Workload) -> Iterator[str]:
    pod, container = workload.pod, workload.container
    inside, outside = container.get("securityContext", {}), pod.get("securityContext", {})
    wanted: dict[str, tuple[Any, Any]] = {
        "automountServiceAccountToken": (pod.get("automountServiceAccountToken"), False),
        "enableServiceLinks": (pod.get("enableServiceLinks"), False),
        "runAsNonRoot": (outside.get("runAsNonRoot"), True),
        "runAsUser": (outside.get("runAsUser"), _USER),
        "fsGroup": (outside.get("fsGroup"), _USER),
        "seccompProfile": (outside.get("seccompProfile"), {"type": "RuntimeDefault"}),
        "allowPrivilegeEscalation": (inside.get("allowPrivilegeEscalation"), False),
        "readOnlyRootFilesystem": (inside.get("readOnlyRootFilesystem"), True),
        "capabilities": (inside.get("capabilities"), {"drop": ["ALL"]}),
    }
    for name, (there, right) in wanted.items():
        if there != right:
            yield f"{name} is {there}, and must be {right}"
    account = manifests.named("ServiceAccount", pod.get("serviceAccountName", ""))
    if account is None or account.get("automountServiceAccountToken") is not False:
        yield f"the ServiceAccount {pod.get('serviceAccountName')} is not there, or gives a token"
    for kind in ("requests", "limits"):
        missing = {"cpu", "memory", "ephemeral-storage"} - container.get("resources", {}).get(kind, {}).keys()
        if missing:
            yield f"{kind} say nothing of {', '.join(sorted(missing))}"
    yield from _volumes(pod, container)


def _volumes(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    room = quantity(container.get("resources", {}).get("limits", {}).get("ephemeral-storage", 0))
    for volume in pod["volumes"]:
        if "emptyDir" in volume:
            limit = volume["emptyDir"].get("sizeLimit")
            if limit is None or quantity(limit) > room:
                yield f"the volume {volume['name']} has the size limit {limit}, and the container {room:.0f} bytes"
            continue
        parts = volume["projected"]["sources"] if "projected" in volume else [volume]
        mode = volume.get("projected", volume.get("secret", {})).get("defaultMode")
        if mode != 0o440:
            yield f"the volume {volume['name']} has the mode {mode}: the services refuse keys that everybody can read"
        if volume["name"] in writable:
            yield f"the volume {volume['name']} is mounted to be written"
        if any(part["secret"].get("optional") is not False for part in parts):
            yield f"a secret of the volume {volume['name']} may be missing without being missed"


def _ports(workload: Workload, settings: Any) -> Iterator[str]:
    there = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
    own = "http" if workload.app == "gateway" else "grpc"
    listens = int(settings.listen.rpartition(":")[2])
    default = default_port(workload.app)
    if not there.get(own) == listens == default:
        yield f"its port is {there.get(own)}, it listens on {listens}, and the code's port is {default}"
    if "metrics" in there and there["metrics"] != listens + METRICS_ABOVE:
        yield f"its metrics' port is {there['metrics']}, and the code's is {listens + METRICS_ABOVE}"
    for peer in peers(workload.app):
        address = getattr(settings, peer.replace("-", "_"))
        if address != f"dns:///{peer}:{default_port(peer)}":
            yield f"it calls {peer} at {address}, which is not its headless Service"


def _probes(workload: Workload, settings: Any) -> Iterator[str]:
    for name, wanted in _PROBES.items():
        probe = workload.container.get(name)
        if probe is None:
            yield f"it has no {name}"
            continue
        if workload.app == "gateway":
            path = probe.get("httpGet", {}).get("path")
            if path != wanted["http"] or path not in OPEN_PATHS:
                yield f"its {name} asks {path}, and must ask {wanted['http']}"
            continue
        asked = probe.get("grpc", {})
        listens = settings.tls.health_listen
        if listens is None or asked.get("port") != int(listens.rpartition(":")[2]):
            yield f"its {name} asks port {asked.get('port')}, and health is answered at {listens}"
        if asked.get("service") != wanted["grpc"]:
            yield f"its {name} asks for {asked.get('service')}, and must ask for {wanted['grpc']}"


def _ends(workload: Workload, settings: Any) -> Iterator[str]:
    stop = workload.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    least = stop + settings.drain_seconds + settings.close_seconds + _LAST_RESORT_S
    if workload.pod["terminationGracePeriodSeconds"] <= least:
        yield f"it is killed after {workload.pod['terminationGracePeriodSeconds']} s, and may take {least:g} s to end"
    if workload.app == "gateway":
        yield from _sockets(workload, settings, stop)
    if workload.app == "agent-instance" and settings.production and settings.drain_seconds < settings.times.wall:
        yield f"it drains for {settings.drain_seconds:g} s, and an attempt may take {settings.times.wall:g} s"
    if settings.max_connection_age_seconds is None:
        yield "CARREL_MAX_CONNECTION_AGE_SECONDS is not set: clients behind dns:/// would not find new copies"


def _sockets(workload: Workload, settings: Any, stop: float) -> Iterator[str]:
    if not stop:
        yield "it has no preStop: clients that are told `bye` would be sent to the copy that ends"
    connections = settings.limits.connections
    spread = SPREAD_S_PER_CONNECTION * connections
    if settings.production and SPREAD_SHARE * settings.drain_seconds < spread:
        yield f"telling {connections} connections takes {spread:g} s, half of a drain of {settings.drain_seconds:g} s"
    strategy = workload.spec.get("strategy", {}).get("rollingUpdate", {})
    if strategy.get("maxUnavailable") != 0 or strategy.get("maxSurge") != 1:
        yield f"it is replaced by {strategy}: clients must find a new copy first, and come back from one at a time"
    if workload.spec["minReadySeconds"] * 1000 < window_ms(connections):
        yield f"clients come back within {window_ms(connections)} ms, longer than minReadySeconds"


def _starts(workload: Workload, settings: Any) -> Iterator[str]:
    probe = workload.container.get("startupProbe", {})
    given = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    needed = settings.downstream_wait_seconds * len([*peers(workload.app)])
    if workload.app == "agent-instance":
        needed += settings.workers.zygote_timeout
    if given < needed:
        yield f"it may take {needed:g} s to start, and is killed after {given} s"


def scale_problems(manifests: Manifests) -> Iterator[str]:
    """Disruption budgets and autoscalers: one of each for a service, and never in each other's way."""
    for workload in manifests.services():
        budgets = [
            found for found in manifests.of("PodDisruptionBudget") if found["spec"]["selector"] == _selector(workload)
        ]
        if len(budgets) != 1:
            yield f"{workload} has {len(budgets)} PodDisruptionBudgets"
        least, scalers = _least(manifests, workload)
        if len(scalers) > 1:
            yield f"{workload} is scaled by {' and '.join(scalers)}"
        if scalers and "replicas" in workload.spec:
            yield f"{workload} names a number of replicas, which each apply would set back"
        if workload.kind == "StatefulSet" and (scalers or workload.spec["replicas"] != 1):
            yield f"{workload} has an embedded store, and may have one copy only"
        for budget in budgets:
            spec = budget["spec"]
            if spec.get("minAvailable", 0) >= max(least, 1):
                yield f"{workload}: {spec['minAvailable']} of {least} copies must stay: no node could be emptied"
            if spec.get("maxUnavailable", 1) == 0:
                yield f"{workload}: no copy may ever be away: no node could be emptied"
        yield from _spread(workload)


def _least(manifests: Manifests, workload: Workload) -> tuple[int, list[str]]:
    least, scalers = int(workload.spec.get("replicas", 1)), []
    for kind, field in (("HorizontalPodAutoscaler", "minReplicas"), ("ScaledObject", "minReplicaCount")):
        for found in manifests.of(kind):
            target = found["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (workload.kind, workload.name):
                scalers.append(kind)
                least = int(found["spec"][field])
    return least, scalers


def _spread(workload: Workload) -> Iterator[str]:
    spread = workload.pod.get("topologySpreadConstraints", ())
    keys = {entry["topologyKey"] for entry in spread if entry["labelSelector"] == _selector(workload)}
    for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname"):
        if key not in keys:
            yield f"{workload}: its copies are not spread over {key}"


def _selector(workload: Workload) -> dict[str, Any]:
    return {"matchLabels": {APP: workload.app}}
