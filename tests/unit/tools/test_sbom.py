"""The bill of materials: complete, by the lock, without developers' tools, the same each time, valid."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.stack import ROOT
from tools.sbom import make_sbom, packages, problems_of, versions_of

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
MADE = datetime(2026, 1, 1, tzinfo=UTC)


def test_it_lists_what_is_installed_with_the_extras_and_no_tools() -> None:
    bom = json.loads(make_sbom(PROJECT, LOCK, wheel_sha256="0" * 64, made_at=MADE))
    found = {one["name"]: one["version"] for one in bom["components"]}
    # Directly needed, needed by what is needed, needed by an extra.
    assert {"grpcio", "multidict", "duckdb", "asyncpg", "opentelemetry-sdk", "openai"} <= set(found)
    assert not {"ruff", "mypy", "pytest", "hypothesis", "uv"} & set(found)
    locked = versions_of(LOCK)
    assert {name: locked[name] for name in found} == found
    assert all(one.get("licenses") for one in bom["components"])
    assert bom["metadata"]["component"]["name"] == "carrel"
    needs = {one["ref"].split("@")[0]: one.get("dependsOn", []) for one in bom["dependencies"]}
    assert any(ref.startswith("pkg:pypi/multidict@") for ref in needs["pkg:pypi/aiohttp"])


def test_it_is_the_same_each_time_and_another_one_for_another_wheel() -> None:
    one, again = (make_sbom(PROJECT, LOCK, wheel_sha256="0" * 64, made_at=MADE) for _ in range(2))
    assert one == again
    other = make_sbom(PROJECT, LOCK, wheel_sha256="1" * 64, made_at=MADE)
    assert json.loads(one)["serialNumber"] != json.loads(other)["serialNumber"]


def test_what_is_needed_and_not_locked_is_refused() -> None:
    with pytest.raises(ValueError, match="uvloop is needed by the project"):
        packages(PROJECT, LOCK.replace("uvloop==", "uvloop-not=="))


def test_a_document_that_is_none_is_told() -> None:
    assert problems_of('{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{}]}')
