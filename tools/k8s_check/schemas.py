"""The built objects against Kubernetes' own schemas, unknown fields refused, for the oldest and the newest version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Final

import kubernetes_validate  # type: ignore[import-untyped]

from tools.k8s_check.objects import Object

__all__ = ["CUSTOM", "VERSIONS", "schema_problems"]

# The range that k8s/README.md states. preStop's sleep needs the first.
VERSIONS: Final = ("1.30", "1.37")

# Kinds of other projects, which have no schema among Kubernetes' own: what is used of them is in k8s/README.md.
CUSTOM: Final = frozenset(
    {
        ("cert-manager.io/v1", "Certificate"),
        ("cert-manager.io/v1", "Issuer"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
    }
)


def schema_problems(documents: list[Object], version: str) -> Iterator[str]:
    """What a version of Kubernetes would refuse, or not know."""
    return (problem for found in documents for problem in _of_one(json.dumps(found), version))


# Most objects of two builds are alike, and each takes 40 ms.
@cache
def _of_one(text: str, version: str) -> tuple[str, ...]:
    found = json.loads(text)
    name = f"{found['kind']} {found['metadata']['name']}"
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        if (found["apiVersion"], found["kind"]) not in CUSTOM:
            return (f"Kubernetes {version} has no {found['kind']} of {found['apiVersion']}",)
    except kubernetes_validate.ValidationError as error:
        return (f"Kubernetes {version} refuses {name}: {'.'.join(map(str, error.path))}: {error.message}",)
    return ()
