"""The zygote: a program of one thread that has the agents' modules loaded, and forks a worker whenever it is asked to.

    python -P -m services.agent_instance.workers.zygote DESCRIPTOR PARENT

It holds no secret and serves nobody but the host at the other end of the descriptor. It ends with the host, and its
workers end with it. It loads no gRPC, and nothing that starts a thread: a module that leaves one behind, or a
descriptor, is named to the host, which starts another zygote that leaves this module to the workers.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from carrel.errors import CarrelError
from services.agent_instance.workers import datagrams, kernel
from services.agent_instance.workers.catalogue import Catalogue
from services.agent_instance.workers.datagrams import Setup
from services.agent_instance.workers.landlock import FileRules
from services.agent_instance.workers.sandbox import Sandbox
from services.agent_instance.workers.warm_up import warm_up
from services.agent_instance.workers.worker import work

__all__ = ["main"]

_SMALLEST_YOUNG: Final = 10_000
_OOM_PREFERENCE: Final = "500"


def main(argv: list[str]) -> int:
    """Prepare, then fork on request until the host is gone."""
    control = socket.socket(fileno=int(argv[1]))
    control.setblocking(True)
    kernel.die_with_parent(int(argv[2]))
    with suppress(OSError):  # not ours to raise in some containers
        Path("/proc/self/oom_score_adj").write_text(_OOM_PREFERENCE, encoding="ascii")
    kernel.refuse_inspection()
    kernel.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = datagrams.receive(control)
    if first is None:
        return 0
    setup = Setup.from_dict(first[0])
    catalogue = Catalogue(setup.lazy)
    if (left := _load(control, setup, catalogue)) is not None:
        datagrams.send(control, left)
        return 0
    sandbox = Sandbox.prepare(FileRules([*_readable(), *setup.read_paths], setup.hidden), setup.limits)
    # After the imports, which may read what only root may; workers inherit having none.
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()
    warm_up()
    gc.collect()
    # What is there now stays: a collection in a worker would touch, and so copy, every page of it.
    gc.freeze()
    gc.set_threshold(_SMALLEST_YOUNG, 50, 100)
    datagrams.send(control, {"op": "ready", "lacks": sandbox.lacks, "modules": len(sys.modules)})
    _Forker(control, catalogue, sandbox).serve()
    return 0


def _load(control: socket.socket, setup: Setup, catalogue: Catalogue) -> dict[str, Any] | None:
    """Import what workers need; the report about the first module that leaves something behind, if one does."""
    sys.path.extend(path for path in setup.extra_path if path not in sys.path)
    # What a worker prints before it crashes is all that anybody learns of the crash.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    before = _descriptors()
    for name in setup.preload:
        with suppress(ImportError):  # it is an extra that is not installed; the agent says so when it needs it
            importlib.import_module(name)
        if left := _left_behind(before):
            return {"op": "left", "kind": "module", "source": name, "left": left}
    for source in setup.sources:
        try:
            catalogue.load(source)
        except CarrelError as error:
            # It loaded in the service: what differs is the environment. The worker's own try tells the run.
            catalogue.leave(source)
            datagrams.send(control, {"op": "unloaded", "source": source, "reason": error.message})
        if left := _left_behind(before):
            return {"op": "left", "kind": "source", "source": source, "left": left}
    return None


def _left_behind(before: dict[int, str]) -> str:
    threads = sum(1 for _ in Path("/proc/self/task").iterdir()) - 1
    opened = [target for number, target in _descriptors().items() if number not in before]
    parts = [f"{threads} threads"] if threads else []
    parts += [f"a descriptor of {target.partition(':')[0]}" for target in opened]
    return ", ".join(parts[:5])


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own is closed by now
            found[int(entry.name)] = str(entry.readlink())
    return found


def _readable() -> Iterable[str]:
    """Where this interpreter's own files and the loaded modules are."""
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable, os.path.realpath(sys.executable))
    yield from (path for path in sys.path if path)


class _Forker:
    """Forks, reaps and reports."""

    def __init__(self, control: socket.socket, catalogue: Catalogue, sandbox: Sandbox) -> None:
        self._control = control
        self._catalogue = catalogue
        self._sandbox = sandbox
        self._names: dict[int, int] = {}
        self._ended: dict[int, dict[str, Any]] = {}
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the host closes its end."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._request():
                return

    def _request(self) -> bool:
        received = datagrams.receive(self._control)
        if received is None:
            return False
        message, descriptors = received
        name = message["id"]
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"op": "failed", "id": name, "reason": os.strerror(error.errno or 0)})
        else:
            if pid == 0:
                self._become_worker(descriptors, message["folder"])
            self._names[pid] = name
            self._tell({"op": "forked", "id": name, "pid": pid})
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _reap(self) -> None:
        while (ended := _ended_child()) is not None:
            if ended in self._names:
                # Before it is reaped its number can be nobody else's: what it has left behind ends with it.
                with suppress(OSError):
                    os.killpg(ended, signal.SIGKILL)
            pid, status, usage = os.wait4(ended, 0)
            if (name := self._names.pop(pid, None)) is not None:
                seconds = usage.ru_utime + usage.ru_stime
                self._ended[pid] = {"op": "exited", "id": name, "status": status, "cpu_s": seconds}
        # Told when the last of its group is gone, too: orphans become this process's children as their parents die.
        for pid in [pid for pid in self._ended if not _has_children_in(pid)]:
            self._tell(self._ended.pop(pid))

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            datagrams.send(self._control, message)
        except OSError:  # the host is gone, and so are we in a moment
            sys.exit(0)

    def _become_worker(self, descriptors: list[int], folder: str) -> NoReturn:
        zygote = os.getppid()
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            connection, output = descriptors
            work(self._catalogue, self._sandbox, zygote, connection, output, folder)
        finally:
            os._exit(70)


def _ended_child() -> int | None:
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def _has_children_in(group: int) -> bool:
    try:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
