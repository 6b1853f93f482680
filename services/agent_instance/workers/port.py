"""The worker's end of the connection to its host: frames of messages, and what has to happen beside some of them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Final, cast

from carrel.agent_codec import decode
from carrel.agent_messages import MAX_MESSAGE_BYTES, DownMessage, Failure, Result, Start, UpMessage
from carrel.errors import AgentFailedError, ProtocolError, WorkerLimitError, from_dict
from services.agent_instance.workers.framing import HEADER, encode_fitting

__all__ = ["Port", "flush"]

_CHUNK: Final = 256 * 1024
_libc: Final = ctypes.CDLL(None)


class Port:
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
            flush()
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


def flush() -> None:
    """Write out what is printed and not yet written."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError):
        _libc.fflush(None)
