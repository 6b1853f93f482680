"""The few calls to the kernel that the standard library does not have: prctl, capabilities, Landlock, seccomp's load.

Names and numbers only; what is allowed to whom is ``seccomp``'s and ``landlock``'s to say.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Final

__all__ = [
    "become_subreaper",
    "die_with_parent",
    "drop_capabilities",
    "forbid_new_privileges",
    "landlock_abi",
    "landlock_add_path",
    "landlock_restrict",
    "landlock_ruleset",
    "load_filter",
    "refuse_inspection",
]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_SECCOMP_MODE_FILTER: Final = 2
# The same numbers on every architecture: they came after the tables were made one.
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST_CAPABILITY: Final = 63

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *arguments: int) -> None:
    numbers = (*arguments, 0, 0, 0, 0)[:4]
    _checked(_libc.prctl(option, *(ctypes.c_ulong(number) for number in numbers)), "prctl")


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends.

    Raises:
        OSError: The parent has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")


def refuse_inspection() -> None:
    """Make ``/proc/<pid>/environ``, ``mem`` and the like unreadable for other processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def become_subreaper() -> None:
    """Be the parent of descendants whose own parent has died, so that they can be waited for."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """No program that is run from here on gets more rights than this one has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability for good, as root has them.

    Raises:
        OSError: The kernel refuses.
    """
    number = _CAPSET.get(os.uname().machine)
    if os.geteuid() != 0 or number is None:
        return
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(24)
    _checked(_libc.syscall(ctypes.c_long(number), header, nothing), "capset")


def landlock_abi() -> int:
    """The version of Landlock that the kernel has; 0 for none."""
    result: int = _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, result)


def landlock_ruleset(abi: int, access: int, scoped: int) -> int:
    """A descriptor of a new ruleset that handles these rights."""
    attributes = struct.pack("=QQQ", access, 0, scoped)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes[:size], size)
    result = _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), buffer, ctypes.c_size_t(size), ctypes.c_uint32(0))
    return _checked(result, "landlock_create_ruleset")


def landlock_add_path(ruleset: int, path_fd: int, access: int) -> None:
    """Allow these rights beneath an open path."""
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, path_fd), 12)
    result = _libc.syscall(
        ctypes.c_long(_LANDLOCK_ADD_RULE), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)
    )
    _checked(result, "landlock_add_rule")


def landlock_restrict(ruleset: int) -> None:
    """Hold this thread, and what it starts, to the ruleset for good."""
    result = _libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint32(0))
    _checked(result, "landlock_restrict_self")


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def load_filter(program: bytes) -> None:
    """Have every later system call of this thread judged by a BPF program, beside those loaded before."""
    code = ctypes.create_string_buffer(program, len(program))
    loaded = _Program(len(program) // 8, ctypes.addressof(code))
    result = _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(loaded), 0, 0)
    _checked(result, "prctl(PR_SET_SECCOMP)")
