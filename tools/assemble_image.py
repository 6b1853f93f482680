"""Lays out what the images hold, inside the build (see Dockerfile): our own modules, and a system that builds nothing.

    assemble_image.py apps TABLE WHEEL TARGET   one tree for each deployable of the table, from the wheel's folder
    assemble_image.py system                    removes from this system what no image is to hold; compiles the library
    assemble_image.py packages FOLDER           removes packages' own tests from FOLDER, and compiles the rest

Standard library only: it runs before anything is installed. Compiled files do not look at their source's time
(unchecked-hash), so that a read-only root starts as quickly as any, and two builds have the same bytes.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_COMMAND_LINE: Final = "carrel.cli"
_OF_BUILDS: Final = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")
_OF_THE_LIBRARY: Final = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data")
_PROGRAMS: Final = ("pip*", "wheel*", "idle*", "pydoc*", "2to3*", "easy_install*", "*-config", "py3compile", "py3clean")
_USELESS: Final = (
    *("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/debconf", "/var/cache/ldconfig", "/var/log", "/root/.cache"),
    *("/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale", "/usr/share/python-wheels"),
)


def apps(listed: Path, wheel: Path, target: Path) -> None:
    """One tree for each deployable: the packages that it runs and carries, and the distribution's metadata."""
    table = tomllib.loads(listed.read_text(encoding="utf-8"))
    shared = table.pop("all")
    for name, row in table.items():
        packages = [*shared["carries"], *row["packages"], *row.get("carries", ())]
        for package in packages:
            _copy(wheel, target / name, package)
        if _COMMAND_LINE not in packages:
            shutil.rmtree(target / name / _COMMAND_LINE.replace(".", "/"))
        # For authors' tests; it starts services that this image does not have.
        shutil.rmtree(target / name / "carrel" / "testing", ignore_errors=True)
        for metadata in wheel.glob("*.dist-info"):
            shutil.copytree(metadata, target / name / metadata.name)
        compiled([target / name])


def _copy(wheel: Path, target: Path, package: str) -> None:
    *parents, last = package.split(".")
    source = wheel
    for parent in parents:
        source, target = source / parent, target / parent
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "__init__.py", target)
    shutil.copytree(source / last, target / last, dirs_exist_ok=True)


def system() -> None:
    """Remove pip, the standard library's tests, documents and caches from this system; compile what is left."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    library = Path(sysconfig.get_path("stdlib"))
    # Debian's Python keeps its packages beside the library.
    folders |= {library.parent / "python3" / "dist-packages"}
    for folder in folders:
        _remove(path for name in _OF_BUILDS for path in (*folder.glob(name), *folder.glob(f"{name}-*")))
    _remove(library / name for name in _OF_THE_LIBRARY)
    _remove(path for base in ("/usr/local/bin", "/usr/bin") for name in _PROGRAMS for path in Path(base).glob(name))
    for name in _USELESS:
        _remove(Path(name).glob("*"))
    compiled(folders)


def packages(folder: Path) -> None:
    """Remove packages' own tests and stub files; compile the rest."""
    _remove(sorted(path for path in folder.rglob("tests") if path.is_dir() and not _is_needed(path, folder)))
    _remove(folder.rglob("*.pyi"))
    compiled([folder])


def _is_needed(path: Path, folder: Path) -> bool:
    # A package of that very name at the top is somebody's own.
    return path.parent == folder


def compiled(folders: Iterable[Path]) -> None:
    """Compile every module below the folders, in place of what was compiled before.

    Raises:
        SystemExit: One cannot be compiled.
    """
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder in folders:
        _remove(sorted(folder.rglob("__pycache__")))
        if folder.is_dir() and not compileall.compile_dir(
            folder, maxlevels=40, quiet=1, force=True, invalidation_mode=mode, workers=0
        ):
            raise SystemExit(f"{folder} has modules that cannot be compiled")


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["apps", listed, wheel, target]:
            apps(Path(listed), Path(wheel), Path(target))
        case ["system"]:
            system()
        case ["packages", folder]:
            packages(Path(folder))
        case _:
            raise SystemExit(__doc__)
