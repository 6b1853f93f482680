"""The software bill of materials of a release: what is installed with Carrel and its extras, as CycloneDX JSON.

Versions are those of constraints.txt; what needs what, and under which licence, is what the installed packages say. The
tools of developers (extra ``dev``) are left out: no release needs them. The same input gives the same bytes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any, Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Package", "make_sbom", "packages", "problems_of", "versions_of"]

_PIN: Final = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_NAMESPACE: Final = uuid.UUID("5f0b1f0c-6a55-5a8e-9a0f-6d2b7f3c4e11")


@dataclass(slots=True)
class Package:
    """One package: its licence as it says itself, and what it needs of the others."""

    name: str
    version: str
    licence: str
    needs: set[str] = field(default_factory=set)


def versions_of(constraints: str) -> dict[str, str]:
    """Versions by canonical name, as the lock has them."""
    return {canonicalize_name(name): version for name, version in _PIN.findall(constraints)}


def packages(project: Mapping[str, Any], constraints: str) -> dict[str, Package]:
    """What is installed with the project, by canonical name; the project itself is "".

    Args:
        project: The table ``project`` of pyproject.toml.
        constraints: The lock.

    Raises:
        ValueError: Something that is needed is not locked, or not installed here.
    """
    locked = versions_of(constraints)
    wanted = [*project["dependencies"]]
    wanted += [
        one for extra, those in project.get("optional-dependencies", {}).items() if extra != "dev" for one in those
    ]
    found = {"": Package("", "", "")}
    waiting = [("", Requirement(text)) for text in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        by, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found[by].needs.add(name)
        if name not in found:
            if name not in locked:
                raise ValueError(f"{name} is needed by {by or 'the project'}, and constraints.txt does not lock it")
            found[name] = Package(name, locked[name], _licence_of(name))
        key = (name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += [(name, one) for one in _needed(name, requirement.extras)]
    return found


def _needed(name: str, extras: set[str]) -> Iterator[Requirement]:
    for text in _installed(name).requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            requirement.marker = None
            yield requirement


def _installed(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ValueError(f"{name} is not installed here: run `make setup`") from None


def _licence_of(name: str) -> str:
    about: Any = _installed(name).metadata
    told = about.get("License-Expression") or ""
    classified = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    # Some put the licence's whole text here, and its name in the first line.
    short = (about.get("License") or "").partition("\n")[0].strip()
    return told or (short if len(short) < 60 else "") or " AND ".join(classified)


def make_sbom(
    project: Mapping[str, Any], constraints: str, *, wheel_sha256: str, made_at: datetime, licence: str = "Apache-2.0"
) -> str:
    """The document.

    Args:
        project, constraints: As ``packages``.
        wheel_sha256: What it is the bill of; part of its serial number.
        made_at: The commit's time.
        licence: The project's own.

    Raises:
        ValueError: As ``packages``; or the document does not fit CycloneDX's schema.
    """
    licences = LicenseFactory()
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, f"{project['name']} {project['version']} {wheel_sha256}"))
    bom.metadata.timestamp = made_at
    components: dict[str, Component] = {}
    for name, package in sorted(packages(project, constraints).items()):
        own = not name
        shown, version = (str(project["name"]), str(project["version"])) if own else (package.name, package.version)
        text = licence if own else package.licence
        components[name] = Component(
            type=ComponentType.APPLICATION if own else ComponentType.LIBRARY,
            name=shown,
            version=version,
            bom_ref=f"pkg:pypi/{shown}@{version}",
            purl=PackageURL("pypi", None, shown, version),
            licenses=[licences.make_from_string(text)] if text else [],
        )
    bom.metadata.component = components.pop("")
    for component in components.values():
        bom.components.add(component)
    known = {**components, "": bom.metadata.component}
    for name, package in packages(project, constraints).items():
        bom.register_dependency(known[name], [known[need] for need in sorted(package.needs)])
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    if problem := problems_of(text):
        raise ValueError(f"the SBOM is no CycloneDX document: {problem}")
    return text


def problems_of(text: str) -> str:
    """Why a text is no CycloneDX document; empty if it is one."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return "" if error is None else str(error)[:500]
