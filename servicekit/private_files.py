"""Files that are followed, and files with secrets: whether one has changed, and whether it is kept from others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

from carrel.errors import InvalidConfigurationError

__all__ = ["FollowedFiles", "Stamp", "check_private", "stamp_of"]

# Time of the last change, size, inode: a file that was replaced in one step differs in the last.
Stamp: TypeAlias = tuple[int, int, int]

_OTHERS: Final = 0o007

_T = TypeVar("_T")


class FollowedFiles(Generic[_T]):
    """What is read from files that may be replaced at any moment. What cannot be read leaves the former in use.

    Args:
        paths: The files; those that belong together are read together.
        read: Reads them; ``InvalidConfigurationError`` says what is wrong with them.
        refused: Told why they are not taken, once for each reason. They are tried again at each look until they are.
        clock: Seconds; tests have their own.

    Raises:
        InvalidConfigurationError: They cannot be read at first.
    """

    def __init__(
        self,
        *paths: Path,
        read: Callable[[], _T],
        refused: Callable[[str], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._paths = paths
        self._read = read
        self._refused = refused
        self._clock = clock or (lambda: time.monotonic())
        self._wrong = ""
        self._looked = self._clock()
        # Before they are read: a change in between is then seen at the next look.
        self._stamps = self._now()
        self.value = read()

    def look(self, every_s: float) -> bool:
        """Look at the files, if that was not done for so long; whether ``value`` was read anew."""
        now = self._clock()
        if now - self._looked < every_s:
            return False
        self._looked = now
        stamps = self._now()
        if stamps == self._stamps:
            return False
        try:
            self.value = self._read()
        except InvalidConfigurationError as error:
            if error.message != self._wrong:
                self._wrong = error.message
                self._refused(error.message)
            return False
        self._stamps, self._wrong = stamps, ""
        return True

    def _now(self) -> tuple[Stamp | None, ...]:
        return tuple(map(_stamp_or_none, self._paths))


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


def _stamp_or_none(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:
        return None  # reading it says why
