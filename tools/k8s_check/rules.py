"""All rules over one build. What each family looks at is said in its module."""

from __future__ import annotations

from collections.abc import Iterator

from tools.k8s_check.objects import Manifests, Object
from tools.k8s_check.rules_network import network_problems, services_problems
from tools.k8s_check.rules_pods import pod_problems, scale_problems
from tools.k8s_check.rules_settings import image_problems, reference_problems, settings_problems

__all__ = ["problems"]


def problems(documents: list[Object], *, ours: bool = True) -> Iterator[str]:
    """What is wrong with a build, the most basic first; rules that need settings leave out those that can't be read.

    Args:
        documents: The objects.
        ours: Whether it is one of this repository's overlays, whose images have one registry and one tag.
    """
    manifests = Manifests(documents)
    yield from reference_problems(manifests)
    if ours:
        yield from image_problems(manifests)
    yield from network_problems(manifests)
    yield from services_problems(manifests)
    yield from scale_problems(manifests)
    yield from settings_problems(manifests)
    yield from pod_problems(manifests)
