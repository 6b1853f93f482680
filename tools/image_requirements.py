"""Writes images/requirements/*.txt: what pip installs into each image, with the versions and hashes of constraints.txt.

    python -m tools.image_requirements            # write them
    python -m tools.image_requirements --check    # exit 1 and name each file that differs

Nobody keeps these lists by hand: an image gets what its modules import (images/deployables.toml names them, and a few
extras) and what that needs in turn by its metadata. ``common.txt`` is what every image has, so that they share a layer.
It needs the environment of `make setup`, whose packages' metadata it reads; it resolves no versions.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
DEPLOYABLES: Final = ROOT / "images" / "deployables.toml"
FOLDER: Final = ROOT / "images" / "requirements"
COMMON, BUILD = "common", "build"
_OURS: Final = ("carrel", "servicekit", "services", "gateway", "examples")
_HEADER: Final = (
    "# Made by `make lock` from constraints.txt and the imports of {what}; see tools/image_requirements.py.\n"
)
# The images' Python and system, whatever the machine that writes the lists has.
_TARGET: Final = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "extra": "",
}


@dataclass(frozen=True)
class Deployable:
    """One image: ``packages`` of ours that it runs, those that it only carries, and the extras that it has."""

    name: str
    packages: tuple[str, ...]
    carries: tuple[str, ...]
    extras: tuple[str, ...]


def deployables(path: Path = DEPLOYABLES) -> list[Deployable]:
    """Those of the file, each with what all have."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = table.pop("all")
    return [
        Deployable(
            name,
            tuple(row["packages"]),
            (*shared["carries"], *row.get("carries", ())),
            (*shared["extras"], *row.get("extras", ())),
        )
        for name, row in table.items()
    ]


# What is installed, and what it needs.


@dataclass
class Installed:
    """The environment's distributions, by name and by the modules that they bring."""

    by_name: dict[str, Distribution] = field(default_factory=dict)
    by_top: dict[str, set[str]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    @cache
    def here(cls) -> Installed:
        """Those of this environment, read once: their lists of files are long."""
        found = cls()
        for each in distributions():
            name = canonicalize_name(each.metadata["Name"])
            if name in found.by_name:
                continue
            found.by_name[name] = each
            files = each.files or ()
            found.files[name] = [str(file) for file in files]
            for file in files:
                if file.suffix in {".py", ".so"} and not file.parts[0].startswith((".", "_")):
                    found.by_top.setdefault(file.parts[0].partition(".")[0], set()).add(name)
        return found

    def owner_of(self, module: str) -> set[str]:
        """Who brings an imported module; nobody, if it is the standard library's or ours."""
        top = module.partition(".")[0]
        owners = self.by_top.get(top, set()) - {"carrel"}
        if len(owners) < 2:
            return owners
        # A namespace of several: the longest part of the name that is a file or a folder of one.
        parts = module.split(".")
        for length in range(len(parts), 1, -1):
            found = {name for name in owners if self._has(name, "/".join(parts[:length]))}
            if found:
                return found
        return set()

    def _has(self, name: str, path: str) -> bool:
        starts = (f"{path}/", f"{path}.py", f"{path}.cpython", f"{path}.abi3")
        return any(file.startswith(starts) for file in self.files[name])

    def needs(self, name: str, extras: Iterable[str]) -> Iterator[tuple[str, frozenset[str]]]:
        """(name, extras) of what a distribution with these extras needs in the images."""
        distribution = self.by_name.get(name)
        for text in (distribution.requires or ()) if distribution else ():
            requirement = Requirement(text)
            environments = [{**_TARGET, "extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def closure(installed: Installed, roots: Iterable[tuple[str, frozenset[str]]]) -> set[str]:
    """The roots and all that they need, by name."""
    waiting, seen = list(roots), set[tuple[str, frozenset[str]]]()
    while waiting:
        item = waiting.pop()
        if item not in seen:
            seen.add(item)
            waiting += installed.needs(*item)
    return {name for name, _ in seen}


# What our modules import.


def imports_of(deployable: Deployable, root: Path = ROOT) -> set[str]:
    """Every module of others that the deployable's packages, and those of ours that they lead to, import.

    Of a package that is only carried, what is led to counts, and its settings.
    """
    waiting = [path for name in deployable.packages for path in sorted((root / name.replace(".", "/")).rglob("*.py"))]
    waiting += [path for name in deployable.carries for path in _files(f"{name}.config", root)]
    seen, found = set[Path](), set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imported(path):
            if module.partition(".")[0] in _OURS:
                waiting += _files(module, root)
            else:
                found.add(module)
    return found


@cache
def _imported(path: Path) -> frozenset[str]:
    """Once per file, since most images have most of them."""
    found = set[str]()
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but what stands under ``if TYPE_CHECKING``, which never runs."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _files(module: str, root: Path) -> Iterator[Path]:
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        yield from (path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file())


# The lists.


def pins(constraints: Path) -> dict[str, str]:
    """The lines of each distribution in constraints.txt, hashes and all, by name."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + constraints.read_text(encoding="utf-8")):
        if (match := re.match(r"([A-Za-z0-9._-]+)==", block)) is not None:
            found[canonicalize_name(match[1])] = block.rstrip("\n") + "\n"
    return found


def lists(root: Path = ROOT) -> dict[str, str]:
    """The texts of all the files, by the deployable's name, ``common`` or ``build``.

    Raises:
        LookupError: constraints.txt lacks something that an image needs.
    """
    installed, pinned = Installed.here(), pins(root / "constraints.txt")
    wanted: dict[str, set[str]] = {}
    for deployable in deployables():
        owners = {name for module in imports_of(deployable) for name in installed.owner_of(module)}
        roots = [(name, frozenset[str]()) for name in owners]
        wanted[deployable.name] = closure(installed, roots + _of_extras(root, deployable.extras))
    common = set[str].intersection(*wanted.values())
    texts = {COMMON: _text(common, pinned, "all images")}
    for name, names in wanted.items():
        texts[name] = _text(names - common, pinned, name)
    texts[BUILD] = _text(closure(installed, [("hatchling", frozenset())]), pinned, "nothing but the wheel's build")
    return texts


def _of_extras(root: Path, extras: Iterable[str]) -> list[tuple[str, frozenset[str]]]:
    table: Mapping[str, list[str]] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    requirements = [Requirement(text) for extra in extras for text in table[extra]]
    return [(canonicalize_name(each.name), frozenset(each.extras)) for each in requirements]


def _text(names: Iterable[str], pinned: Mapping[str, str], what: str) -> str:
    if missing := sorted(set(names) - pinned.keys()):
        raise LookupError(f"constraints.txt lacks {', '.join(missing)}, which {what} needs: make lock")
    return _HEADER.format(what=what) + "".join(pinned[name] for name in sorted(names))


def main(argv: list[str] | None = None) -> int:
    """Write the lists, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m tools.image_requirements", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a list is out of date")
    check = parser.parse_args(argv).check
    different = 0
    for name, text in lists().items():
        path = FOLDER / f"{name}.txt"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        different += 1
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run `make lock`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
