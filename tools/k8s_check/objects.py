"""The built objects, looked up: workloads, what their containers see, who may talk to whom. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = ["APP", "Edge", "Manifests", "Object", "Workload", "quantity"]

Object: TypeAlias = dict[str, Any]

APP: Final = "app.kubernetes.io/name"
_UNITS: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9, "m": 1e-3}
_SERVING: Final = ("Deployment", "StatefulSet")
_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, order=True)
class Edge:
    """A connection that policies let through: from a workload or a place outside to another, at a TCP port."""

    source: str
    target: str
    port: int

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}:{self.port}"


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet, Job or CronJob, and its pods' one container."""

    kind: str
    name: str
    app: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    pod: Mapping[str, Any]

    @property
    def serves(self) -> bool:
        """Whether it is one of the services, and no Job."""
        return self.kind in _SERVING

    @property
    def container(self) -> Object:
        """Its container."""
        (only,) = self.pod["containers"]
        found: Object = only
        return found

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Manifests:
    """All objects of one build."""

    def __init__(self, documents: list[Object]) -> None:
        self.documents = documents
        self.workloads = [_workload(found) for found in documents if found["kind"] in (*_SERVING, "Job", "CronJob")]

    def of(self, kind: str) -> Iterator[Object]:
        """Every object of a kind."""
        return (found for found in self.documents if found["kind"] == kind)

    def named(self, kind: str, name: str) -> Object | None:
        """One object."""
        return next((found for found in self.of(kind) if found["metadata"]["name"] == name), None)

    def services(self) -> Iterator[Workload]:
        """The services' workloads."""
        return (workload for workload in self.workloads if workload.serves)

    def workload(self, app: str) -> Workload:
        """The workload with this name as its label.

        Raises:
            KeyError: There is none.
        """
        for workload in self.workloads:
            if workload.app == app:
                return workload
        raise KeyError(app)

    def environment(self, workload: Workload) -> dict[str, str]:
        """What its container sees of ConfigMaps and plain values, in the order in which Kubernetes lays them over."""
        seen: dict[str, str] = {}
        for source in workload.container.get("envFrom", ()):
            found = self.named("ConfigMap", source["configMapRef"]["name"])
            seen.update(found["data"] if found else {})
        for entry in workload.container.get("env", ()):
            if "value" in entry:
                seen[entry["name"]] = entry["value"]
        return seen

    def egress(self) -> set[Edge]:
        """What workloads may call, by the policies for what leaves."""
        return self._edges("egress")

    def ingress(self) -> set[Edge]:
        """Who may call workloads, by the policies for what arrives."""
        return self._edges("ingress")

    def _edges(self, direction: str) -> set[Edge]:
        found = set()
        for policy in self.of("NetworkPolicy"):
            for own in self._selected(policy["spec"]["podSelector"]):
                for rule in policy["spec"].get(direction, ()):
                    found |= set(self._of_rule(own, rule, direction))
        return found

    def _of_rule(self, own: str, rule: Object, direction: str) -> Iterator[Edge]:
        peers = rule.get("to" if direction == "egress" else "from")
        # Neither peers nor ports means all of them.
        names = ["anywhere"] if not peers else [name for peer in peers for name in self._peer(peer)]
        for name in names:
            for port in rule.get("ports") or [{"port": 0}]:
                if port.get("protocol", "TCP") == "TCP":
                    ends = (own, name) if direction == "egress" else (name, own)
                    yield Edge(*ends, int(port["port"]))

    def _peer(self, peer: Object) -> Iterator[str]:
        if "ipBlock" in peer:
            yield f"network {peer['ipBlock']['cidr']}"
        elif "namespaceSelector" in peer:
            labels = peer["namespaceSelector"].get("matchLabels", {})
            yield f"namespace {labels.get(_NAMESPACE_NAME) or sorted(labels.items())}"
        else:
            yield from self._selected(peer["podSelector"])

    def _selected(self, selector: Object) -> Iterator[str]:
        return (workload.app for workload in self.workloads if _matches(selector, workload.labels))


def _workload(found: Object) -> Workload:
    spec = found["spec"]["jobTemplate"]["spec"] if found["kind"] == "CronJob" else found["spec"]
    template = spec["template"]
    labels = template["metadata"]["labels"]
    return Workload(found["kind"], found["metadata"]["name"], labels[APP], labels, spec, template["spec"])


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", ()):
        if wanted["operator"] != "In":
            raise ValueError(f"the operator {wanted['operator']} is not read here")
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: bytes, or cores."""
    text = str(text)
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
