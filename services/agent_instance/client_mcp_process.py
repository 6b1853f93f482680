"""The process of an MCP server: its start, its streams, its end. What goes through them is ``client_mcp_stdio``'s.

Started by ``subprocess``, not by the loop: uvloop forks, and a fork of this process runs what grpc has registered for
one, beside grpc's threads, which has been seen to kill the child (signals 6 and 11). ``subprocess`` uses vfork.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from servicekit.logs import get_logger

__all__ = ["ServerCommand", "ServerProcess"]

_log: Final = get_logger("agent_instance.mcp")

_EXEC: Final = str(Path(__file__).with_name("client_mcp_exec.py"))
_REAP_S: Final = 5.0
_ORPHAN_LOOK_S: Final = 0.005
_ORPHAN_LOOKS: Final = 200


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What to start. ``environment`` is all that it sees; ``stop_s`` passes between asking it to end and making it."""

    name: str
    command: str
    args: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    max_message_bytes: int = 4 * 1024 * 1024
    stop_s: float = 0.5


class ServerProcess:
    """A process that has been started, the leader of a group of its own. Made by ``start``; ends with ``aclose``."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._transports: list[asyncio.BaseTransport] = []
        self._exited = asyncio.Event()
        # Kept until the end, so that the number names no other process meanwhile.
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)
        self.stdout = asyncio.StreamReader()
        self.stderr = asyncio.StreamReader()

    @classmethod
    async def start(cls, command: ServerCommand) -> ServerProcess:
        """Start it; a program that is not there is one that ends with status 127.

        Raises:
            OSError: There is no room for another process, or no such folder.
        """
        program = [sys.executable, "-I", "-S", _EXEC, str(os.getpid()), command.command, *command.args]
        # Blocks until the exec, a millisecond or two.
        popen = subprocess.Popen(  # noqa: ASYNC220
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(command.environment),
            cwd=command.cwd,
            start_new_session=True,
        )
        process = cls(popen)
        try:
            await process._connect()
        except BaseException:
            await process.aclose(0.0)
            raise
        return process

    @property
    def pid(self) -> int:
        """Its number, its group's too."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; negative for a signal, None while it lives."""
        return self._popen.returncode

    async def write(self, data: bytes) -> None:
        """Write to its standard input; waits while it does not read.

        Raises:
            ConnectionError: It does not read any more.
        """
        try:
            self._stdin.write(data)
            await self._stdin.drain()
        except RuntimeError as error:  # uvloop's word for a pipe that is closed
            raise ConnectionResetError("the pipe is closed") from error

    async def exited(self, within_s: float) -> bool:
        """Wait for its end, at most so long; whether it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._exited.wait()
        return self._exited.is_set()

    async def aclose(self, stop_s: float) -> None:
        """Close its input, then ask by signal, then kill it and its group, and see it reaped.

        Args:
            stop_s: How long it may take each time it is asked.
        """
        try:
            if self.returncode is None and stop_s > 0:
                self._stdin.close()
                if not await self.exited(stop_s):
                    self._signal(signal.SIGTERM)
                    await self.exited(stop_s)
        finally:
            self._signal(signal.SIGKILL)
            await self._release()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        popen = self._popen
        assert popen.stdin is not None
        for reader, pipe in ((self.stdout, popen.stdout), (self.stderr, popen.stderr)):
            assert pipe is not None
            await self._read_end(reader, pipe)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), popen.stdin
        )
        self._transports.append(transport)
        self._stdin = asyncio.StreamWriter(transport, protocol, None, loop)

    async def _read_end(self, reader: asyncio.StreamReader, pipe: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)

    async def _release(self) -> None:
        reaping = asyncio.ensure_future(self.exited(_REAP_S))
        cancelled: asyncio.CancelledError | None = None
        while not reaping.done():
            try:
                await asyncio.wait({reaping})
            except asyncio.CancelledError as error:
                # It passes on a moment later: who cancels now may end the loop, and then nobody would reap it.
                cancelled = error
        if not reaping.result():
            _log.error("the process of an MCP server does not end", pid=self.pid)
            self._forget()
        for transport in self._transports:
            transport.close()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if cancelled is not None:
            raise cancelled

    def _reap(self) -> None:
        # What it left in its group ends with it, now that the group's number cannot have become another's.
        self._signal(signal.SIGKILL)
        if self._popen.poll() is not None:
            self._forget()
            self._reap_orphans(_ORPHAN_LOOKS)

    def _reap_orphans(self, looks: int) -> None:
        # Its children are this process's now, if this is the heir of orphans. They were killed, and some are dying.
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
            if looks:
                asyncio.get_running_loop().call_later(_ORPHAN_LOOK_S, self._reap_orphans, looks - 1)
                return
        self._exited.set()

    def _forget(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
