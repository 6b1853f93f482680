"""Checks every overlay and set of components, or the folder of an operator's own overlay.

python -m tools.k8s_check [--checkov PATH] [FOLDER …]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tools.k8s_check.build import FOLDER, KustomizeError, all_components, build, combinations, combine
from tools.k8s_check.checkov import checkov_problems, failed_checks, reasons
from tools.k8s_check.objects import Object
from tools.k8s_check.rules import problems
from tools.k8s_check.schemas import VERSIONS, schema_problems


def main() -> int:
    """The exit code: 0 when nothing is wrong, 1 otherwise."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="overlays; all of ours by default")
    arguments.add_argument("--checkov", type=Path, help="the program; without it that part is left out, and said so")
    given = arguments.parse_args()
    try:
        builds = [(str(folder), build(folder)) for folder in given.folders] or list(_ours())
    except KustomizeError as error:
        say(f"not built: {error}")
        return 1
    ours = not given.folders
    wrong = sum(_check(name, documents, ours) for name, documents in builds)
    if given.checkov is None:
        say("checkov: left out, since --checkov names no program")
    else:
        wrong += _checkov(given.checkov, builds, ours)
    say(f"{len(builds)} builds against Kubernetes {' and '.join(VERSIONS)}: {wrong} problems")
    return 1 if wrong else 0


def _ours() -> Iterator[tuple[str, list[Object]]]:
    used = {"embedded-stores"}
    yield "local", build(FOLDER / "overlays" / "local")
    for name, components in combinations():
        used |= set(components)
        yield name, combine("production", components)
    if unused := set(all_components()) - used:
        raise KustomizeError(f"no combination has the component {', '.join(sorted(unused))}: name it in build.py")


def _check(name: str, documents: list[Object], ours: bool) -> int:
    began = time.monotonic()
    found = [*problems(documents, ours=ours)]
    for version in VERSIONS:
        found += schema_problems(documents, version)
    say(f"{'ok  ' if not found else 'FAIL'} {name}: {len(documents)} objects, {time.monotonic() - began:.1f} s")
    for problem in found:
        say(f"     - {problem}")
    return len(found)


def _checkov(program: Path, builds: list[tuple[str, list[Object]]], ours: bool) -> int:
    """Over all objects of all builds, those that are alike once: each start of the program takes ten seconds."""
    alike = {repr(found): found for _, documents in builds for found in documents}
    try:
        found = list(checkov_problems(failed_checks(program, list(alike.values())), reasons(), ours=ours))
    except (RuntimeError, OSError) as error:
        found = [str(error)]
    say(f"{'ok  ' if not found else 'FAIL'} checkov: {len(alike)} different objects, {len(reasons())} checks excused")
    for problem in found:
        say(f"     - {problem}")
    return len(found)


def say(text: str) -> None:
    """One line of the report."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
