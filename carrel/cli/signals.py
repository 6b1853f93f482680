"""Ctrl-C and SIGTERM for commands that run until told to end: the first asks for an orderly end, the second hastens."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

__all__ = ["Stop", "on_signals"]


class Stop:
    """Whether to end. ``hasten`` is set by the second request."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hasten = asyncio.Event()
        self.on_request: Callable[[], object] = self.requested.is_set

    def request(self) -> None:
        """Ask for the end; asking twice hastens it."""
        if self.requested.is_set():
            self.hasten.set()
            return
        self.requested.set()
        self.on_request()


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """Turns the two signals into requests while the block runs."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.request)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
