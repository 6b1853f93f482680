"""How long something took, without the moments in which this process stood still: for upper bounds on a busy machine.

A bound such as "it did not wait for the poll, which takes 5 s" shall fail when the code waited, and not when the
machine gave this process no time. Not for code that keeps the interpreter to itself for long: that would not be seen.
"""

from __future__ import annotations

import threading
import time
from typing import Final, Self

__all__ = ["Awake"]

_TICK_S: Final = 0.01
# What one gap between two looks counts at most.
_COUNTS_S: Final = 0.05


class Awake:
    """``with Awake() as took: …`` counts; ``took.seconds`` may be read inside and afterwards."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="awake", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning, to the end of the block at the latest; a pause counts 50 ms."""
        if not self._ended.is_set():
            self._look()
        return self._counted

    def __enter__(self) -> Self:
        self._looked_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            now = time.monotonic()
            self._counted += min(now - self._looked_at, _COUNTS_S)
            self._looked_at = now
