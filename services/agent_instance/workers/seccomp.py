"""Which system calls a worker may make: BPF programs, written here and loaded by the worker itself.

Two per worker. ``base_filter`` holds for every worker from its start: nothing that reaches into another process or
changes the machine. The second comes with the agent class: ``solitary_filter`` (no processes, signals to oneself only)
or ``family_filter`` (a class that declares ``processes``). Not a boundary against flaws of the kernel.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from services.agent_instance.workers.syscall_table import Machine

__all__ = ["base_filter", "family_filter", "for_process", "is_there", "solitary_filter"]

_LOAD: Final = 0x20  # A = word at a constant offset of seccomp_data
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL: Final = 0x80000000
_AT_NUMBER, _AT_ARCH = 0, 4
_X32_BIT: Final = 0x40000000

_CLONE_THREAD: Final = 0x00010000
_CLONE_NAMESPACES: Final = 0x7E020000
_AF_ALLOWED: Final = (2, 10, 16)  # INET, INET6, NETLINK (getaddrinfo); AF_UNIX would reach other programs' sockets
_FCNTL_SIGNALS: Final = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: have the kernel signal somebody
_IOCTL_SIGNALS: Final = (0x5412, 0x8901, 0x8902, 0x541C)  # TIOCSTI, FIOSETOWN, SIOCSPGRP, TIOCLINUX
_PRCTL_REFUSED: Final = (1, 36)  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER

_REFUSED: Final = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp"),
    *("pidfd_getfd", "migrate_pages", "move_pages", "ioprio_set"),
    # the machine
    *("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "open_tree", "open_tree_attr", "move_mount"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "quotactl", "quotactl_fd", "swapon", "swapoff"),
    *("reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "acct", "syslog"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup"),
    *("iopl", "ioperm", "modify_ldt", "uselib", "_sysctl", "nfsservctl", "lookup_dcookie", "mknod", "mknodat"),
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark"),
    # doors into the kernel that agents have no use for
    *("bpf", "perf_event_open", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"),
    *("keyctl", "add_key", "request_key"),
    # what outlives a process, and what another one of the same user could open
    *("shmget", "semget", "msgget", "mq_open"),
)
# Memory that no limit of a process counts, of any size. Code that knows these calls does without them.
_UNCOUNTED: Final = ("memfd_create", "memfd_secret")

# Stands for the worker's own process id until it is known; no process can have it.
_OWN_PID: Final = 0x7FFF_FF17

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def is_there() -> bool:
    """Whether this kernel has seccomp."""
    return "\nSeccomp:" in Path("/proc/self/status").read_text(encoding="ascii", errors="replace")


def for_process(program: bytes, pid: int) -> bytes:
    """A program of one of the functions below, for this process."""
    return program.replace(struct.pack("=I", _OWN_PID), struct.pack("=I", pid))


def base_filter(machine: Machine) -> bytes:
    """What no worker may do."""
    rules = _Rules(machine)
    rules.refuse(_REFUSED)
    # glibc falls back to clone, whose flags a filter can see.
    rules.answer(("clone3", *_UNCOUNTED), errno.ENOSYS)
    # Done without doing it: a child must not leave the group by which it is ended.
    rules.answer(("setsid", "setpgid"), 0)
    rules.only_with("prlimit64", 0, (0, _OWN_PID))
    for name in ("sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"):
        rules.only_with(name, 0, (0, _OWN_PID))
    rules.only_with("setpriority", 1, (0, _OWN_PID), also=(0, 0))
    rules.only_with("socket", 0, _AF_ALLOWED)
    rules.never_with("fcntl", 1, _FCNTL_SIGNALS)
    rules.never_with("ioctl", 1, _IOCTL_SIGNALS)
    rules.never_with("prctl", 0, _PRCTL_REFUSED)
    return rules.program()


def solitary_filter(machine: Machine) -> bytes:
    """What a worker of a class without ``processes`` may not do beside that: start processes, signal others."""
    rules = _Rules(machine)
    rules.refuse(("fork", "vfork", "execve", "execveat", "pidfd_open", "pidfd_send_signal", "tkill"))
    rules.flags("clone", needed=_CLONE_THREAD)
    _signal_only(rules)
    return rules.program()


def family_filter(machine: Machine, *, signals_scoped: bool) -> bytes:
    """The same for a class with ``processes``. Its signals are Landlock's to hold back where it can, else refused."""
    rules = _Rules(machine)
    rules.flags("clone", forbidden=_CLONE_NAMESPACES)
    if not signals_scoped:
        rules.refuse(("pidfd_send_signal", "tkill"))
        _signal_only(rules)
    return rules.program()


def _signal_only(rules: _Rules) -> None:
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        rules.only_with(name, 0, (_OWN_PID,))


class _Rules:
    """A program as it grows. Each rule looks at the number in A, and returns or leaves A as it was."""

    def __init__(self, machine: Machine) -> None:
        self._numbers = machine.numbers
        self._code: list[_Instruction] = [
            (_LOAD, 0, 0, _AT_ARCH),
            (_JUMP_EQUAL, 1, 0, machine.audit),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _AT_NUMBER),
        ]
        if machine.x32:
            self._code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), _refusal(errno.ENOSYS)]

    def refuse(self, names: Iterable[str]) -> None:
        self.answer(names, errno.EPERM)

    def answer(self, names: Iterable[str], number: int) -> None:
        for name in names:
            self._rule(name, [_refusal(number)])

    def only_with(self, name: str, argument: int, values: Sequence[int], also: tuple[int, int] | None = None) -> None:
        """Allowed with these values; ``also``: another argument and the value that it must have."""
        body: list[_Instruction] = []
        if also is not None:
            body += [_argument(also[0]), (_JUMP_EQUAL, 1, 0, also[1]), _refusal(errno.EPERM)]
        body += [_argument(argument), *_matches(values), _refusal(errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
        self._rule(name, body)

    def never_with(self, name: str, argument: int, values: Sequence[int]) -> None:
        """Refused with these values."""
        body = [_argument(argument), *_matches(values), (_RETURN, 0, 0, _ALLOW), _refusal(errno.EPERM)]
        self._rule(name, body)

    def flags(self, name: str, *, needed: int = 0, forbidden: int = 0) -> None:
        """Looks at bits of the first argument."""
        allow, deny = (_RETURN, 0, 0, _ALLOW), _refusal(errno.EPERM)
        branches = [allow, deny] if needed else [deny, allow]
        self._rule(name, [_argument(0), (_JUMP_ANY_BIT, 0, 1, needed or forbidden), *branches])

    def program(self) -> bytes:
        code = [*self._code, (_RETURN, 0, 0, _ALLOW)]
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

    def _rule(self, name: str, body: list[_Instruction]) -> None:
        number = self._numbers.get(name)
        if number is not None:  # arm64 has no fork, vfork, mknod …
            self._code += [(_JUMP_EQUAL, 0, len(body), number), *body]


def _refusal(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _argument(index: int) -> _Instruction:
    # The low half: all of these are 32 bits wide to the kernel, and both machines are little-endian.
    return (_LOAD, 0, 0, 16 + 8 * index)


def _matches(values: Sequence[int]) -> list[_Instruction]:
    """Jumps over the one instruction behind them when A is one of the values."""
    return [(_JUMP_EQUAL, len(values) - index, 0, value & 0xFFFFFFFF) for index, value in enumerate(values)]
