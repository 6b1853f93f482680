"""Workers' temporary folders: one root per service process. What a killed one has left is removed at the next start.

Not the bound on their size, which ``watch`` keeps.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from servicekit.logs import get_logger

__all__ = ["TemporaryRoot", "remove_empty", "remove_tree", "tree_size"]

_log: Final = get_logger("agent_instance.workers")
_PREFIX: Final = "workers-"
_LOCK: Final = ".lock"
_MOST_ENTRIES: Final = 100_000


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
    """Remove a folder, whatever modes an agent has given to what is in it."""

    def open_up(function: Callable[..., Any], name: str, _error: Any) -> None:
        with suppress(OSError):
            path = Path(name)
            path.parent.chmod(stat.S_IRWXU)
            if not path.is_symlink():
                path.chmod(stat.S_IRWXU)
            function(name)

    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            path.rmdir()
        except OSError:
            shutil.rmtree(path, onerror=open_up)
            if os.path.lexists(path):
                shutil.rmtree(path, ignore_errors=True)


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
    """Bytes that the files beneath a folder take on the disk; every entry counts for at least 4 KiB."""
    total, entries, folders = 0, 0, [str(path)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as found:
            for entry in found:
                entries += 1
                if entries > _MOST_ENTRIES:
                    return 1 << 62
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
