"""Where traces and price tables may be read from, and nothing else may be.

Two roots: the folder in ``LLM_COSTS_DATA_DIR`` (read once, at the first use), and the samples in this package, named
``sample:<file>``. This module opens files and bounds their size; what is inside them it does not know.
"""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from carrel.errors import TooLargeError
from examples.llm_costs.errors import DataPathError

__all__ = ["DEFAULT_TRACE", "MAX_FILE_BYTES", "SAMPLE_PREFIX", "Settings", "read_text", "settings"]

SAMPLE_PREFIX: Final = "sample:"
DEFAULT_TRACE: Final = "sample:synthetic_trace.csv"
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_SAMPLES: Final = Path(__file__).parent / "samples"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this example: ``data_dir`` is the folder that traces are read from, None when there is none."""

    data_dir: Path | None


@functools.cache
def settings() -> Settings:
    """The settings as the environment had them when first asked for."""
    folder = os.environ.get("LLM_COSTS_DATA_DIR", "").strip()
    return Settings(Path(folder) if folder else None)


def read_text(path: str, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a file inside the data folder, or of a packaged sample.

    Args:
        path: Relative to the data folder, or ``sample:<file>``.
        max_bytes: The largest file that is read.

    Raises:
        DataPathError: The path leaves its folder, or names no regular file in it.
        TooLargeError: The file is larger than ``max_bytes``.
    """
    target = _resolve(path)
    try:
        with open(target, "rb", opener=_open) as file:  # Path.open takes no opener
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataPathError(f"{path!r} is not a regular file", path=path)
            # One byte more than allowed shows a file that grew after fstat.
            content = file.read(max_bytes + 1) if facts.st_size <= max_bytes else b""
    except OSError as error:
        raise DataPathError(f"{path!r} cannot be read: {error.strerror}", path=path) from error
    size = max(facts.st_size, len(content))
    if size > max_bytes:
        raise TooLargeError(
            f"{path!r} has {size:,} bytes, more than the {max_bytes:,} that are read",
            advice="split the file, or take a sample of its rows",
            limit="max_file_bytes",
            limit_value=max_bytes,
            use=size,
        )
    return _decode(path, content)


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: a named pipe in the folder must not hold the thread until somebody writes to it.
    # O_NOFOLLOW: the path is resolved already, so a link here has been put in its place since.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _resolve(path: str) -> Path:
    root, name = _root_and_name(path)
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataPathError(f"{path!r} leaves the folder it is looked up in", path=path)
    try:
        root = root.resolve(strict=True)
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise DataPathError(f"{path!r} names nothing that can be read", path=path) from error
    # After resolving, so that a symbolic link out of the folder is seen for what it is.
    if not target.is_relative_to(root):
        raise DataPathError(f"{path!r} leaves the folder it is looked up in", path=path)
    return target


def _root_and_name(path: str) -> tuple[Path, str]:
    if path.startswith(SAMPLE_PREFIX):
        return _SAMPLES, path.removeprefix(SAMPLE_PREFIX)
    folder = settings().data_dir
    if folder is None:
        raise DataPathError(
            f"{path!r} cannot be looked up: no data folder is configured",
            advice="set LLM_COSTS_DATA_DIR to the folder with your traces before the start, or use " + DEFAULT_TRACE,
            path=path,
        )
    return folder, path


def _decode(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataPathError(
            f"{path!r} is not a text file in UTF-8 (line {line})",
            advice="save it as CSV in UTF-8",
            path=path,
            line=line,
        ) from error
