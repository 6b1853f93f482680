"""Workers' temporary folders: one root per service process. What a killed one has left is removed at the next start.

Not the bound on their size, which ``watch`` keeps.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from servicekit.logs import get_logger

__all__ = ["TemporaryRoot", "remove_empty", "remove_tree", "tree_size"]

_log: Final = get_logger("agent_instance.workers")
_PREFIX: Final = "workers-"
_LOCK: Final = ".lock"
_MOVED: Final = ".removed-"
_MOST_ENTRIES: Final = 100_000
_LONGEST_PATH: Final = 3_500  # beyond the kernel's 4096 with a name of 255 it could not be looked at
_ENDLESS: Final = 1 << 62


class TemporaryRoot:
    """A new folder in ``parent``, held by a lock for as long as this process lives.

    Args:
        parent: Made when it is not there, for this user only.

    Raises:
        OSError: It cannot be made, or is somebody else's.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if parent.stat().st_uid != os.geteuid():
            raise PermissionError(f"{parent} is another user's")
        _remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove it and everything in it. Idempotent."""
        if self._lock >= 0:
            remove_tree(self.path)
            os.close(self._lock)
            self._lock = -1


def remove_tree(path: Path) -> None:
    """Remove a folder, whatever modes an agent has given to what is in it, and however deep it is."""
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            path.rmdir()
        except OSError:
            _open_up(str(path))
            names = (str(path / f"{_MOVED}{secrets.token_hex(8)}-{number}") for number in count())
            # A folder in a folder is moved up before what holds it is removed: no path becomes longer than two names,
            # and nothing here is as deep as they are.
            while _remove_level(path, names):
                pass
            with suppress(OSError):
                path.rmdir()


def _remove_level(path: Path, names: Iterator[str]) -> bool:
    """Remove what is directly in a folder; whether that did anything."""
    removed = False
    for entry in _entries(path):
        if _is_folder(entry):
            _open_up(entry.path)
            for inner in _entries(entry.path):
                with suppress(OSError):
                    if _is_folder(inner):
                        _open_up(inner.path)  # its own mode has a say in where it may be moved
                        Path(inner.path).rename(next(names))
                    else:
                        Path(inner.path).unlink()
        with suppress(OSError):
            (os.rmdir if _is_folder(entry) else os.unlink)(entry.path)
            removed = True
    return removed


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return list(found)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _open_up(path: str) -> None:
    with suppress(OSError):
        Path(path).chmod(stat.S_IRWXU)


def remove_empty(path: Path) -> bool:
    """Remove a folder that is empty, as nearly all are; whether it is gone."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def tree_size(path: Path) -> int:
    """Bytes that the files beneath a folder take on the disk; every entry counts for at least 4 KiB.

    Endless when there are too many of them to count, or some are deeper than a path can say.
    """
    total, entries, folders = 0, 0, [str(path)]
    while folders:
        folder = folders.pop()
        if len(os.fsencode(folder)) > _LONGEST_PATH:
            return _ENDLESS
        with suppress(OSError), os.scandir(folder) as found:
            for entry in found:
                entries += 1
                if entries > _MOST_ENTRIES:
                    return _ENDLESS
                with suppress(OSError):
                    total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            held = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # it is just being made, or is not ours
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process lives
        else:
            _log.info("temporary folders of a process that was killed are removed", folder=str(folder))
            remove_tree(folder)
        finally:
            os.close(held)
