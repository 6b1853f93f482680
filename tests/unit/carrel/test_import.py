"""``import carrel``: quick, complete, and without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import carrel


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return set(json.loads(done.stdout))


def test_importing_carrel_loads_almost_nothing() -> None:
    loaded = loaded_after("import carrel")
    assert [name for name in loaded if name.startswith("carrel")] == ["carrel"]
    assert not loaded & {"grpc", "google.protobuf", "pydantic", "pydantic_settings", "asyncio", "orjson"}


def test_what_an_author_imports_loads_no_grpc_protobuf_or_pydantic() -> None:
    loaded = loaded_after("from carrel import Agent, AgentContext, Plan, Request, tool, UserContextFactory, EVENTS")
    assert not loaded & {"grpc", "google.protobuf", "pydantic", "pydantic_settings"}


def test_wire_loads_protobuf_but_no_grpc() -> None:
    loaded = loaded_after("import carrel.wire")
    assert "google.protobuf" in loaded
    assert "grpc" not in loaded


@pytest.mark.parametrize("name", carrel.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(carrel, name) is not None
    assert name in dir(carrel)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = carrel.no_such_name


def test_the_type_checker_sees_the_same_names() -> None:
    source = Path(carrel.__file__).read_text(encoding="utf-8")
    seen = {line.rpartition(" as ")[2].strip() for line in source.splitlines() if line.startswith("    from carrel.")}
    assert seen == set(carrel.__all__) - {"__version__"}


def test_the_version_is_the_distributions() -> None:
    pyproject = Path(carrel.__file__).parents[1] / "pyproject.toml"
    assert f'version = "{carrel.__version__}"' in pyproject.read_text(encoding="utf-8")
