"""``Output``: what a worker prints, drained whatever the amount, kept bounded: the first part and the last."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Final

__all__ = ["Output"]

_CHUNK: Final = 64 * 1024
# One worker's flood must not take the loop from the others: this much at once, then a pause.
_BURST_CHUNKS: Final = 8
_PAUSE_S: Final = 0.004


class Output:
    """Reads a pipe in the running loop until its end, or until ``close``.

    Args:
        descriptor: The pipe's reading end, non-blocking; closed by this.
        bound: Bytes kept in all, half of them from the beginning.
    """

    def __init__(self, descriptor: int, bound: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._half = max(1, bound // 2)
        self._first = bytearray()
        self._last: deque[bytes] = deque()
        self._last_size = 0
        self._left_out = 0
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(descriptor, self._readable)

    def text(self) -> bytes:
        """What there is by now."""
        if self._descriptor >= 0:
            self._drain(_BURST_CHUNKS)
        last = b"".join(self._last)
        spare = max(0, len(last) - self._half)
        left_out = self._left_out + spare
        if not left_out:
            return bytes(self._first) + last
        note = f"\n… {left_out} bytes left out …\n".encode()
        return bytes(self._first) + note + last[spare:]

    def close(self) -> None:
        """Take what is in the pipe, and stop. Idempotent."""
        if self._descriptor < 0:
            return
        self._drain(_BURST_CHUNKS * 4)
        if self._descriptor >= 0:
            self._end()

    def _readable(self) -> None:
        if self._drain(_BURST_CHUNKS) and self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._pause = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)

    def _drain(self, chunks: int) -> bool:
        """Read at most so many chunks; whether there is probably more."""
        for _ in range(chunks):
            try:
                data = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            if not data:
                self._end()
                return False
            self._keep(data)
            if len(data) < 4096:
                return False
        return True

    def _keep(self, data: bytes) -> None:
        room = self._half - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        if data:
            self._last.append(data)
            self._last_size += len(data)
            while self._last_size - len(self._last[0]) >= self._half:
                dropped = self._last.popleft()
                self._last_size -= len(dropped)
                self._left_out += len(dropped)

    def _end(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
