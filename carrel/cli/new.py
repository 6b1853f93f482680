"""``carrel new``: a small project of one's own with an agent, a tool, a test, an image and an overlay.

Nothing is installed, nothing is asked of a network, and nothing that is there is overwritten. The files are in
``template``: each ends in ``.tmpl``, ``package`` stands for the package's name, and ``dot.`` for a leading dot.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

__all__ = ["add_new", "make_project", "package_of"]

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_MAX_NAME: Final = 64
_PLACEHOLDER: Final = re.compile(r"\{\{ (\w+) \}\}")
# Taken in a project, whether or not they can be imported here.
_OURS: Final = frozenset({"carrel", "services", "servicekit", "gateway", "examples", "tests", "deploy", "requirements"})


def add_new(app: typer.Typer) -> None:
    """Add the command."""
    _ = app.command("new")(new)


def new(
    name: Annotated[str, typer.Argument(help="The project's name, such as my-agents.", metavar="NAME")],
    path: Annotated[
        Path | None, typer.Option("--path", help="The folder to make; by default NAME, here.", metavar="FOLDER")
    ] = None,
) -> None:
    """Make a small project: an agent, a tool, a test, a Dockerfile and an overlay for Kubernetes.

    Ends with 0 when it is made, 2 when the name or the folder will not do, 1 when it cannot be written.
    """
    from carrel.cli.invocation import own_command

    try:
        package_of(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    folder = path or Path(name)
    if os.path.lexists(folder) and not _is_empty(folder):
        raise typer.BadParameter(
            f"{folder} is there already, and nothing in it is overwritten; give another with --path",
            param_hint="--path",
        )
    try:
        made = make_project(name, folder)
    except OSError as error:
        typer.echo(f"carrel: {folder} cannot be written: {error.strerror or error}; give another with --path", err=True)
        raise typer.Exit(1) from None
    for file in made:
        typer.echo(f"  {folder / file}")
    typer.echo(f"{name} is made. Start it:  cd {shlex.quote(str(folder))} && make run{_python()}")
    typer.echo(f"Ask it, in another terminal there:  {own_command(folder)} run 'How long is this text?' --agent text")


def package_of(name: str) -> str:
    """The Python package of a project of this name.

    Raises:
        ValueError: The name will not do; the message says why, and what would.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:_MAX_NAME]!r} is no name for a project: 1 to {_MAX_NAME} characters of a-z and 0-9, beginning "
            "with a letter, words joined by '-' or '_', as in my-agents"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise ValueError(f"{package} is a word of Python's and can't name a package; try {package}-agents")
    if package in _OURS or package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise ValueError(f"there is a module {package} already, which yours would hide; try {name}-agents")
    return package


def make_project(name: str, folder: Path) -> list[Path]:
    """Make the project; its files, relative to ``folder``, which is missing or empty. All of it is made, or nothing.

    Raises:
        ValueError: See ``package_of``.
        OSError: It can't be written, or the folder has something in it.
    """
    import carrel

    package = package_of(name)
    values = {"name": name, "package": package, "version": carrel.__version__}
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    # Beside its place, so that the last step is one rename: it fails on a folder that has something in it by then.
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
        project = Path(aside) / "project"
        for source, place in _files(resources.files("carrel.cli") / "template", Path()):
            target = project / _renamed(place, package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_filled(source.read_text(encoding="utf-8"), values), encoding="utf-8")
            made.append(target.relative_to(project))
        project.rename(folder)
    return sorted(made)


def _files(folder: Traversable, place: Path) -> Iterator[tuple[Traversable, Path]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, place / entry.name)
        elif entry.name.endswith(".tmpl"):
            yield entry, place / entry.name.removesuffix(".tmpl")


def _renamed(place: Path, package: str) -> Path:
    parts = [package if part == "package" else part for part in place.parts]
    return Path(*parts[:-1], re.sub(r"^dot\.", ".", parts[-1]))


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _python() -> str:
    """What `make` must be told where `python` is not the one that has Carrel."""
    found, ours = shutil.which("python"), Path(sys.executable)
    # An environment has its interpreter under several names, all links to one that lacks its packages.
    same = found is not None and Path(found).parent == ours.parent and Path(found).samefile(ours)
    return "" if same else f" PYTHON={shlex.quote(sys.executable)}"


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
