"""Builds overlays and sets of components with kustomize into plain objects. Nothing is applied anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["FOLDER", "KustomizeError", "build", "combinations", "combine", "kustomize_command"]

FOLDER: Final = Path(__file__).resolve().parents[2] / "k8s"
_BUILD_S: Final = 60.0

_TOGETHER: Final = ("pod-monitor", "otlp", "keda", "models", "mcp", "sandbox-runtime", "internal-clients")

# What an operator may add to the overlay for production, or take in place of something in it: (added, taken away).
_VARIANTS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (("stores-by-namespace",), ("stores-by-cidr",)),
    (("pod-monitor",), ()),
    (("otlp",), ()),
    (("keda",), ()),
    (("models",), ()),
    (("models-in-cluster",), ()),
    (("mcp",), ()),
    (("sandbox-runtime",), ()),
    (("internal-clients",), ()),
    (("oidc",), ()),
    (("encryption",), ()),
    (("gateway-api",), ("ingress-nginx",)),
    ((), ("cert-manager",)),
    (("mesh",), ("mtls", "cert-manager", "doctor-mtls", "operator-mtls")),
    ((), ("telemetry",)),
    ((), ("migration", "doctor", "doctor-mtls", "operator", "operator-mtls")),
    ((*_TOGETHER, "oidc", "encryption"), ()),
)
# A component works on what those before it brought; images comes last, since it names all images.
_LAST: Final = "images"


class KustomizeError(Exception):
    """kustomize refused; the message is its own."""


def kustomize_command() -> list[str] | None:
    """How kustomize 5 is called here; None where there is neither kubectl nor kustomize."""
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    return None


def build(folder: Path) -> list[dict[str, Any]]:
    """The objects that applying a folder would send.

    Raises:
        KustomizeError: It can't be built, or there is nothing here to build it with.
    """
    command = kustomize_command()
    if command is None:
        raise KustomizeError("neither kubectl nor kustomize is here: install kubectl 1.29 or newer")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=_BUILD_S, check=False)
    if done.returncode:
        raise KustomizeError(done.stderr.strip())
    return [found for found in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if found]


def combinations(overlay: str = "production") -> Iterator[tuple[str, list[str]]]:
    """Names and components of what an operator may make of the overlay, the overlay itself first."""
    listed = _components(overlay)
    yield overlay, listed
    for added, removed in _VARIANTS:
        name = " ".join([overlay, *(f"+{part}" for part in added), *(f"-{part}" for part in removed)])
        components = [part for part in listed if part not in removed and part != _LAST]
        yield name, [*components, *added, _LAST]


def combine(overlay: str, components: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of an overlay with these components in place of its own. ``parameters`` are the overlay's.

    Raises:
        KustomizeError: See ``build``.
    """
    own = FOLDER / "overlays" / overlay
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        places = [own / part if (own / part).is_dir() else FOLDER / "components" / part for part in components]
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": _read(own)["namespace"],
            "resources": [_relative(FOLDER / "base", folder)],
            "components": [_relative(place, folder) for place in places],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return build(folder)


def _components(overlay: str) -> list[str]:
    return [Path(part).name for part in _read(FOLDER / "overlays" / overlay)["components"]]


def _read(folder: Path) -> dict[str, Any]:
    content = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _relative(place: Path, start: Path) -> str:
    return os.path.relpath(place, start)


def all_components() -> Iterable[str]:
    """Every component there is."""
    return sorted(path.name for path in (FOLDER / "components").iterdir() if path.is_dir())
