"""Dashboards, rules and alerts: they parse, and every metric that they name is one of the catalogue, rightly used."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

import carrel.errors
from servicekit.telemetry.catalogue import CATALOGUE, SERVICES, Kind, Metric
from tools import dashboards, metrics_doc
from tools.dashboard_pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "ops" / "prometheus" / "rules.yaml"
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
# Prometheus' own, on every series and of every target.
TARGET_LABELS = {"job", "instance"}
OTHERS = {"up"}
SAMPLES: dict[str, tuple[Metric, str]] = {
    sample: (metric, sample.removeprefix(metric.name)) for metric in CATALOGUE.values() for sample in metric.samples
}


def rules_of(path: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"] for rule in rules_of(RULES)}
ALERT_RULES = rules_of(ALERTS)
NAMES = [rule["alert"] for rule in ALERT_RULES]


def panels(name: str) -> list[dict[str, Any]]:
    page = json.loads((ROOT / "ops" / "grafana" / f"{name}.json").read_text("utf-8"))
    return list(page["panels"])


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression that there is, with where it stands."""
    for rule in (*rules_of(RULES), *ALERT_RULES):
        yield rule.get("record") or rule["alert"], rule["expr"]
    for name in PAGES:
        for panel in panels(name):
            for target in panel.get("targets", ()):
                if "expr" in target and panel["datasource"]["type"] == "prometheus":
                    yield f"{name}: {panel['title']}", target["expr"].replace("$__rate_interval", "5m")


EXPRESSIONS = list(expressions())


def nodes(found: Any) -> Iterator[Any]:
    """An expression's nodes, each once."""
    yield found
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "args"):
        inner = getattr(found, name, None)
        for part in inner if isinstance(inner, list) else [inner]:
            if part is not None and type(part).__module__.startswith("promql_parser"):
                yield from nodes(part)


def check(where: str, text: str) -> None:
    """What must hold for every expression."""
    tree = list(nodes(promql_parser.parse(text)))
    known: set[str] = set()
    for node in tree:
        if not isinstance(node, promql_parser.VectorSelector) or node.name in RECORDED or node.name in OTHERS:
            continue
        assert node.name in SAMPLES, f"{where}: {node.name} is not in the catalogue"
        metric, end = SAMPLES[node.name]
        labels = {*metric.labels, *TARGET_LABELS, *(("le",) if end == "_bucket" else ())}
        known |= labels
        used = {matcher.name for matcher in node.matchers.matchers}
        assert used <= labels, f"{where}: {node.name} has no label {used - labels}"
    for node in tree:
        if isinstance(node, promql_parser.Call) and node.func.name in {"rate", "increase"}:
            for inner in nodes(node):
                if isinstance(inner, promql_parser.VectorSelector) and inner.name in SAMPLES:
                    metric, end = SAMPLES[inner.name]
                    assert metric.kind is not Kind.GAUGE, f"{where}: {node.func.name} of the gauge {inner.name}"
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None and known:
            by = set(node.modifier.labels)
            assert by <= known, f"{where}: nothing here has the label {by - known}"
        if isinstance(node, promql_parser.VectorSelector) and node.name in SAMPLES:
            metric, end = SAMPLES[node.name]
            bare = not any(isinstance(outer, promql_parser.Call) and node in nodes(outer) for outer in tree)
            assert not (metric.kind is Kind.COUNTER and bare), f"{where}: the counter {node.name} without rate"


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_expression_parses_and_names_metrics_that_exist(where: str, text: str) -> None:
    check(where, text)


@pytest.mark.parametrize(
    "text",
    [
        "rate(carrel_runs_begun_total[5m])",
        "rate(carrel_connections[5m])",
        "sum by (user) (carrel_connections)",
        'carrel_run_refusals_total{code="X"}',
        'sum(rate(carrel_runs_total{state="QUEUED"}[5m]))',
        "sum(",
    ],
    ids=["renamed", "rate of a gauge", "no such label", "counter as it is", "no such label to match", "no expression"],
)
def test_what_is_wrong_with_an_expression_is_noticed(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check("wrong", text)


@pytest.mark.parametrize("rule", ALERT_RULES, ids=NAMES)
def test_every_alert_says_who_must_act_and_where_to_read(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    notes = rule["annotations"]
    assert notes["summary"]
    assert notes["description"]
    assert notes["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert "for" in rule or "increase(" in rule["expr"]


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("Carrel*.md")) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_to_see_to_do_and_when_to_ask_for_help(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text("utf-8")
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    assert heads == [
        name,
        "What users see",
        "How to confirm",
        "Causes, the likely ones first",
        "What to do",
        "When to escalate",
    ]
    for metric in re.findall(r"`(?:\w+\()?(carrel_[a-z_]+)", text):
        assert metric in CATALOGUE, f"{metric} is none"
    for pattern in re.findall(r"grep -E '([^']+)'   # (\w+)", text):
        parts, service = re.sub(r"\(([^)]*)\)", "", pattern[0]).split("|"), pattern[1]
        names = " ".join(metric.name for metric in CATALOGUE.values() if service in metric.services)
        assert service in SERVICES
        assert all(part.strip("_ ") in names for part in parts), pattern
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (RUNBOOKS / link).exists(), link
    for command in re.findall(r"^carrel (\w+)|`carrel (\w+)", text, re.M):
        assert (command[0] or command[1]) in COMMANDS


COMMANDS = {"audit", "cancel", "config", "doctor", "keys", "migrate", "revoke", "run", "watch"}


def test_codes_in_alerts_are_errors_that_exist() -> None:
    codes = {kind.code for _, kind in inspect.getmembers(carrel.errors, inspect.isclass) if hasattr(kind, "code")}
    for rule in ALERT_RULES:
        for found in re.findall(r'code=~"([^"]+)"', rule["expr"]):
            assert set(found.split("|")) <= codes


@pytest.mark.parametrize("name", PAGES)
def test_a_dashboard_is_one_that_grafana_can_show(name: str) -> None:
    page = json.loads((ROOT / "ops" / "grafana" / f"{name}.json").read_text("utf-8"))
    assert page["uid"].startswith("carrel-")
    assert page["title"]
    assert page["description"]
    variables = {variable["name"] for variable in page["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in page["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert 0 < place["w"] <= 24 - place["x"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        if panel["datasource"]["type"] == "prometheus":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        used = set(re.findall(r"\$\{(\w+)\}", json.dumps(panel)))
        assert used <= variables, panel["title"]


def test_files_that_are_made_are_as_they_would_be_made() -> None:
    for name, page in PAGES.items():
        made = json.dumps(page(), indent=2, ensure_ascii=False) + "\n"
        assert (dashboards.FOLDER / f"{name}.json").read_text("utf-8") == made, "run python -m tools.dashboards"
    assert metrics_doc.PAGE.read_text("utf-8") == metrics_doc.page(), "run python -m tools.metrics_doc"


def scrape_job() -> dict[str, Any]:
    page = (ROOT / "docs" / "operations" / "watch.md").read_text("utf-8")
    (text,) = re.findall(r"```yaml\n(scrape_configs:\n.*?)```", page, re.S)
    (job,) = yaml.safe_load(text)["scrape_configs"]
    return dict(job)


def relabelled(rules: list[dict[str, Any]], labels: dict[str, str]) -> dict[str, str] | None:
    """What Prometheus makes of a target's labels; None for one that is not scraped. Only what the page uses."""
    result = dict(labels)
    for rule in rules:
        value = rule.get("separator", ";").join(result.get(name, "") for name in rule["source_labels"])
        match = re.fullmatch(rule.get("regex", "(.*)"), value)
        if rule.get("action", "replace") == "keep":
            if match is None:
                return None
        elif match is not None:
            result[rule["target_label"]] = rule.get("replacement", "$1").replace("$1", match[1])
    return {name: value for name, value in result.items() if not name.startswith("__meta_")}


def test_the_page_s_job_for_kubernetes_finds_each_service_at_its_metrics() -> None:
    component = (ROOT / "k8s" / "components" / "telemetry" / "kustomization.yaml").read_text("utf-8")
    found = {}
    for patch in yaml.safe_load(component)["patches"]:
        values = {step["path"]: step["value"] for step in yaml.safe_load(patch["patch"])}
        annotations = values.get("/spec/template/metadata/annotations")
        if annotations is None:
            continue
        name, port = patch["target"]["name"], values["/spec/template/spec/containers/0/ports/-"]
        labels = {
            "__meta_kubernetes_pod_ip": "10.0.0.9",
            "__meta_kubernetes_pod_name": f"{name}-1",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
            "__meta_kubernetes_pod_container_port_name": port["name"],
            "__address__": "10.0.0.9:1",
        } | {
            f"__meta_kubernetes_pod_annotation_{key.replace('.', '_').replace('/', '_')}": value
            for key, value in annotations.items()
        }
        rules = scrape_job()["relabel_configs"]
        assert relabelled(rules, labels | {"__meta_kubernetes_pod_container_port_name": "grpc"}) is None
        assert relabelled(rules, labels | {"__meta_kubernetes_pod_phase": "Succeeded"}) is None
        found[name] = relabelled(rules, labels)
        assert found[name] == {
            "__address__": f"10.0.0.9:{port['containerPort']}",
            "__metrics_path__": "/metrics",
            "job": f"carrel-{name}",
            "instance": f"{name}-1",
        }
    assert {name.replace("-", "_") for name in found} == set(SERVICES)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_takes_the_page_s_job(tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    job = scrape_job()
    # Debian's is built without the discovery of Kubernetes.
    assert set(job.pop("kubernetes_sd_configs")[0]) == {"role", "namespaces"}
    path.write_text(yaml.safe_dump({"scrape_configs": [job]}), "utf-8")
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    for arguments in (["check", "rules", str(RULES), str(ALERTS)], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            ["promtool", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
