"""``carrel new``: names, files, and that what it makes works: its test, its types, its run, its overlay, its image."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

import carrel
from carrel.cli.app import app
from carrel.cli.new import make_project, package_of
from carrel.cli.supervisor import tied_to_us
from tests.support.needs import unavailable
from tests.support.stack import ROOT, RunningStack, _stop, _wait_ready, clean_environment

TEMPLATE = ROOT / "carrel" / "cli" / "template"
FILES = [
    ".dockerignore",
    ".gitignore",
    "Dockerfile",
    "Makefile",
    "README.md",
    "deploy/kustomization.yaml",
    "my_agents/__init__.py",
    "my_agents/agents.py",
    "my_agents/py.typed",
    "my_agents/tools.py",
    "pyproject.toml",
    "requirements.txt",
    "tests/test_agents.py",
]
# What is behind the types that a project sees; reading it would take most of the check's time.
LEFT_OUT = """
[[tool.mypy.overrides]]
module = ["carrel.v1.*", "services.*", "servicekit.*", "grpc.*", "google.*", "aiohttp.*", "typer.*"]
follow_imports = "skip"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "my-agents"
    make_project("my-agents", folder)
    return folder


def run(project: Path, *command: str, timeout_s: float = 50) -> subprocess.CompletedProcess[str]:
    environment = clean_environment({"PYTHONPATH": str(ROOT)})
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def invoke(*arguments: str) -> tuple[int, str]:
    # Wide, so that a message is in one piece.
    result = CliRunner().invoke(app, ["new", *arguments], env={"COLUMNS": "400"})
    return result.exit_code, result.output


# Names, and the folder.


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is no name for a project"),
        ("My-Agents", "is no name for a project"),
        ("1agents", "is no name for a project"),
        ("my agents", "is no name for a project"),
        ("my--agents", "is no name for a project"),
        ("../agents", "is no name for a project"),
        ("a" * 65, "1 to 64 characters"),
        ("class", "is a word of Python's"),
        ("match", "is a word of Python's"),
        ("json", "there is a module json already"),
        ("carrel", "there is a module carrel already"),
        ("services", "there is a module services already"),
        ("pytest-asyncio", "there is a module pytest_asyncio already"),
    ],
)
def test_a_name_that_will_not_do_is_told_and_nothing_is_made(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = invoke("--", name)

    assert code == 2
    assert why in output
    assert list(tmp_path.iterdir()) == []


def test_names_become_packages() -> None:
    assert package_of("my-agents") == "my_agents"
    assert package_of("desk2") == "desk2"


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_is_not_overwritten(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "my-agents"
    if kind == "folder":
        place.mkdir()
        (place / "Makefile").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    code, output = invoke("my-agents")

    assert code == 2
    assert "my-agents is there already, and nothing in it is overwritten" in output
    assert [path.name for path in tmp_path.iterdir()] == ["my-agents"]
    if kind == "folder":
        assert [path.read_text() for path in place.iterdir()] == ["mine"]


def test_a_folder_that_fills_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "my-agents"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        make_project("my-agents", folder)

    assert [path.name for path in tmp_path.rglob("*")] == ["my-agents", "mine"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = invoke("my-agents", "--path", str(tmp_path / "file" / "my-agents"))

    assert code == 1
    assert "cannot be written: " in output


def test_an_empty_folder_is_used_and_the_next_step_said(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    code, output = invoke("my-agents", "--path", str(folder))

    assert code == 0
    assert f"cd {folder} && make run" in output
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == FILES


def test_make_is_told_which_python_only_where_another_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = tmp_path / "venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to("python3.11")
    (environment / "python3.11").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(environment / "python3.11"))
    monkeypatch.setenv("PATH", str(environment))
    assert "&& make run\n" in invoke("one-desk")[1]
    monkeypatch.setenv("PATH", "/nowhere")
    assert f"&& make run PYTHON={environment}/python3.11\n" in invoke("two-desks")[1]


# The files.


def test_the_wheel_has_every_file_of_the_template_and_of_carrel_testing() -> None:
    """What hatch's settings choose, without building: the same list as the build's."""
    chosen = {Path(file.path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    expected = {path for path in TEMPLATE.rglob("*") if path.is_file()}
    expected |= set((ROOT / "carrel" / "testing").glob("*.py"))

    assert all(path.name.endswith(".tmpl") for path in TEMPLATE.rglob("*") if path.is_file())
    assert expected <= chosen, f"not in the wheel: {sorted(map(str, expected - chosen))}"


def test_nothing_is_left_to_fill_in(project: Path) -> None:
    for path in project.rglob("*"):
        if path.is_file():
            assert not re.search(r"\{\{|\}\}", path.read_text()), path
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    assert settings["project"]["name"] == "my-agents"
    assert settings["project"]["dependencies"] == [f"carrel>={carrel.__version__}"]
    assert settings["project"]["entry-points"]["carrel.agents"] == {"my_agents": "my_agents:agents"}


def test_the_code_is_formatted_and_has_nothing_to_lint(project: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    formatted = run(project, *ruff, "format", "--isolated", "--line-length", "120", "--diff", ".")
    rules = "E,F,W,I,B,UP,RUF,SIM,ASYNC,PT,D100,D104"
    linted = run(project, *ruff, "check", "--isolated", "--line-length", "120", "--select", rules, ".")

    assert (formatted.returncode, linted.returncode) == (0, 0), formatted.stdout + linted.stdout


def test_the_dockerfile_builds_in_a_stage_of_its_own_and_runs_as_nobody(project: Path) -> None:
    lines = [line for line in (project / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    arguments = {line.split()[1].partition("=")[0]: line.partition("=")[2] for line in lines if line.startswith("ARG")}
    stages = [line.split()[1:] for line in lines if line.startswith("FROM")]

    assert stages == [["${PYTHON_IMAGE}", "AS", "build"], ["${CARREL_IMAGE}:${CARREL_VERSION}"]]
    assert arguments == {
        "CARREL_IMAGE": "carrel/carrel-agent-instance",
        "CARREL_VERSION": carrel.__version__,
        "PYTHON_IMAGE": "python:3.11-slim-bookworm",
    }
    assert all(value for value in arguments.values())
    assert not re.search(r":latest|\bsudo\b|^ADD|apt-get|COPY \. ", "\n".join(lines), re.MULTILINE)
    assert all("--no-cache-dir" in line for line in lines if "pip install" in line)
    last = lines[lines.index("FROM ${CARREL_IMAGE}:${CARREL_VERSION}") :]
    assert not [line for line in last if line.startswith("RUN")], "the image that is run has no pip and needs no step"
    assert last[-1] == "USER 10001:10001"
    assert "ENV CARREL_AGENT_INSTANCE_AGENTS=my_agents:agents" in last


def test_the_image_gets_what_the_build_needs_and_no_more(project: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (project / "Dockerfile").read_text(), re.MULTILINE)
    let_in = re.findall(r"^!(.+)$", (project / ".dockerignore").read_text(), re.MULTILINE)

    assert (project / ".dockerignore").read_text().startswith("*\n")
    assert sorted(" ".join(copied).split()) == sorted(let_in)
    assert all((project / name).exists() for name in let_in)


def test_the_images_of_the_template_are_those_that_carrel_makes(project: Path) -> None:
    makes = (ROOT / "Dockerfile").read_text()

    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm" in makes
    assert "/opt/carrel/bin/python3.11" in makes
    assert "USER 10001:10001" in makes
    assert (ROOT / "k8s" / "overlays" / "local" / "kustomization.yaml").exists()


def test_the_overlay_runs_the_projects_image(project: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise unavailable("kubectl", "no kubectl is here")
    checkout = project / "carrel"
    checkout.symlink_to(ROOT)
    try:
        built = run(project, kubectl, "kustomize", "deploy")
    finally:
        checkout.unlink()

    assert built.returncode == 0, built.stderr
    images = re.findall(r"image: (\S+)", built.stdout)
    assert "my-agents:dev" in images
    assert not [image for image in images if "agent-instance" in image]
    assert "CARREL_AGENT_INSTANCE_AGENTS: my_agents:agents" in built.stdout


# It works.


def test_its_test_passes(project: Path) -> None:
    tested = run(
        project,
        "make",
        "test",
        f"PYTHON={sys.executable}",
        "ARGS=-q -p no:cacheprovider -p no:schemathesis -p no:langsmith_plugin -W error",
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout


def test_its_types_hold(project: Path, tmp_path: Path) -> None:
    config = tmp_path / "pyproject.toml"
    config.write_text((project / "pyproject.toml").read_text() + LEFT_OUT)
    typed = run(
        project, "make", "types", f"PYTHON={sys.executable}", f"ARGS=--config-file {config} --cache-dir {tmp_path}"
    )

    assert typed.returncode == 0, typed.stdout + typed.stderr


@pytest.fixture
def started(project: Path, tmp_path: Path) -> Iterator[RunningStack]:
    """The project as its one command starts it."""
    log_path = tmp_path / "up.log"
    arguments = f"ARGS=--port 0 --state {tmp_path / 'state'}"
    command = tied_to_us([str(shutil.which("make")), "run", f"PYTHON={sys.executable}", arguments])
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=project, env=clean_environment({"PYTHONPATH": str(ROOT)}), stdout=log, stderr=log
        )
    stack = RunningStack(tmp_path, process, log_path)
    try:
        _wait_ready(stack, 60)
        yield stack
    finally:
        _stop(stack)


async def test_one_command_starts_it_and_its_agent_answers_through_the_gateway(started: RunningStack) -> None:
    async with started.client("alice") as alice:
        accepted = await alice.execute("a carrel is a desk")
        events = [event async for event in alice.run_events(accepted.run_id)]

    assert accepted.agent_name == "text"
    assert events[-1].data["status"] == "SUCCEEDED"
    assert events[-1].data["result"] == {"answer": "Your text has 5 words, the longest is 'carrel'."}
