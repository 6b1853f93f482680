"""Manifests broken on purpose: each rule sees what it is there for, and says it in words that name the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.conftest import Build
from tools.k8s_check.objects import Manifests
from tools.k8s_check.rules import problems

Break = Callable[[Manifests], object]


def container(manifests: Manifests, app: str) -> Any:
    return manifests.workload(app).container


def pod(manifests: Manifests, app: str) -> Any:
    return manifests.workload(app).pod


def policy(manifests: Manifests, name: str) -> Any:
    found = manifests.named("NetworkPolicy", name)
    assert found is not None
    return found["spec"]


def setting(manifests: Manifests, app: str, name: str, value: str) -> None:
    for source in container(manifests, app)["envFrom"]:
        found = manifests.named("ConfigMap", source["configMapRef"]["name"])
        assert found is not None
        if source["configMapRef"]["name"].startswith(app):
            found["data"][name] = value


def removed(manifests: Manifests, kind: str, name: str) -> None:
    manifests.documents.remove(manifests.named(kind, name) or {})


BROKEN: dict[str, tuple[Break, str]] = {
    "an egress of the chain is gone": (
        lambda m: policy(m, "emitter")["egress"].clear(),
        "egress is missing: emitter -> bridge:50054",
    ),
    "an ingress of the chain is gone": (
        lambda m: policy(m, "bridge")["ingress"][0]["from"].pop(0),
        "ingress is missing: gateway -> bridge:50054",
    ),
    "an edge too many": (
        lambda m: policy(m, "emitter")["egress"][0]["to"].append(
            {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}
        ),
        "egress is no edge of the chain: emitter -> gateway:50054",
    ),
    "an operator's way is gone": (
        lambda m: removed(m, "NetworkPolicy", "execution-operator"),
        "ingress is missing: operator -> execution:50051",
    ),
    "an operator gets further": (
        lambda m: policy(m, "operator")["egress"][1]["to"].append(
            {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "bridge"}}}
        ),
        "egress is no edge of the chain: operator -> bridge:50051",
    ),
    "a policy's port is another": (
        lambda m: policy(m, "agent-instance")["egress"][0]["ports"][0].update(port=50054),
        "egress is missing: agent-instance -> emitter:50053",
    ),
    "a rule for everybody": (
        lambda m: policy(m, "emitter")["ingress"].append({}),
        "ingress comes from outside of the chain: anywhere -> emitter:0",
    ),
    "a way out for everything": (
        lambda m: policy(m, "emitter")["egress"].append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        "egress leads out of the chain: emitter -> network 0.0.0.0/0:0",
    ),
    "models for others than agent_instance": (
        lambda m: policy(m, "execution")["egress"].append(
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"protocol": "TCP", "port": 443}]}
        ),
        "egress leads out of the chain: execution -> network 0.0.0.0/0:443",
    ),
    "a service is reached from outside": (
        lambda m: policy(m, "execution")["ingress"].append(
            {
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}],
                "ports": [{"protocol": "TCP", "port": 50051}],
            }
        ),
        "ingress lets others than the gateway be reached from outside: namespace x -> execution:50051",
    ),
    "nothing is denied": (lambda m: removed(m, "NetworkPolicy", "deny-all"), "no NetworkPolicy denies everything"),
    "one direction is denied": (
        lambda m: policy(m, "deny-all").update(policyTypes=["Ingress"]),
        "NetworkPolicy deny-all denies one direction only",
    ),
    "no names": (lambda m: removed(m, "NetworkPolicy", "dns"), "bridge cannot ask DNS"),
    "a port is another": (
        lambda m: container(m, "emitter")["ports"][0].update(containerPort=50055),
        "Deployment emitter: its port is 50055, it listens on 50053",
    ),
    "a listener is another": (
        lambda m: setting(m, "bridge", "CARREL_BRIDGE_LISTEN", "0.0.0.0:50064"),
        "Deployment bridge: its port is 50054, it listens on 50064",
    ),
    "a peer is not where it is": (
        lambda m: setting(m, "emitter", "CARREL_EMITTER_BRIDGE", "dns:///bridge:50053"),
        "it calls bridge at dns:///bridge:50053",
    ),
    "a Service with an address": (
        lambda m: (m.named("Service", "bridge") or {})["spec"].update(clusterIP="10.0.0.9"),
        "Service bridge is not headless",
    ),
    "a metrics port is another": (
        lambda m: container(m, "bridge")["ports"].append({"name": "metrics", "containerPort": 51055}),
        "its metrics' port is 51055, and the code's is 51054",
    ),
    "a probe is dropped": (lambda m: container(m, "bridge").pop("startupProbe"), "bridge: it has no startupProbe"),
    "a probe asks for a name that is not served": (
        lambda m: container(m, "bridge")["readinessProbe"]["grpc"].update(service="ready"),
        "its readinessProbe asks for ready, and must ask for readiness",
    ),
    "liveness asks for readiness": (
        lambda m: container(m, "emitter")["livenessProbe"]["grpc"].update(service="readiness"),
        "its livenessProbe asks for readiness, and must ask for liveness",
    ),
    "a probe asks the port with TLS": (
        lambda m: container(m, "emitter")["livenessProbe"]["grpc"].update(port=50053),
        "its livenessProbe asks port 50053, and health is answered at 0.0.0.0:52053",
    ),
    "the gateway's probe asks what is not there": (
        lambda m: container(m, "gateway")["readinessProbe"]["httpGet"].update(path="/health"),
        "its readinessProbe asks /health",
    ),
    "killed before it has ended": (
        lambda m: pod(m, "agent-instance").update(terminationGracePeriodSeconds=300),
        "it is killed after 300 s, and may take 307 s",
    ),
    "preStop is not counted": (
        lambda m: container(m, "gateway")["lifecycle"]["preStop"]["sleep"].update(seconds=40),
        "it is killed after 120 s, and may take 127 s",
    ),
    "no preStop": (lambda m: container(m, "gateway").pop("lifecycle"), "gateway: it has no preStop"),
    "a drain shorter than the byes": (
        lambda m: setting(m, "gateway", "CARREL_DRAIN_SECONDS", "30"),
        "telling 20000 connections takes 40 s, half of a drain of 30 s",
    ),
    "a drain shorter than an attempt": (
        lambda m: setting(m, "agent-instance", "CARREL_DRAIN_SECONDS", "60"),
        "it drains for 60 s, and an attempt may take 300 s",
    ),
    "sockets are cut before there is another": (
        lambda m: m.workload("gateway").spec["strategy"]["rollingUpdate"].update(maxUnavailable=1),
        "clients must find a new copy first",
    ),
    "a start that is cut": (
        lambda m: container(m, "gateway")["startupProbe"].update(failureThreshold=10),
        "it may take 180 s to start, and is killed after 20 s",
    ),
    "new copies are not found": (
        lambda m: setting(m, "emitter", "CARREL_MAX_CONNECTION_AGE_SECONDS", "none"),
        "CARREL_MAX_CONNECTION_AGE_SECONDS is not set",
    ),
    "a budget that no autoscaler's least fits": (
        lambda m: (m.named("PodDisruptionBudget", "emitter") or {})["spec"].update(minAvailable=2),
        "2 of 2 copies must stay",
    ),
    "no budget": (lambda m: removed(m, "PodDisruptionBudget", "bridge"), "bridge has 0 PodDisruptionBudgets"),
    "copies are named and scaled": (
        lambda m: m.workload("emitter").spec.update(replicas=3),  # type: ignore[attr-defined]
        "emitter names a number of replicas",
    ),
    "copies are not spread": (
        lambda m: pod(m, "bridge")["topologySpreadConstraints"].pop(),
        "its copies are not spread over kubernetes.io/hostname",
    ),
    "a setting that the code does not have": (
        lambda m: setting(m, "bridge", "CARREL_BRIDGE_PROBE_INTERVALS", "5"),
        "CARREL_BRIDGE_PROBE_INTERVALS is not a setting",
    ),
    "a setting with a wrong value": (
        lambda m: setting(m, "emitter", "CARREL_EMITTER_QUEUE__USER_BYTES", "many"),
        "CARREL_EMITTER_QUEUE__USER_BYTES=many is wrong",
    ),
    "a Job's setting": (
        lambda m: setting(m, "doctor", "CARREL_DOCTOR_TOKENFILE", "/x"),
        "CARREL_DOCTOR_TOKENFILE is not a setting",
    ),
    "a key that is not mounted": (
        lambda m: setting(m, "gateway", "CARREL_GATEWAY_TICKET_KEY", "/run/carrel/keys/other.json"),
        "ticket_key is /run/carrel/keys/other.json, and the volume keys has gateway.jwk.json",
    ),
    "a mount that is gone": (
        lambda m: container(m, "bridge")["volumeMounts"].pop(),
        "and nothing is mounted there",
    ),
    "a key for everybody": (
        lambda m: pod(m, "gateway")["volumes"][1]["projected"].update(defaultMode=0o444),
        "refuse keys that everybody can read",
    ),
    "a secret that may be missing": (
        lambda m: pod(m, "gateway")["volumes"][1]["projected"]["sources"][0]["secret"].update(optional=True),
        "may be missing without being missed",
    ),
    "workers that do not fit": (
        lambda m: setting(m, "agent-instance", "CARREL_AGENT_INSTANCE_MAX_WORKERS", "20"),
        "may need 11264 MB, and there are 8192 MB",
    ),
    "files that do not fit": (
        lambda m: pod(m, "agent-instance")["volumes"][0]["emptyDir"].update(sizeLimit="1Gi"),
        "below /tmp, more than its size limit",
    ),
    "rings that do not fit": (
        lambda m: setting(m, "gateway", "CARREL_GATEWAY_RINGS_BYTES", "1073741824"),
        "connections may need",
    ),
    "a root file system that is written": (
        lambda m: container(m, "emitter")["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem is False",
    ),
    "a token": (lambda m: pod(m, "bridge").pop("automountServiceAccountToken"), "automountServiceAccountToken is None"),
    "links of Services": (lambda m: pod(m, "gateway").pop("enableServiceLinks"), "enableServiceLinks is None"),
    "no limits": (
        lambda m: container(m, "bridge")["resources"]["limits"].pop("memory"),
        "limits say nothing of memory",
    ),
    "an image from elsewhere": (
        lambda m: container(m, "bridge").update(image="docker.io/x/carrel-bridge:1"),
        "images come from",
    ),
    "another's image": (
        lambda m: container(m, "bridge").update(image="registry.example.com/carrel/carrel-emitter:0.2.0"),
        "has the image of emitter",
    ),
    "a ConfigMap that is not there": (
        lambda m: container(m, "bridge")["envFrom"][0]["configMapRef"].update(name="x"),
        "takes settings of x, which is not there",
    ),
    "another namespace": (
        lambda m: (m.named("Service", "bridge") or {})["metadata"].pop("namespace"),
        "Service bridge is not in the namespace carrel",
    ),
    "a placeholder": (
        lambda m: setting(m, "gateway", "CARREL_GATEWAY_LOGIN__ISSUER", "parameter"),
        "has a placeholder that no component replaced",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rules_notice(built: Build, name: str) -> None:
    breaks, said = BROKEN[name]
    manifests = Manifests(built())
    breaks(manifests)
    found = list(problems(manifests.documents))
    assert any(said in problem for problem in found), found


def test_second_copy_of_an_embedded_store_is_noticed(built: Build) -> None:
    manifests = Manifests(built("local"))
    manifests.workload("bridge").spec.update(replicas=2)  # type: ignore[attr-defined]
    assert any("may have one copy only" in problem for problem in problems(manifests.documents))


def test_two_autoscalers_of_one_service_are_noticed(built: Build) -> None:
    documents = built("production", "keda", "images")
    twice = next(found for found in built() if (found["kind"], found["metadata"]["name"]) == _HPA)
    found = list(problems([*documents, twice]))
    assert any("is scaled by HorizontalPodAutoscaler and ScaledObject" in problem for problem in found), found


_HPA = ("HorizontalPodAutoscaler", "gateway")
