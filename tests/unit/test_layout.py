"""The repository's shape: the checks of tools/check_layout.py, what `import carrel` loads, the lock and the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tools import check_layout, protos

ROOT = check_layout.ROOT


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def breaches(root: Path) -> list[str]:
    return [f"{problem.path.relative_to(root)}: {problem.text}" for problem in check_layout.check(root)]


def test_this_repository_has_no_breach() -> None:
    assert breaches(ROOT) == []


def test_service_with_every_file_of_the_list_is_accepted(tmp_path: Path) -> None:
    names = ["__init__", "__main__", "app", "config", "service", "convert", "store", "store_sqlite", "client_log"]
    names += ["models", "tables", "domain/__init__", "domain/runs", "workers/pool", "migrations/env"]
    files = {f"services/agent_instance/{name}.py": "" for name in names}
    root = write(tmp_path, {**files, "services/agent_instance/lua/append.lua": ""})
    assert breaches(root) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("helpers.py", "not on the list"),
        ("utils/x.py", "not on the list"),
        ("notes.md", "not on the list"),
        ("lua/append.py", "not on the list"),
        ("store_.py", "not on the list"),
        ("workers/pool.py", "only agent_instance has workers"),
    ],
)
def test_file_outside_the_list_is_named(tmp_path: Path, name: str, says: str) -> None:
    root = write(tmp_path, {f"services/bridge/{name}": ""})
    found = breaches(root)
    assert found
    assert all(says in line for line in found)


def test_domain_as_file_and_folder_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"services/bridge/domain.py": "", "services/bridge/domain/log.py": ""})
    assert any("either a file or a folder" in line for line in breaches(root))


def test_long_main_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"services/bridge/__main__.py": "x = 1\n" * 16})
    assert any("__main__.py: has 16 lines" in line for line in breaches(root))


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("models", "store"),
        ("store", "domain"),
        ("domain", "convert"),
        ("domain/runs", "config"),
        ("convert", "client_log"),
        ("convert", "tables"),
        ("store_sqlite", "client_log"),
        ("client_log", "service"),
        ("service", "app"),
        ("app", "__main__"),
    ],
)
def test_import_against_the_order_is_refused(tmp_path: Path, module: str, imported: str) -> None:
    root = write(tmp_path, {f"services/bridge/{module}.py": f"from services.bridge import {imported}\n"})
    (line,) = breaches(root)
    assert "may not import" in line


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("__main__", "app.main"),
        ("app", "config.Settings"),
        ("app", "store_sqlite.SqliteStore"),
        ("service", "convert"),
        ("client_log", "client_common"),
        ("client_log", "convert"),
        ("store_sqlite", "tables"),
        ("store_sqlite", "store.Store"),
        ("domain/runs", "domain.plans"),
        ("domain", "store"),
        ("store", "models"),
    ],
)
def test_import_along_the_order_is_accepted(tmp_path: Path, module: str, imported: str) -> None:
    package, _, name = f"services.bridge.{imported}".rpartition(".")
    root = write(tmp_path, {f"services/bridge/{module}.py": f"from {package} import {name}\n"})
    assert breaches(root) == []


@pytest.mark.parametrize(
    "text",
    [
        "import grpc\n",
        "from carrel.client import channel\n",
        "from carrel import wire\n",
        "class A:\n    import google.rpc\n",
    ],
)
def test_core_that_loads_something_heavy_is_refused(tmp_path: Path, text: str) -> None:
    (line,) = breaches(write(tmp_path, {"carrel/agents.py": text}))
    assert "carrel's core may not load" in line


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import grpc\n",
        "async def f():\n    from carrel import wire\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grpc\n",
        "from carrel import errors, v1x\n",
    ],
)
def test_core_may_load_heavy_things_late_or_for_types(tmp_path: Path, text: str) -> None:
    assert breaches(write(tmp_path, {"carrel/agents.py": text})) == []


def test_stub_that_leans_on_the_library_is_refused(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"carrel/v1/a_pb2.py": "import sys\nfrom google.protobuf import any_pb2\nimport carrel.errors\n"}
    )
    (line,) = breaches(root)
    assert "carrel.v1 may not import carrel.errors" in line


def test_long_file_is_refused_unless_generated(tmp_path: Path) -> None:
    long = "x = 1\n" * 401
    root = write(tmp_path, {"gateway/hub.py": long, "carrel/v1/a_pb2.py": long, "tests/unit/test_a.py": long})
    assert breaches(root) == ["gateway/hub.py: has 401 lines; split it (400 at most)"]


def test_import_carrel_loads_nothing_heavy() -> None:
    code = "import sys, carrel; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split())
    assert "carrel" in loaded
    assert loaded & check_layout.HEAVY_OUTSIDE == set()


def test_stale_missing_and_leftover_stubs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protos, "TARGET", tmp_path)
    wanted = {"a_pb2.py": "a", "b_pb2.py": "b"}
    write(tmp_path, {"a_pb2.py": "old", "c_pb2.pyi": "c", "__init__.py": ""})
    assert protos.difference(wanted) == ["a_pb2.py", "b_pb2.py", "c_pb2.pyi"]
    protos.write(wanted)
    assert protos.difference(wanted) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__init__.py", "a_pb2.py", "b_pb2.py"]


def lock_lines() -> list[str]:
    return (ROOT / "constraints.txt").read_text().splitlines()


def test_lock_holds_every_dependency_and_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    locked = {line.split("==")[0].lower() for line in lock_lines() if "==" in line and not line.startswith(" ")}
    names = {re.split(r"[\[<>=~! ;]", requirement)[0].lower() for requirement in wanted}
    assert names <= locked
    assert [line for line in lock_lines() if "://" in line or line.lstrip().startswith("--index")] == []


def test_lock_hashes_every_pin() -> None:
    text = (ROOT / "constraints.txt").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 1", "does not start"),
        ("printf 'it is Python 3.10\\t3.11, 3.12 or 3.13 is needed\\n'; exit 3", "it is Python 3.10; 3.11, 3.12 or"),
    ],
)
def test_unfit_python_is_named_with_the_reason_and_the_remedy(tmp_path: Path, script: str, says: str) -> None:
    fake = tmp_path / "python3.9"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools/environment.sh", fake, "no-such-python"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "no-such-python: not found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert done.stdout == ""


def test_fit_python_is_chosen() -> None:
    done = subprocess.check_output([ROOT / "tools/environment.sh", "no-such-python", sys.executable], text=True)
    assert Path(done.strip()).samefile(sys.executable)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_wheel_holds_the_packages_and_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"carrel", "servicekit", "services", "gateway", "examples"}
    assert {name.split("/")[1] for name in wheel if name.startswith("examples/")} == {
        "__init__.py",
        "assistant",
        "llm_costs",
    }


def test_wheel_holds_every_data_file(wheel: list[str]) -> None:
    kinds = {".lua", ".sql", ".csv", ".mako", ".typed", ".ini", ".html", ".js", ".css", ".pyi"}
    roots = ["carrel", "servicekit", "services", "gateway", "examples/assistant", "examples/llm_costs"]
    data = {str(p.relative_to(ROOT)) for root in roots for p in (ROOT / root).rglob("*") if p.suffix in kinds}
    assert "carrel/py.typed" in data
    assert data <= set(wheel)
