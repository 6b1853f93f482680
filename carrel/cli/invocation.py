"""How the command that runs can be typed again in another terminal of the same folder, for hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

__all__ = ["own_command"]

_NAME: Final = "carrel"


def own_command() -> str:
    """``carrel`` where the shell finds this installation's; else the path of its script, or of its Python."""
    python = Path(sys.executable)
    given = Path(sys.argv[0])
    # As `python -m carrel.cli` there is no script in the arguments, but one beside the interpreter.
    script = given if given.name == _NAME else python.parent / _NAME
    if not script.is_file():
        return f"{_typed(python)} -m carrel.cli"
    found = shutil.which(_NAME)
    if found is not None and Path(found).samefile(script):
        return _NAME
    return _typed(script)


def _typed(path: Path) -> str:
    # Not resolved: the interpreter of a virtual environment is a link to one that lacks its packages.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 -- Path.absolute() keeps "..", and resolve() follows links
    here = Path.cwd()
    if not absolute.is_relative_to(here):
        return shlex.quote(str(absolute))
    text = str(absolute.relative_to(here))
    return shlex.quote(text if os.sep in text else f".{os.sep}{text}")
