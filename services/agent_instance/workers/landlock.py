"""Which files a worker may open: an allow-list that the kernel holds it to (Landlock).

Paths are looked up once, by the zygote; a worker adds its own temporary folder and applies them. What a worker can
reach otherwise (sockets, system calls) is not here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.agent_instance.workers import kernel

__all__ = ["FileRules"]

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
# What a file system right means came with these versions; a kernel refuses bits that it does not know.
_KNOWN_BITS: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_SCOPES_SINCE: Final = 6
_MOST_ENTRIES: Final = 5000

_SYSTEM: Final = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store"),
    *("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache"),
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/nsswitch.conf", "/etc/services"),
    *("/etc/protocols", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/os-release"),
    *("/etc/passwd", "/etc/group", "/run/systemd/resolve", "/sys/devices/system", "/sys/fs/cgroup"),
    *("/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version"),
    *("/proc/filesystems", "/proc/sys/vm", "/proc/sys/kernel/random", "/proc/sys/kernel/osrelease"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class FileRules:
    """The rules as open paths. Without Landlock it holds none, and ``apply`` does nothing.

    Args:
        readable: Files and folders to read, beside the system's.
        hidden: Paths that stay closed, also inside a readable folder. Names in the folders around them can be listed.
    """

    def __init__(self, readable: Iterable[str], hidden: Sequence[str]) -> None:
        self.abi = kernel.landlock_abi()
        self._handled = (1 << max((bits for abi, bits in _KNOWN_BITS if abi <= self.abi), default=0)) - 1
        self._rules: list[tuple[int, int]] = []
        self.skipped: list[str] = []
        if self.abi:
            self._collect(readable, hidden)

    @property
    def scopes_signals(self) -> bool:
        """Whether the kernel also keeps signals inside a worker."""
        return self.abi >= _SCOPES_SINCE

    def apply(self, folder: str) -> None:
        """Hold this process to the rules; ``folder`` is where it may write.

        Raises:
            OSError: The kernel refuses.
        """
        if not self.abi:
            return
        scopes = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if self.scopes_signals else 0
        ruleset = kernel.landlock_ruleset(self.abi, self._handled, scopes)
        try:
            for path, access in self._rules:
                kernel.landlock_add_path(ruleset, path, access & self._handled)
            self._add_now(ruleset, folder, self._handled & ~_EXECUTE)
            self._add_now(ruleset, "/proc/self", _READ_FILE | _READ_DIR)
            kernel.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)

    def _add_now(self, ruleset: int, path: str, access: int) -> None:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            kernel.landlock_add_path(ruleset, opened, access & self._handled)
        finally:
            os.close(opened)

    def _collect(self, readable: Iterable[str], hidden: Sequence[str]) -> None:
        closed = [Path(os.path.realpath(path)) for path in hidden]
        roots: dict[Path, None] = dict.fromkeys(
            Path(os.path.realpath(path)) for path in (*_SYSTEM, *readable) if os.path.lexists(path)
        )
        for root in roots:
            if not any(other in root.parents and not _holds(other, closed) for other in roots):
                self._allow(root, closed)
        for device in _DEVICES:
            self._open(Path(device), _READ_FILE | _WRITE_FILE)

    def _allow(self, path: Path, closed: Sequence[Path]) -> None:
        if any(path == item or item in path.parents for item in closed):
            return
        if not _holds(path, closed):
            self._open(path, _READ)
            return
        # No rule can take back what one above it gives, so each neighbour of what is hidden gets one of its own.
        self._open(path, _READ_DIR)
        with suppress(OSError):
            entries = sorted(path.iterdir())
            if len(entries) > _MOST_ENTRIES:
                self.skipped.append(str(path))
                return
            for entry in entries:
                if not entry.is_symlink():
                    self._allow(entry, closed)

    def _open(self, path: Path, access: int) -> None:
        with suppress(OSError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not stat.S_ISDIR(os.fstat(opened).st_mode):
                access &= _OF_FILES
            if access:
                self._rules.append((opened, access))
            else:
                os.close(opened)


def _holds(path: Path, closed: Sequence[Path]) -> bool:
    return any(path in item.parents for item in closed)
