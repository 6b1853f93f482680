"""Settings in manifests are settings of the code, their files are mounted, and what they ask for is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel

from carrel.errors import StartupError
from servicekit.settings import load_settings
from services.agent_instance.workers.plant import check_memory
from tools.k8s_check.code import SETTINGS, STUBBED, TASKS, load
from tools.k8s_check.objects import Manifests, Workload, quantity

__all__ = ["image_problems", "reference_problems", "settings_problems"]

_MIB: Final = 2**20
# Measured: docs/operations.md.
_GATEWAY_BASE: Final = 100 * _MIB
_CONNECTION_BYTES: Final = 8 * 1024
_MOUNTED: Final = PurePosixPath("/run/carrel")
_STATE: Final = PurePosixPath("/var/lib/carrel")
_IMAGE: Final = re.compile(r"(?P<registry>.+)/carrel-(?P<name>[a-z-]+):(?P<tag>[^:/@]+)")
_PLACEHOLDER: Final = "parameter"


def settings_problems(manifests: Manifests) -> Iterator[str]:
    """Each service and Job reads its settings as it would in its pod; what it would refuse is a problem."""
    for workload in manifests.workloads:
        environment = manifests.environment(workload)
        for settings in _loaded(workload, environment):
            if isinstance(settings, str):
                yield f"{workload}: {settings}"
                continue
            paths = [*_paths(settings), *_stubbed(environment)]
            yield from (f"{workload}: {problem}" for problem in _files(workload, settings, paths))
            yield from (f"{workload}: {problem}" for problem in _fits(workload, settings))


def _loaded(workload: Workload, environment: Mapping[str, str]) -> Iterator[Any]:
    try:
        if workload.app in SETTINGS:
            yield load(workload.app, environment)
        for service, cls in TASKS.get(workload.app, ()):
            yield load_settings(cls, service, environment)
    except StartupError as error:
        yield str(error)


def _stubbed(environment: Mapping[str, str]) -> Iterator[tuple[str, PurePosixPath]]:
    return ((name, PurePosixPath(environment[name])) for name in STUBBED if environment.get(name, "").startswith("/"))


def _files(workload: Workload, settings: BaseModel, paths: Iterable[tuple[str, PurePosixPath]]) -> Iterator[str]:
    mounts = {PurePosixPath(mount["mountPath"]): mount["name"] for mount in workload.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
    claimed = {claim["metadata"]["name"] for claim in workload.spec.get("volumeClaimTemplates", ())}
    for name, path in paths:
        # Keys that this service does not have, and folders that it does not use, are defaults below the state folder.
        if path.is_relative_to(_STATE) and name not in settings.model_fields_set:
            continue
        place = next((mount for mount in mounts if path.is_relative_to(mount)), None)
        if place is None:
            if path.is_relative_to(_MOUNTED):
                yield f"{name} is {path}, and nothing is mounted there"
            continue
        if mounts[place] not in volumes.keys() | claimed:
            yield f"{name} is {path}, on the volume {mounts[place]} that is not there"
            continue
        given = _items(volumes.get(mounts[place], {}))
        if given and str(path.relative_to(place)) not in given:
            yield f"{name} is {path}, and the volume {mounts[place]} has {', '.join(sorted(given))}"


def _paths(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, PurePosixPath]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{name}.")
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                yield f"{prefix}{name}", PurePosixPath(path)


def _items(volume: Mapping[str, Any]) -> set[str]:
    sources = volume["projected"]["sources"] if "projected" in volume else [volume]
    return {item["path"] for source in sources for item in source.get("secret", {}).get("items", ())}


def _fits(workload: Workload, settings: Any) -> Iterator[str]:
    limit = workload.container["resources"]["limits"].get("memory")
    if limit is None:
        return  # told by the rules for pods
    memory = quantity(limit)
    if workload.app == "agent-instance":
        try:
            check_memory(settings, int(memory))
        except StartupError as error:
            yield str(error)
        workers = settings.max_workers + settings.workers.max_children
        needed = workers * settings.workers.temp_mb * _MIB
        volume = next(v for v in workload.pod["volumes"] if v["name"] == "tmp")
        if quantity(volume["emptyDir"]["sizeLimit"]) < needed:
            yield f"{workers} workers may write {needed} bytes below /tmp, more than its size limit"
        if settings.max_workers_per_user > settings.max_workers:
            yield "one user may have more workers than there are"
    if workload.app == "gateway":
        needed = settings.rings_bytes + settings.limits.connections * _CONNECTION_BYTES + _GATEWAY_BASE
        if memory < needed:
            yield f"rings and {settings.limits.connections} connections may need {needed} bytes, more than its limit"


def reference_problems(manifests: Manifests) -> Iterator[str]:
    """Nothing names what is not there, and no placeholder is left."""
    (namespace,) = (found["metadata"]["name"] for found in manifests.of("Namespace"))
    for found in manifests.documents:
        name = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] != "Namespace" and found["metadata"].get("namespace") != namespace:
            yield f"{name} is not in the namespace {namespace}"
        if _PLACEHOLDER in _texts(found):
            yield f"{name} has a placeholder that no component replaced"
    for workload in manifests.workloads:
        for source in workload.container.get("envFrom", ()):
            if manifests.named("ConfigMap", source["configMapRef"]["name"]) is None:
                yield f"{workload} takes settings of {source['configMapRef']['name']}, which is not there"
        if workload.container["image"].startswith("registry/") or workload.container["image"].endswith(":tag"):
            yield f"{workload} has the image {workload.container['image']}: component images must be the last"


def image_problems(manifests: Manifests) -> Iterator[str]:
    """One registry and one tag for all images, as our overlays have it; an operator may name digests and others."""
    images = set()
    for workload in manifests.workloads:
        match = _IMAGE.fullmatch(workload.container["image"])
        if match is None:
            yield f"{workload} has the image {workload.container['image']}"
            continue
        images.add((match["registry"], match["tag"]))
        if match["name"] != (workload.app if workload.serves else "cli"):
            yield f"{workload} has the image of {match['name']}"
    if len(images) > 1:
        yield f"images come from {sorted(images)}: component images must name all of them"


def _texts(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return {text for part in value.values() for text in _texts(part)}
    if isinstance(value, list):
        return {text for part in value for text in _texts(part)}
    return {str(value)}
