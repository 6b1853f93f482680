"""What is applied, as it is: nothing to complain of, every kind known to Kubernetes, one parameter for all images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

import carrel
from tests.k8s.conftest import EVERYTHING, Build
from tools.k8s_check.build import FOLDER, KustomizeError, all_components, build, combinations
from tools.k8s_check.checkov import checkov_problems, reasons
from tools.k8s_check.code import SETTINGS, app_of, peers
from tools.k8s_check.objects import Manifests
from tools.k8s_check.rules import problems
from tools.k8s_check.schemas import VERSIONS, schema_problems

ROOT = FOLDER.parent
OVERLAYS = [("local", ()), ("production", ()), ("production", EVERYTHING)]


@pytest.mark.parametrize(("overlay", "more"), OVERLAYS, ids=["local", "production", "everything"])
def test_nothing_is_wrong_with(built: Build, overlay: str, more: tuple[str, ...]) -> None:
    assert list(problems(built(overlay, *more))) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object_of_production(built: Build, version: str) -> None:
    assert list(schema_problems(built(), version)) == []


def test_kubernetes_takes_every_object_of_one_machine(built: Build) -> None:
    assert list(schema_problems(built("local"), VERSIONS[0])) == []


def test_unknown_field_is_refused(built: Build) -> None:
    documents = built()
    Manifests(documents).workload("emitter").container["livenesProbe"] = {}
    assert any("livenesProbe" in problem for problem in schema_problems(documents, VERSIONS[0]))


def test_local_keeps_its_stores_on_volumes_of_one_pod_and_production_has_none(built: Build) -> None:
    local, production = Manifests(built("local")), Manifests(built())
    for app in ("execution", "bridge"):
        workload = local.workload(app)
        (claim,) = workload.spec["volumeClaimTemplates"]
        assert (workload.kind, claim["spec"]["accessModes"]) == ("StatefulSet", ["ReadWriteOncePod"])
        assert local.environment(workload)["CARREL_STATE_DIR"] == "/var/lib/carrel"
        assert production.workload(app).kind == "Deployment"
    assert "CARREL_BRIDGE_LOG__URL" in production.environment(production.workload("bridge"))


def test_stores_in_files_are_sealed_as_well(built: Build) -> None:
    documents = built("local", "encryption", "images")
    assert list(problems(documents)) == []
    manifests = Manifests(documents)
    for app, secret in (("execution", "carrel-encryption"), ("bridge", "carrel-encryption-log")):
        workload = manifests.workload(app)
        assert workload.kind == "StatefulSet"
        assert secret in _secrets(workload.pod["volumes"])
        name = f"CARREL_{app.upper()}_ENCRYPTION__KEY_FILE"
        assert manifests.environment(workload)[name] == "/run/carrel/encryption/keys.json"


@pytest.mark.parametrize("app", ["doctor", "operator"])
def test_what_visits_production_is_a_part_of_it(built: Build, app: str) -> None:
    manifests = Manifests(built())
    visitor = manifests.workload(app)
    environment = manifests.environment(visitor)
    assert environment["CARREL_ENVIRONMENT"] == "production"
    assert environment["CARREL_TLS__CERT"] == "/run/carrel/tls/tls.crt"
    assert f"carrel-tls-{app}" in _secrets(visitor.pod["volumes"])
    assert "carrel-gateway-key" not in _secrets(visitor.pod["volumes"])


def test_two_parameters_name_all_images_also_of_a_registry_with_a_port(tmp_path: Path, built: Build) -> None:
    built()  # skipped where nothing can be built
    copied = tmp_path / "k8s"
    shutil.copytree(FOLDER, copied)
    (copied / "overlays/production/parameters/parameters.env").write_text(
        "registry=localhost:5000/a/b\ntag=9.9.9-rc1\n"
    )
    manifests = Manifests(build(copied / "overlays/production"))
    images = {workload.app: workload.container["image"] for workload in manifests.workloads}
    assert len(images) == 8
    for app, image in images.items():
        assert image == f"localhost:5000/a/b/carrel-{app if app in SETTINGS else 'cli'}:9.9.9-rc1"
    assert manifests.named("Job", "migrate-9.9.9-rc1")


def test_overlays_set_only_parameters_that_the_base_knows() -> None:
    known = _names(FOLDER / "base/parameters.env")
    for file in FOLDER.glob("overlays/*/parameters/parameters.env"):
        assert _names(file) <= known, file


def test_images_that_are_named_are_those_of_this_release() -> None:
    named = {
        (str(file.relative_to(FOLDER)), tag)
        for file in (*FOLDER.rglob("parameters.env"), FOLDER / "README.md")
        for tag in re.findall(r"(?:tag=|carrel-[a-z-]+:|job/migrate-)(\d\S*?)(?=[`\s]|$)", file.read_text())
    }
    assert {tag for _, tag in named} == {carrel.__version__}, named


def test_every_parameter_is_used_and_every_component_is_in_a_combination() -> None:
    files = [file.read_text() for file in FOLDER.glob("components/*/kustomization.yaml")]
    used = {name for text in files for name in re.findall(r"fieldPath: data\.(\w+)\}", text)}
    assert used == _names(FOLDER / "base/parameters.env")
    assert {part for _, parts in combinations() for part in parts} >= set(all_components()) - {"embedded-stores"}


def test_changed_setting_changes_the_name_that_pods_refer_to(tmp_path: Path, built: Build) -> None:
    built()  # skipped where nothing can be built
    copied = tmp_path / "k8s"
    shutil.copytree(FOLDER, copied)
    before = Manifests(build(copied / "overlays/production")).workload("emitter").container["envFrom"]
    settings = copied / "base/settings/emitter.env"
    settings.write_text(settings.read_text() + "CARREL_EMITTER_EVENT_TIMEOUT=31\n")
    after = Manifests(build(copied / "overlays/production")).workload("emitter").container["envFrom"]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_overlay_of_an_operator_may_name_digests_and_images_of_its_own(built: Build) -> None:
    manifests = Manifests(built())
    manifests.workload("agent-instance").container["image"] = "mine.example.com/agents:7"
    manifests.workload("bridge").container["image"] = "mine.example.com/carrel-bridge@sha256:" + "a" * 64
    assert len(list(problems(manifests.documents))) == 2
    assert list(problems(manifests.documents, ours=False)) == []
    manifests.workload("emitter").container["image"] = "registry/carrel-emitter:tag"
    (placeholder,) = problems(manifests.documents, ours=False)
    assert "component images must be the last" in placeholder


def test_what_kustomize_refuses_is_told(tmp_path: Path, built: Build) -> None:
    built()
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(KustomizeError, match=r"missing\.yaml"):
        build(tmp_path)


def test_autoscalers_of_keda_take_the_place_of_the_others(built: Build) -> None:
    scaled = Manifests(built("production", "keda", "images"))
    assert {found["metadata"]["name"] for found in scaled.of("ScaledObject")} == {
        "gateway",
        "execution",
        "agent-instance",
    }
    assert {found["metadata"]["name"] for found in scaled.of("HorizontalPodAutoscaler")} == {"emitter", "bridge"}


def test_what_is_scraped_has_the_names_that_alerts_take(built: Build) -> None:
    (monitor,) = Manifests(built("production", *EVERYTHING)).of("PodMonitor")
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    relabelled = {rule["targetLabel"]: rule["replacement"] for end in endpoints for rule in end["relabelings"]}
    assert relabelled == {"job": "carrel-$1"}


def test_keda_asks_for_metrics_that_exist(built: Build) -> None:
    catalogue = pytest.importorskip("servicekit.telemetry.catalogue")
    queries = [
        trigger["metadata"]["query"]
        for found in Manifests(built("production", "keda", "images")).of("ScaledObject")
        for trigger in found["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    asked = {name for query in queries for name in re.findall(r"carrel_\w+", query)}
    assert len(queries) == 3
    assert asked <= set(catalogue.CATALOGUE)


def test_edges_of_the_code_are_those_of_the_architecture_page() -> None:
    letters = {"G": "gateway", "X": "execution", "A": "agent-instance", "M": "emitter", "B": "bridge"}
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    diagram = text.partition("```mermaid")[2].partition("```")[0]
    drawn = {
        (letters[source], letters[target])
        for source, target in re.findall(r"^\s*([A-Z]+)(?:\[[^\]]*\])? -->(?:\|[^|]*\|)? ([A-Z]+)", diagram, re.M)
        if source in letters and target in letters
    }
    # Attach is the gateway's call, and drawn the way the events go.
    drawn = (drawn - {("bridge", "gateway")}) | {("gateway", "bridge")}
    assert drawn == {(app, app_of(peer)) for app in SETTINGS for peer in peers(app)}


def test_certificates_name_each_identity_in_the_trust_domain(built: Build) -> None:
    from servicekit.tls.settings import server_name, spiffe_id

    certificates = {found["metadata"]["name"]: found["spec"] for found in Manifests(built()).of("Certificate")}
    for app in (*SETTINGS, "doctor", "operator"):
        spec, service = certificates[app], app.replace("-", "_")
        assert spec["uris"] == [spiffe_id(service, "carrel.internal")]
        assert spec["dnsNames"][0] == server_name(service, "carrel.internal")
        assert spec["secretName"] == f"carrel-tls-{app}"


def test_excused_checks_have_reasons_and_a_failing_one_without_is_a_problem() -> None:
    told = reasons()
    assert list(checkov_problems({number: ["Deployment a: x"] for number in told}, told)) == []
    assert list(checkov_problems({"CKV_K8S_1": ["Deployment a: x"]}, {})) == ["CKV_K8S_1 Deployment a: x"]
    (unused,) = checkov_problems({}, {"CKV_K8S_1": "x" * 50})
    assert "take it out" in unused


def test_files_hold_one_service_each_and_one_policy_each() -> None:
    for app in SETTINGS:
        kinds = [found["kind"] for found in yaml.safe_load_all((FOLDER / f"base/{app}.yaml").read_text())]
        assert kinds == ["ServiceAccount", "Service", "Deployment", "PodDisruptionBudget"]
        (policy,) = yaml.safe_load_all((FOLDER / f"base/network-policies/{app}.yaml").read_text())
        assert (policy["kind"], policy["metadata"]["name"]) == ("NetworkPolicy", app)


def _names(file: Path) -> set[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


def test_readme_has_every_component_and_every_secret(built: Build) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in all_components() if f"`{name}`" not in text] == []
    secrets = {name for overlay, more in OVERLAYS for name in _secrets(built(overlay, *more))}
    assert "carrel-ticket-jwks" in secrets
    missing = [name for name in sorted(secrets) if f"`{name}`" not in text and not name.startswith("carrel-tls-")]
    assert missing == []


def _secrets(value: object) -> set[str]:
    if isinstance(value, list):
        return {name for part in value for name in _secrets(part)}
    if not isinstance(value, dict):
        return set()
    found = {name for part in value.values() for name in _secrets(part)}
    if isinstance(source := value.get("secret"), dict):
        found.add(str(source.get("secretName") or source["name"]))
    return found
