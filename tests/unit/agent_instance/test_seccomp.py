"""The filters of system calls, run by an interpreter of their BPF: what each call gets, on both machines."""

from __future__ import annotations

import errno
import struct

import pytest

from services.agent_instance.workers import seccomp
from services.agent_instance.workers.syscall_table import MACHINES, Machine

PID = 4711
ALLOWED = "allowed"
CLONE_THREAD, CLONE_NEWUSER = 0x10000, 0x10000000


def judge(program: bytes, machine: Machine, number: int, *arguments: int, audit: int | None = None) -> str | int:
    """What the kernel would do: ALLOWED, "killed", or the error's number (0: pretended)."""
    words = {0: number, 4: machine.audit if audit is None else audit}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index] = value & 0xFFFFFFFF
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator = words[constant]
        elif operation == 0x06:
            if constant == 0x7FFF0000:
                return ALLOWED
            return "killed" if constant == 0x80000000 else constant & 0xFFFF
        else:
            held = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[operation]
            at += if_true if held else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return MACHINES[request.param]


def base(machine: Machine) -> bytes:
    return seccomp.for_process(seccomp.base_filter(machine), PID)


def solitary(machine: Machine) -> bytes:
    return seccomp.for_process(seccomp.solitary_filter(machine), PID)


def test_nothing_reaches_into_others_or_changes_the_machine(machine: Machine) -> None:
    for name in ("ptrace", "process_vm_readv", "pidfd_getfd", "mount", "setns", "unshare", "bpf", "io_uring_setup"):
        assert judge(base(machine), machine, machine.numbers[name]) == errno.EPERM, name
    assert judge(base(machine), machine, machine.numbers["clone3"]) == errno.ENOSYS
    assert judge(base(machine), machine, machine.numbers["setsid"]) == 0
    assert judge(base(machine), machine, 9999) == ALLOWED


def test_nothing_outlives_the_process_and_no_memory_is_uncounted(machine: Machine) -> None:
    for name in ("shmget", "semget", "msgget", "mq_open"):
        assert judge(base(machine), machine, machine.numbers[name]) == errno.EPERM, name
    for name in ("memfd_create", "memfd_secret"):
        assert judge(base(machine), machine, machine.numbers[name]) == errno.ENOSYS, name


def test_another_architectures_calls_end_the_worker(machine: Machine) -> None:
    assert judge(base(machine), machine, 1, audit=0x40000003) == "killed"
    if machine.x32:
        assert judge(base(machine), machine, 0x40000000 | machine.numbers["ptrace"]) == errno.ENOSYS


def test_processes_are_refused_and_threads_are_not(machine: Machine) -> None:
    clone = machine.numbers["clone"]
    assert judge(solitary(machine), machine, clone, CLONE_THREAD | 0x100) == ALLOWED
    assert judge(solitary(machine), machine, clone, 17) == errno.EPERM
    for name in ("fork", "vfork", "execve", "execveat"):
        if name in machine.numbers:
            assert judge(solitary(machine), machine, machine.numbers[name]) == errno.EPERM
    family = seccomp.for_process(seccomp.family_filter(machine, signals_scoped=True), PID)
    assert judge(family, machine, clone, 17) == ALLOWED
    assert judge(family, machine, clone, 17 | CLONE_NEWUSER) == errno.EPERM
    assert judge(family, machine, machine.numbers["execve"]) == ALLOWED


@pytest.mark.parametrize("name", ["kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"])
def test_signals_go_to_oneself_only(machine: Machine, name: str) -> None:
    unscoped = seccomp.for_process(seccomp.family_filter(machine, signals_scoped=False), PID)
    for program in (solitary(machine), unscoped):
        assert judge(program, machine, machine.numbers[name], PID, 9) == ALLOWED
        for other in (-1, 0, 1, PID + 1, -PID):
            assert judge(program, machine, machine.numbers[name], other, 9) == errno.EPERM


def test_limits_and_priorities_of_others_stay(machine: Machine) -> None:
    numbers = machine.numbers
    for name in ("prlimit64", "sched_setaffinity", "sched_setattr"):
        assert [judge(base(machine), machine, numbers[name], pid) for pid in (0, PID)] == [ALLOWED] * 2
        assert judge(base(machine), machine, numbers[name], 1) == errno.EPERM
    assert judge(base(machine), machine, numbers["setpriority"], 0, PID) == ALLOWED
    assert judge(base(machine), machine, numbers["setpriority"], 0, 1) == errno.EPERM
    assert judge(base(machine), machine, numbers["setpriority"], 2, 0) == errno.EPERM  # of a whole user


def test_some_arguments_are_refused(machine: Machine) -> None:
    numbers = machine.numbers
    for name, arguments in (("fcntl", (3, 8)), ("fcntl", (3, 10)), ("ioctl", (3, 0x8901)), ("prctl", (1,))):
        assert judge(base(machine), machine, numbers[name], *arguments) == errno.EPERM
    for name, arguments in (("fcntl", (3, 4)), ("ioctl", (3, 0x5421)), ("prctl", (15,)), ("socket", (2, 1))):
        assert judge(base(machine), machine, numbers[name], *arguments) == ALLOWED
    for family in (1, 17, 38, 40):  # UNIX, PACKET, ALG, VSOCK
        assert judge(base(machine), machine, numbers["socket"], family) == errno.EPERM
