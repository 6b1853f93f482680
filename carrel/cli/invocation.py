"""How the command that runs can be typed again in another terminal, for hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

__all__ = ["own_command"]

_NAME: Final = "carrel"


def own_command(there: Path | None = None) -> str:
    """``carrel`` where the shell finds this installation's; else the path of its script, or of its Python.

    Args:
        there: The folder in which it will be typed; by default this one.
    """
    folder = Path.cwd() if there is None else there.absolute()
    python = Path(sys.executable)
    given = Path(sys.argv[0])
    # As `python -m carrel.cli` there is no script in the arguments, but one beside the interpreter.
    script = given if given.name == _NAME else python.parent / _NAME
    if not script.is_file():
        return f"{_typed(python, folder)} -m carrel.cli"
    found = shutil.which(_NAME)
    if found is not None and Path(found).samefile(script):
        return _NAME
    return _typed(script, folder)


def _typed(path: Path, folder: Path) -> str:
    # Not resolved: the interpreter of a virtual environment is a link to one that lacks its packages.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 -- Path.absolute() keeps "..", and resolve() follows links
    if not absolute.is_relative_to(folder):
        return shlex.quote(str(absolute))
    text = str(absolute.relative_to(folder))
    return shlex.quote(text if os.sep in text else f".{os.sep}{text}")
