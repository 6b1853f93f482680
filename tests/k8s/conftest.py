"""The built overlays, once for all tests here. Without kustomize the tests are skipped, or fail: see ``needs``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import pytest

from tests.support.needs import unavailable
from tools.k8s_check.build import FOLDER, build, combine, kustomize_command
from tools.k8s_check.objects import Object

Build: TypeAlias = Callable[..., list[Object]]

EVERYTHING = (
    *("otlp", "keda", "models", "mcp", "sandbox-runtime", "internal-clients", "pod-monitor", "oidc", "encryption"),
    "images",
)


@cache
def _built(overlay: str, more: tuple[str, ...]) -> list[Object]:
    if kustomize_command() is None:
        raise unavailable("kubectl", "neither kubectl nor kustomize is here")
    if overlay == "local" and not more:
        return build(FOLDER / "overlays" / overlay)
    return combine(overlay, [*_listed(overlay), *(more or ("images",))])


def _listed(overlay: str) -> list[str]:
    import yaml

    content = yaml.safe_load((FOLDER / "overlays" / overlay / "kustomization.yaml").read_text(encoding="utf-8"))
    return [part.rpartition("/")[2] for part in content["components"] if not part.endswith("images")]


@pytest.fixture(scope="session")
def built() -> Build:
    """`built("production", *components)`: a copy of what is applied, that a test may break."""
    return lambda overlay="production", *more: copy.deepcopy(_built(overlay, more))
