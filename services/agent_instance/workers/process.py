"""``ProcessExecutor``: one worker process for one attempt. Speaks frames with it, knows how it ended, leaves nothing.

Not the sandbox, which the worker puts on itself (``worker``, ``sandbox``), nor the time it may take, which is the
turn's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import orjson

from carrel.agent_messages import MAX_MESSAGE_BYTES
from carrel.agents import Isolation
from carrel.errors import CarrelError, ProtocolError, WorkerLimitError, WorkerLostError
from servicekit.logs import get_logger
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.workers.folders import remove_empty, remove_tree
from services.agent_instance.workers.framing import HEADER
from services.agent_instance.workers.host import Exit, Ticket, ZygoteHost
from services.agent_instance.workers.output import Output
from services.agent_instance.workers.watch import Watched, WorkerWatch

__all__ = ["ProcessExecutor"]

_log: Final = get_logger("agent_instance.workers")
_CHUNK: Final = 256 * 1024
_MOST_WAITING: Final = 16
_MOST_WAITING_BYTES: Final = 4 * 1024 * 1024
_GRACE_S: Final = 0.25
_REAP_S: Final = 5.0


class ProcessExecutor:
    """``domain.executor.AgentExecutor`` in a process of its own.

    Args:
        host: Forks it.
        watch: Looks at what it uses.
        output_bytes: How much of what it prints is kept.
    """

    isolation: ClassVar[Isolation] = "process"

    def __init__(self, host: ZygoteHost, watch: WorkerWatch, *, output_bytes: int = 64 * 1024) -> None:
        self._host = host
        self._watch = watch
        self._output_bytes = output_bytes
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._reading = False
        self._ticket: Ticket | None = None
        self._pidfd = -1
        self._watched: Watched | None = None
        self._output: Output | None = None
        self._printed = b""
        self._buffer = bytearray()
        self._frames: deque[bytes] = deque()
        self._frames_size = 0
        self._room: asyncio.Event | None = None
        self._starting: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._eof = False
        self._garbled = False
        self._hung_up = False
        self._killed = False
        self._serves = False
        self._exit: Exit | None = None
        self._over = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        """Fork it, and wait until it has confined itself as far as it can without a class."""
        if self._killed or self._starting is not None:
            raise WorkerLostError("a worker is started once")
        self._starting = asyncio.create_task(self._start(), name="start of a worker process")
        try:
            await self._starting
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise WorkerLostError("the worker was killed while it was started") from None

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._sock = ours
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        self._output = Output(reading, self._output_bytes)
        try:
            self._ticket = await self._host.fork(theirs.fileno(), writing)
        finally:
            theirs.close()
            os.close(writing)
        self._ticket.exited.add_done_callback(self._reaped)
        memory = await self._hello(ours)
        self._watched = Watched(self._ticket.forked.result(), memory, self._ticket.folder, self._signal)
        self._listen()

    async def initialize(self, entry: AgentEntry) -> None:
        """Tell it what it will serve, and begin to watch it."""
        if self._ticket is None or self._killed or self._serves or self._eof or self._over.is_set():
            raise WorkerLostError("the worker cannot serve: not started, killed, dead, or used before")
        self._serves = True
        assert self._watched is not None
        self._watch.add(self._watched)
        await self.send(orjson.dumps({"serve": entry.name, "processes": entry.processes}))

    async def send(self, message: bytes) -> None:
        """Send one frame; waits while the worker does not read."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ProtocolError("a message to a worker is over the bound of a frame")
        async with self._writing:
            data = memoryview(HEADER.pack(len(message)) + message)
            while self._sock is not None and not self._eof:
                try:
                    data = data[self._sock.send(data) :]
                except BlockingIOError:
                    await self._writable(self._sock)
                except OSError:
                    return  # it has ended; ``receive`` says so
                if not data:
                    return

    async def receive(self) -> bytes | None:
        """The next frame; None once it has ended, and is known how."""
        while not self._frames:
            if self._eof or self._killed:
                await self._ended()
                return None
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._frames_size -= len(frame)
        if not self._reading and not self._eof and not self._behind:
            self._listen()
        return frame

    @property
    def loss(self) -> CarrelError:
        """Why it ended."""
        if self._garbled:
            return ProtocolError("what the agent's process sent was no message", advice="leave its descriptor 3 alone")
        over = self._watched.over if self._watched is not None else None
        if over is not None:
            return over
        ended = self._exit or Exit(None)
        if ended.status is not None and self._used_its_time(ended):
            limit = self._watch.limits.cpu_s
            problem = f"the agent used the {limit} s of processor time that its process may have"
            return WorkerLimitError(problem, limit="cpu", limit_value=limit, use=round(ended.cpu_s))
        how = "closed its connection to the service" if self._hung_up else _how(ended.status)
        return WorkerLostError(f"the process that ran the agent {how}", advice="try again")

    @property
    def output(self) -> bytes:
        """What it printed."""
        return self._printed if self._output is None else self._output.text()

    async def join(self) -> None:
        """Wait for its end."""
        await self._over.wait()

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Wait for its end, then kill it."""
        if self._ticket is not None and grace_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._over.wait()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL; returns when it is reaped, and its folder and descriptors are gone."""
        self._killed = True
        self._frames.clear()
        self._arrived.set()
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="end of a worker process")
        # Whoever is cancelled while waiting must not leave half of it behind.
        await asyncio.shield(self._ending)

    # The socket.

    async def _hello(self, sock: socket.socket) -> int:
        """Wait for the worker's first byte; keeps its handle, returns the descriptor of its memory's account."""
        # Its first byte comes after the rest of its start, milliseconds from now.
        await self._readable_now(sock)
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if len(descriptors) != 2:
            raise WorkerLostError("a worker died at its start", advice="look at the log for what it printed")
        memory, self._pidfd = descriptors
        return memory

    async def _readable_now(self, sock: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            if self._sock is not None:
                self._loop.remove_reader(sock.fileno())

    async def _writable(self, sock: socket.socket) -> None:
        ready = self._room = asyncio.Event()
        self._loop.add_writer(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            self._room = None
            if self._sock is not None:
                self._loop.remove_writer(sock.fileno())

    def _listen(self) -> None:
        if self._sock is not None and not self._killed:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _stop_listening(self) -> None:
        if self._reading and self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
        self._reading = False

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._at_end()
            return
        self._buffer += data
        self._split()
        if self._behind:
            # The turn is behind: the worker waits, and nobody else does.
            self._stop_listening()

    @property
    def _behind(self) -> bool:
        return len(self._frames) >= _MOST_WAITING or self._frames_size >= _MOST_WAITING_BYTES

    def _split(self) -> None:
        while len(self._buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer)
            if size > MAX_MESSAGE_BYTES:
                self._garbled = True
                self._at_end()
                return
            end = HEADER.size + size
            if len(self._buffer) < end:
                return
            self._frames.append(bytes(self._buffer[HEADER.size : end]))
            self._frames_size += size
            del self._buffer[:end]
            self._arrived.set()

    def _at_end(self) -> None:
        self._stop_listening()
        self._eof = True
        self._buffer.clear()
        self._arrived.set()
        if self._room is not None:
            self._room.set()

    # Its end.

    async def _ended(self) -> None:
        """It says nothing more: give it a moment to be gone, else see to it."""
        if not self._garbled and not self._killed:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._over.wait()
        if not self._over.is_set():
            self._hung_up = not self._killed
            self._signal()
            with suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S):
                    await self._over.wait()

    def _signal(self) -> None:
        if self._pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._ticket is not None and not self._ticket.exited.done():
            with suppress(OSError):
                os.kill(self._ticket.forked.result(), signal.SIGKILL)

    def _reaped(self, exited: asyncio.Future[Exit]) -> None:
        self._exit = exited.result()
        if self._sock is not None and not self._killed and not self._eof:
            # What it has sent is still in the socket, and less than the socket's bound.
            with suppress(OSError):
                while data := self._sock.recv(_CHUNK):
                    self._buffer += data
            self._split()
            self._at_end()
        self._over.set()

    async def _end(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        self._signal()
        if self._ticket is not None:
            try:
                async with asyncio.timeout(_REAP_S):
                    await asyncio.wait({self._ticket.exited})
            except TimeoutError:
                _log.error("a worker does not end", pid=self._ticket.forked.result())
        self._at_end()
        self._frames.clear()
        if self._watched is not None:
            self._watch.remove(self._watched)
            self._watched.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._output is not None:
            self._output.close()
            self._printed = self._output.text()
            self._output = None
        if self._ticket is not None:
            await self._remove_folder(self._ticket.folder)
        self._over.set()

    async def _remove_folder(self, folder: Path) -> None:
        if not remove_empty(folder):
            await asyncio.to_thread(remove_tree, folder)

    def _used_its_time(self, ended: Exit) -> bool:
        assert ended.status is not None
        killed_by = os.WTERMSIG(ended.status) if os.WIFSIGNALED(ended.status) else 0
        return killed_by == signal.SIGXCPU or (killed_by == signal.SIGKILL and ended.cpu_s >= self._watch.limits.cpu_s)


def _how(status: int | None) -> str:
    if status is None:
        return "is gone"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"was killed by {name}"
    code = os.waitstatus_to_exitcode(status)
    return f"ended with exit code {code}"
