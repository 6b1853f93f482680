"""Starts processes, watches them, starts one that dies again, forwards their logs, and ends them in order.

Knows nothing of what the processes are: names, commands, environments and the order come from ``stack.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carrel.errors import StartupError

__all__ = ["Child", "LogLine", "ProcessSpec", "Supervisor", "tied_to_us"]

_FAILED_STARTS: Final = 6
_FIRST_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 5.0
_TAIL: Final = 30
_LINE_LIMIT: Final = 1 << 20
_LAST_LINES_S: Final = 1.0
_SHIM: Final = Path(__file__).with_name("child.py")

LogLine = Callable[[str, str], None]


def tied_to_us(command: Sequence[str]) -> list[str]:
    """The command, started in such a way that it gets SIGTERM when this process dies, however it dies."""
    return [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *command]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How one process is started. It writes its address to the descriptor named by CARREL_READY_FD once it is ready."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(slots=True)
class Child:
    """One supervised process and its history."""

    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    address: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    restarts: int = 0
    failed_starts: int = 0
    was_ready: bool = False
    tail: list[str] = field(default_factory=list)
    last_exit: str = ""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class Supervisor:
    """Keeps a set of processes alive until told to end.

    Args:
        specs: The processes, in the order in which they are to end.
        log_line: Called with (process name, line) for each line that a process writes and each thing that happens.
        grace_s: How long one process may take to end before it is killed.
        held_fd: A descriptor that every process holds open as long as it lives (the lock of the state folder), or -1.
        hasten: Set by the caller when what is left is to end at once.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        log_line: LogLine,
        *,
        grace_s: float = 20.0,
        held_fd: int = -1,
        hasten: asyncio.Event | None = None,
    ) -> None:
        self.children = {spec.name: Child(spec) for spec in specs}
        self.on_change: Callable[[], None] = _nothing
        self._log = log_line
        self._grace_s = grace_s
        self._held = () if held_fd < 0 else (held_fd,)
        self._ending = asyncio.Event()
        self._hasten = hasten or asyncio.Event()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self.gave_up: asyncio.Future[StartupError] = asyncio.get_running_loop().create_future()

    async def start(self, within_s: float = 30.0) -> None:
        """Start all at once and return when every one is ready.

        Raises:
            StartupError: One can't be started; the text holds what it said.
        """
        for child in self.children.values():
            keeper = asyncio.create_task(self._keep(child), name=f"keeper of {child.spec.name}")
            keeper.add_done_callback(self._keeper_ended)
            self._keepers[child.spec.name] = keeper
        waiting = asyncio.create_task(self._all_ready(), name="wait for all to be ready")
        outcomes: set[asyncio.Future[Any]] = {waiting, self.gave_up}
        try:
            done, _ = await asyncio.wait(outcomes, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if self.gave_up.done():
            raise self.gave_up.result()
        if not done:
            late = [child.spec.name for child in self.children.values() if not child.ready.is_set()]
            raise StartupError(
                f"not ready within {within_s:g} s: {', '.join(late)}",
                advice="look at its log above; is the machine busy?",
            )

    async def _all_ready(self) -> None:
        for child in self.children.values():
            await child.ready.wait()

    async def restart(self, name: str) -> None:
        """End one process in order; its keeper starts it again."""
        child = self.children[name]
        if child.process is not None and child.pid is not None:
            child.ready.clear()
            child.process.terminate()

    async def stop(self) -> None:
        """End every process, one after the other in the given order. Idempotent."""
        self._ending.set()
        for name, child in self.children.items():
            was_alive = child.pid is not None
            await self._end(child)
            keeper = self._keepers.pop(name, None)
            if keeper is not None:
                # It ends by itself once the last lines are read, unless a grandchild still holds the pipe.
                await asyncio.wait([keeper], timeout=_LAST_LINES_S if was_alive else 0)
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)

    async def _end(self, child: Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        if not self._hasten.is_set():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            hasten = asyncio.create_task(self._hasten.wait())
            ended = asyncio.create_task(process.wait())
            await asyncio.wait([hasten, ended], timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
            hasten.cancel()
            ended.cancel()
            await asyncio.gather(hasten, ended, return_exceptions=True)
        if process.returncode is None:
            self._log(child.spec.name, "killed" if self._hasten.is_set() else "did not end in time; killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _keep(self, child: Child) -> None:
        """Run one process again and again until the end, or until it fails to start too often in a row."""
        while not self._ending.is_set():
            child.was_ready = False
            await self._run_once(child)
            if self._ending.is_set():
                return
            child.restarts += 1
            # Whoever was ready may die as often as it likes: that is what a supervisor is for.
            child.failed_starts = 0 if child.was_ready else child.failed_starts + 1
            if self._should_give_up(child):
                return
            self._log(child.spec.name, f"{child.last_exit}; starting it again")
            if child.failed_starts:
                delay = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2**child.failed_starts)
                await asyncio.sleep(delay * random.uniform(0.75, 1.0))  # noqa: S311 -- spreads restarts, keeps no secret

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None and not self.gave_up.done():
            self.gave_up.set_result(
                StartupError(
                    f"the {keeper.get_name()} failed: {error!r}", advice="is there space, are there processes?"
                )
            )

    def _should_give_up(self, child: Child) -> bool:
        never_ready = child.failed_starts == 1 and not child.address
        if not never_ready and child.failed_starts < _FAILED_STARTS:
            return False
        if not self.gave_up.done():
            said = "\n".join(child.tail[-_TAIL:])
            self.gave_up.set_result(
                StartupError(f"{child.spec.name} {child.last_exit}\n{said}", advice="mend what it says above")
            )
        return True

    async def _run_once(self, child: Child) -> None:
        """One life of the process."""
        read_end, write_end = os.pipe()
        try:
            child.process = await asyncio.create_subprocess_exec(
                *tied_to_us(child.spec.command),
                env={**child.spec.environment, "CARREL_READY_FD": str(write_end)},
                pass_fds=(write_end, *self._held),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C of the terminal goes to the supervisor alone, which ends them in order
                limit=_LINE_LIMIT,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        announcing = asyncio.create_task(self._announce(child, read_end))
        try:
            await self._forward(child, child.process)
            code = await child.process.wait()
            child.last_exit = _described(code)
        finally:
            announcing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await announcing
            child.ready.clear()
            self.on_change()

    async def _announce(self, child: Child, read_end: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(read_end, "rb")
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            line = await reader.readline()
            if line:
                child.address = line.decode().strip()
                child.was_ready = True
                child.ready.set()
                self.on_change()
        finally:
            transport.close()

    async def _forward(self, child: Child, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the limit; what follows is read as lines again
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip("\n")
            child.tail.append(text)
            del child.tail[:-_TAIL]
            self._log(child.spec.name, text)


def _described(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"


def _nothing() -> None:
    """Nobody wants to know."""
