"""Files that are followed, and files with secrets: whether one has changed, and whether it is kept from others."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeAlias

from carrel.errors import InvalidConfigurationError

__all__ = ["Stamp", "check_private", "stamp_of"]

# Time of the last change, size, inode: a file that was replaced in one step differs in the last.
Stamp: TypeAlias = tuple[int, int, int]

_OTHERS: Final = 0o007


def stamp_of(path: Path) -> Stamp:
    """What differs after the file was changed or replaced, links followed.

    Raises:
        OSError: It cannot be looked at.
    """
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def check_private(what: str, path: Path) -> None:
    """Raises:
    InvalidConfigurationError: Every user of the machine may read or write the file; ``what`` names its content.
    OSError: It cannot be looked at.
    """
    if path.stat().st_mode & _OTHERS:
        raise InvalidConfigurationError(
            f"{what} {path} can be read or written by every user of this machine", advice=f"chmod 600 {path}"
        )
