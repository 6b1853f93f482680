"""The releases that are kept under releases/: which there are, and which of them was before this checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from carrel import __version__

__all__ = ["all_descriptor_sets", "all_wheels", "kept_wheels", "number_of", "version_of"]

_SET: Final = ".binpb.gz"


def number_of(version: str) -> tuple[int, ...]:
    """A version to compare with others.

    Raises:
        ValueError: It is not MAJOR.MINOR.PATCH.
    """
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isdigit() and str(int(part)) == part for part in parts):
        raise ValueError(f"{version} is no version: write MAJOR.MINOR.PATCH, as in semver.org")
    return tuple(map(int, parts))


def version_of(path: Path) -> str:
    """The version of a wheel or a descriptor set, by its name."""
    return path.name.split("-")[1].removesuffix(_SET)


def all_wheels(folder: Path) -> list[Path]:
    """Of every release, the oldest first."""
    return sorted(folder.glob("carrel-*.whl"), key=_number)


def all_descriptor_sets(folder: Path) -> list[Path]:
    """Of every release, the oldest first."""
    return sorted(folder.glob(f"carrel-*{_SET}"), key=_number)


def kept_wheels(folder: Path, before: str = __version__) -> list[Path]:
    """Of every release before a version, the oldest first; of the first one if there is none before it."""
    every = all_wheels(folder)
    return [path for path in every if _number(path) < number_of(before)] or every[:1]


def _number(path: Path) -> tuple[int, ...]:
    return number_of(version_of(path))
