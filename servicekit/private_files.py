"""Files that are followed, and files with secrets: whether one has changed, and whether it is kept from others."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

from carrel.errors import InvalidConfigurationError

__all__ = ["MOST_BYTES", "FollowedFiles", "Stamp", "check_private", "json_of", "read_small", "stamp_of"]

# Time of the last change, size, inode: a file that was replaced in one step differs in the last.
Stamp: TypeAlias = tuple[int, int, int]

# No file with keys or certificates comes near it.
MOST_BYTES: Final = 1 << 20
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


def read_small(path: Path) -> bytes:
    """The content of a file that somebody may have exchanged for anything: a pipe is not waited for, and what is large
    is not read.

    Raises:
        OSError: It cannot be read, is no file, or has more than MOST_BYTES bytes.
    """
    # Without waiting for a writer, should it be a pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        with os.fdopen(os.dup(handle), "rb") as file:
            data = file.read(MOST_BYTES + 1)
    finally:
        os.close(handle)
    if len(data) > MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def json_of(data: bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is none, or nests beyond what is read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def check_private(what: str, path: Path) -> None:
    """Raises:
    InvalidConfigurationError: Every user of the machine may read or write the file, or it has just gone; ``what`` names
        its content.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidConfigurationError(
            f"{what} {path} cannot be looked at: {error.strerror}", advice="put the file back, or mend the path"
        ) from None
    if mode & _OTHERS:
        raise InvalidConfigurationError(
            f"{what} {path} can be read or written by every user of this machine", advice=f"chmod 600 {path}"
        )


def _stamp_or_none(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:
        return None  # reading it says why
