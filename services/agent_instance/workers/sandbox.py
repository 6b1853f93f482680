"""What holds a worker: limits of the kernel, files, system calls. Prepared by the zygote, put on by the worker itself.

A machine that lacks a part runs workers without it, and ``lacks`` says so: for the log, once.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Final

from services.agent_instance.workers import kernel, seccomp
from services.agent_instance.workers.datagrams import WorkerLimits
from services.agent_instance.workers.landlock import FileRules
from services.agent_instance.workers.syscall_table import MACHINES, Machine

__all__ = ["Sandbox"]

# A worker that catches SIGXCPU has this long until it is killed.
_CPU_GRACE_S: Final = 2


@dataclass(frozen=True, slots=True)
class Filters:
    """The programs of ``seccomp``, written once: a worker only puts its own process id in."""

    base: bytes
    solitary: bytes
    family: bytes

    @classmethod
    def of(cls, machine: Machine, *, signals_scoped: bool) -> Filters:
        """Those of this machine."""
        return cls(
            seccomp.base_filter(machine),
            seccomp.solitary_filter(machine),
            seccomp.family_filter(machine, signals_scoped=signals_scoped),
        )


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Everything that a worker needs to confine itself."""

    files: FileRules
    limits: WorkerLimits
    filters: Filters | None
    lacks: tuple[str, ...]

    @classmethod
    def prepare(cls, files: FileRules, limits: WorkerLimits) -> Sandbox:
        """See what the kernel has."""
        name = os.uname().machine
        machine = MACHINES.get(name) if seccomp.is_there() else None
        lacks = []
        if machine is None:
            lacks.append(f"seccomp for {name}: workers can start processes and signal those of their user")
        if not files.abi:
            lacks.append("Landlock (Linux 5.13): workers can read every file that the service can")
        elif not files.scopes_signals:
            lacks.append("Landlock's scopes (Linux 6.12): abstract sockets of this machine can be reached")
        lacks += [f"rules for {path}: it holds too many files to hide one of them" for path in files.skipped]
        filters = None if machine is None else Filters.of(machine, signals_scoped=files.scopes_signals)
        return cls(files, limits, filters, tuple(lacks))

    def put_on(self, folder: str) -> None:
        """What holds from the start, whatever class the worker will serve. Capabilities are the zygote's to drop.

        Raises:
            OSError: The kernel refuses.
        """
        limits = self.limits
        self.files.apply(folder)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_DATA, limits.memory)
        _limit(resource.RLIMIT_NOFILE, limits.open_files)
        _limit(resource.RLIMIT_FSIZE, limits.file_size)
        _limit(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _CPU_GRACE_S)
        if self.filters is not None:
            kernel.load_filter(seccomp.for_process(self.filters.base, os.getpid()))

    def fit_to(self, *, processes: bool) -> None:
        """What comes with the class.

        Raises:
            OSError: The kernel refuses.
        """
        if self.filters is not None:
            program = self.filters.family if processes else self.filters.solitary
            kernel.load_filter(seccomp.for_process(program, os.getpid()))


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    _, most = resource.getrlimit(which)
    wanted = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        soft, wanted = min(soft, most), min(wanted, most)
    resource.setrlimit(which, (soft, wanted))
