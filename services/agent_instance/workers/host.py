"""``ZygoteHost``: the service's side of the zygote. Starts it, starts it again when it has died, passes requests on.

Not the workers' side: ``process`` is one worker, ``watch`` looks at what they use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from carrel.errors import WorkerLostError
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.workers import datagrams, kernel
from services.agent_instance.workers.datagrams import Setup
from services.agent_instance.workers.folders import TemporaryRoot, remove_tree

__all__ = ["Exit", "Ticket", "ZygoteHost"]

_log: Final = get_logger("agent_instance.workers")
_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 5.0
_FIRST_TRIES: Final = 3
_REAP_S: Final = 5.0
_MODULE: Final = "services.agent_instance.workers.zygote"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended: its wait status, None when the zygote was gone before it, and its processor time."""

    status: int | None
    cpu_s: float = 0.0


@dataclass(slots=True, eq=False)
class Ticket:
    """A worker as the zygote knows it: its folder, its process id once it is forked, its end once it is reaped."""

    number: int
    folder: Path
    forked: asyncio.Future[int]
    exited: asyncio.Future[Exit]


class ZygoteHost:
    """One zygote, kept alive. ``start`` before use; ``aclose`` ends it and every worker of it.

    Args:
        environment: All that the zygote and its workers see.
        temporary: The folder for workers' temporary folders.
    """

    def __init__(self, setup: Setup, environment: Mapping[str, str], temporary: TemporaryRoot) -> None:
        self._setup = setup
        self._environment = dict(environment)
        self._temporary = temporary
        self._tickets: dict[int, Ticket] = {}
        self._numbers = count(1)
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._settled = asyncio.Event()  # it was ready once, or has failed too often to go on waiting for it
        self._failed = 0
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks = TaskOwner()
        self._changed = False
        self._said_lacks = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The zygote's process id, while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start the zygote and wait until it has loaded the agents.

        Raises:
            WorkerLostError: It cannot be started.
        """
        kernel.become_subreaper()
        self._spawn()
        _ = self._tasks.start(self._keep_alive(), "the process that starts workers")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        if not self._ready.is_set():
            await self.aclose()
            problem = (
                f"the process that starts workers ended {self._failed} times before it was ready"
                if self._settled.is_set()
                else f"the process that starts workers was not ready within {timeout_s:g} s"
            )
            raise WorkerLostError(problem, advice="look at what it has written above, and at what agents import")

    async def fork(self, connection: int, output: int) -> Ticket:
        """Have a worker forked that holds these two descriptors.

        Raises:
            WorkerLostError: The zygote is gone, or the system has no more processes.
        """
        await self._ready.wait()
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        ticket = Ticket(number, self._temporary.path / str(number), loop.create_future(), loop.create_future())
        self._tickets[number] = ticket
        assert self._control is not None
        try:
            datagrams.send(
                self._control, {"op": "fork", "id": number, "folder": str(ticket.folder)}, [connection, output]
            )
        except OSError as error:  # it has just died, or has so many requests that it takes no more
            del self._tickets[number]
            raise WorkerLostError(f"no worker can be started: {error.strerror}", advice="try again") from None
        await ticket.forked
        return ticket

    async def aclose(self) -> None:
        """End the zygote, and with it every worker. Idempotent."""
        await self._tasks.aclose()
        self._end_process()
        await self._lose_workers()
        self._temporary.close()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            # -P, as for the services: the folder it is started in is not for imports. From the main thread, since its
            # death ends the zygote.
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        datagrams.send(ours, self._setup.to_dict())
        self._control = ours
        self._lost.clear()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)

    async def _keep_alive(self) -> None:
        delay = _FIRST_DELAY_S
        while True:
            await self._lost.wait()
            if self._ready.is_set():
                delay = _FIRST_DELAY_S
            elif not self._changed:
                self._failed += 1
                if self._failed >= _FIRST_TRIES:
                    self._settled.set()
            self._ready.clear()
            self._end_process()
            await self._lose_workers()
            if self._changed:
                self._changed = False
            else:
                _log.error("the process that starts workers is gone; it is started again", after_s=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_DELAY_S)
                self.restarts += 1
            self._spawn()

    def _readable(self) -> None:
        assert self._control is not None
        while True:
            try:
                received = datagrams.receive(self._control)
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                asyncio.get_running_loop().remove_reader(self._control.fileno())
                self._lost.set()
                return
            self._heard(received[0])

    def _heard(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "forked":
                _settle(self._tickets[message["id"]].forked, message["pid"])
            case "failed":
                ticket = self._tickets.pop(message["id"])
                if not ticket.forked.done():
                    problem = f"no worker can be started: {message['reason']}"
                    ticket.forked.set_exception(WorkerLostError(problem, advice="raise the limit of processes"))
            case "exited":
                ticket = self._tickets.pop(message["id"])
                if ticket.forked.cancelled():  # whoever asked for it is gone, and it saw that and ended
                    remove_tree(ticket.folder)
                _settle(ticket.exited, Exit(message["status"], message["cpu_s"]))
            case "ready":
                self._tell_lacks(message["lacks"])
                self._ready.set()
                self._settled.set()
            case "left":
                self._leave(message["kind"], message["source"], message["left"])
            case "unloaded":
                _log.warning(
                    "agents are imported by each worker: they did not load in the process that starts workers",
                    source=message["source"],
                    reason=message["reason"],
                    advice="name what they read from the environment in CARREL_AGENT_INSTANCE_WORKERS__ENV_ALLOW",
                )

    def _leave(self, kind: str, source: str, left: str) -> None:
        setup = self._setup
        if kind == "module":
            self._setup = replace(setup, preload=tuple(item for item in setup.preload if item != source))
        else:
            rest = tuple(item for item in setup.sources if item != source)
            self._setup = replace(setup, sources=rest, lazy=(*setup.lazy, source))
        self._changed = True
        _log.warning(
            "a module cannot be loaded ahead of need: it leaves something behind that a fork would break",
            module=source,
            left=left,
            advice="start threads and open connections when an agent runs, not when its module is imported; until then "
            "each worker imports it anew",
        )

    def _tell_lacks(self, lacks: list[str]) -> None:
        if not self._said_lacks:
            self._said_lacks = True
            for lack in lacks:
                _log.warning("this machine's kernel lacks a part of the workers' isolation", lacks=lack)

    def _end_process(self) -> None:
        """Kill the zygote if it runs, and reap it; it ends at once, having nothing to finish."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _lose_workers(self) -> None:
        """See to it that the workers of a zygote that has died are gone, and tell who waits for them."""
        lost, self._tickets = list(self._tickets.values()), {}
        pids = [ticket.forked.result() for ticket in lost if _has_result(ticket.forked)]
        for ticket in lost:
            if not ticket.forked.done():
                ticket.forked.set_exception(
                    WorkerLostError("the process that starts workers is gone", advice="try again")
                )
                ticket.forked.exception()  # its waiter may be gone as well
        for pid in pids:
            # The kernel has killed them with their parent; what they started is in their group.
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(_REAP_S):
                for pid in pids:
                    while not _reaped(pid):  # noqa: ASYNC110 -- nothing tells of the end of an adopted child
                        await asyncio.sleep(0.005)
        except TimeoutError:
            _log.error("workers of a dead zygote do not end", pids=pids)
        for ticket in lost:
            _settle(ticket.exited, Exit(None))


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _reaped(pid: int) -> bool:
    """Whether a process that has become our child, being an orphan, is no more."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
