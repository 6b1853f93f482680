"""A worker process from its fork to its end: it confines itself, serves one attempt, and dies.

Nothing here is trusted by the host. What runs before the agent's code is ours, and so is the order: the sandbox is
complete before a line of the agent's runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import resource
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, cast

from carrel.agent_codec import decode
from carrel.agent_messages import MAX_MESSAGE_BYTES, DownMessage, Failure, Result, Start, UpMessage
from carrel.agent_runtime import WorkerSession
from carrel.errors import AgentFailedError, ProtocolError, WorkerLimitError, from_dict
from services.agent_instance.workers import kernel
from services.agent_instance.workers.catalogue import Catalogue
from services.agent_instance.workers.framing import HEADER, encode_fitting
from services.agent_instance.workers.sandbox import Sandbox

__all__ = ["work"]

_CONNECTION: Final = 3
_BEYOND_ALL: Final = 1 << 20
_CHUNK: Final = 256 * 1024


def work(catalogue: Catalogue, sandbox: Sandbox, zygote: int, connection: int, output: int, folder: str) -> NoReturn:
    """Be a worker, in the process that the zygote has just forked. Never returns."""
    kernel.die_with_parent(zygote)
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Path(folder).mkdir(0o700)
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
    _say_hello(connection)
    sandbox.put_on(folder)
    # From here on there is nothing of the zygote's but its memory: no path, no socket, no pipe.
    os.dup2(connection, _CONNECTION)
    os.closerange(_CONNECTION + 1, _BEYOND_ALL)
    _reseed()
    # The loop is made while nobody waits for it yet.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(_serve(_Port(socket.socket(fileno=_CONNECTION)), catalogue, sandbox))
        _flush()
        os._exit(0)
    raise AssertionError


def _say_hello(connection: int) -> None:
    """Hand the host what it watches this process by. Nobody else may open these, not even the host."""
    memory = os.open("/proc/self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
    me = os.pidfd_open(os.getpid())
    with socket.socket(fileno=os.dup(connection)) as sock:
        socket.send_fds(sock, [b"+"], [memory, me])
    os.close(memory)
    os.close(me)


def _reseed() -> None:
    """Random numbers of one worker must not be another's: these were seeded before the fork."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


async def _serve(port: _Port, catalogue: Catalogue, sandbox: Sandbox) -> None:
    asked = await port.frame()
    if asked is None:
        return
    sandbox.fit_to(processes=bool(json.loads(asked)["processes"]))
    await WorkerSession(port, catalogue.agent).serve()


class _Port:
    """``carrel.agent_calls.HostPort`` over frames: four bytes of length, then as many of a message."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        self._writing = asyncio.Lock()

    async def send(self, message: UpMessage) -> None:
        if isinstance(message, Failure):
            message = _told_of_limit(message)
        data = encode_fitting(message)
        if isinstance(message, Result | Failure):
            _flush()
        async with self._writing:
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_sendall(self._sock, HEADER.pack(len(data)) + data)
            except OSError:
                # The host is gone; ``receive`` says so.
                return

    async def receive(self) -> DownMessage | None:
        data = await self.frame()
        if data is None:
            return None
        message = cast(DownMessage, decode(data))
        if isinstance(message, Start):
            os.environ.update({str(name): str(value) for name, value in message.environment.items()})
        return message

    async def frame(self) -> bytes | None:
        """The next frame; None when the host is gone."""
        while True:
            if len(self._buffer) >= HEADER.size:
                (size,) = HEADER.unpack_from(self._buffer)
                if size > MAX_MESSAGE_BYTES:
                    raise ProtocolError("a frame is over the bound")
                end = HEADER.size + size
                if len(self._buffer) >= end:
                    data = bytes(self._buffer[HEADER.size : end])
                    del self._buffer[:end]
                    return data
            try:
                piece = await asyncio.get_running_loop().sock_recv(self._sock, _CHUNK)
            except OSError:
                return None
            if not piece:
                return None
            self._buffer += piece


def _told_of_limit(message: Failure) -> Failure:
    """An allocation that the kernel refused reaches the agent as MemoryError; it is a limit that was reached."""
    error = from_dict(message.error)
    if not isinstance(error, AgentFailedError) or error.details.get("cause") != "MemoryError":
        return message
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    told = WorkerLimitError(
        f"the agent needed more memory than the {limit >> 20} MB that its process may have",
        limit="memory",
        limit_value=limit,
        **error.details,
    )
    return Failure(told.to_dict())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError):
        ctypes.CDLL(None).fflush(None)
