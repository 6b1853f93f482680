"""Lines that a person types, read beside everything else that the loop does. Not for input that is no terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
from typing import Final

__all__ = ["Keyboard", "find_keyboard"]

_PIECE: Final = 4096


class Keyboard:
    """Args:
    fd: The terminal, open for reading.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._typed = b""

    def forget(self) -> None:
        """Drop what was typed before it was asked for: a key pressed by chance approves nothing."""
        self._typed = b""
        with contextlib.suppress(termios.error):
            termios.tcflush(self._fd, termios.TCIFLUSH)

    async def line(self, prompt: str) -> str | None:
        """Show the prompt and wait for a line; None when there will be none (Ctrl-D, or the terminal is gone)."""
        sys.stderr.write(prompt)
        sys.stderr.flush()
        # Not input() in a thread: nobody could end that wait, and Ctrl-C must.
        while b"\n" not in self._typed:
            await self._readable()
            try:
                piece = os.read(self._fd, _PIECE)
            except OSError:
                piece = b""
            if not piece:
                return None
            self._typed += piece
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode("utf-8", "replace")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)


def find_keyboard() -> Keyboard | None:
    """The keyboard of whoever ran the command; None when there is nobody."""
    try:
        if sys.stdin.isatty() and sys.stderr.isatty():
            return Keyboard(sys.stdin.fileno())
    except (AttributeError, ValueError, OSError):
        # Standard input is closed.
        pass
    return None
