"""How smooth a page was, from the browser's own record: what its main thread did, task by task, in time of its own.

A task's CPU time is what counts, not the time that went by: on a machine that is busy with other work a page waits for
its turn, and is none the worse for it. The record can be opened in the performance panel of Chromium's tools.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page

__all__ = ["Smoothness", "recorded"]

# A frame that takes longer is seen as a jerk.
LONG_MS: Final = 100.0
_CATEGORIES: Final = ["devtools.timeline", "disabled-by-default-devtools.timeline"]
_TASK: Final = "RunTask"
_FRAME: Final = "FireAnimationFrame"


@dataclass
class Smoothness:
    """What a record says of one page's main thread; filled when the record ends.

    ``tasks_ms`` is the CPU time of each task, ``frames_ms`` of each that drew a frame: nothing else can happen on the
    page while it lasts.
    """

    tasks_ms: list[float] = field(default_factory=list)
    frames_ms: list[float] = field(default_factory=list)

    @property
    def work_ms(self) -> float:
        """All of its work."""
        return sum(self.tasks_ms)

    @property
    def longest_ms(self) -> float:
        """How long it stood still at most."""
        return max(self.tasks_ms, default=0.0)

    @property
    def long_share(self) -> float:
        """The share of frames that took longer than 100 ms."""
        return sum(ms > LONG_MS for ms in self.frames_ms) / max(1, len(self.frames_ms))

    def __str__(self) -> str:
        return (
            f"{len(self.frames_ms)} frames, {self.long_share:.1%} of them over {LONG_MS:g} ms, the longest task "
            f"{self.longest_ms:.0f} ms, {self.work_ms:.0f} ms of work in all"
        )


@asynccontextmanager
async def recorded(browser: Browser, page: Page, kept: Path) -> AsyncIterator[Smoothness]:
    """Records a page for the length of the block; ``kept`` has the record, for who wants to see why."""
    seen = Smoothness()
    await browser.start_tracing(page=page, categories=_CATEGORIES)
    try:
        yield seen
    finally:
        data = await browser.stop_tracing()
        kept.write_bytes(data)
    _read(json.loads(data)["traceEvents"], seen)


def _read(events: list[dict[str, Any]], seen: Smoothness) -> None:
    """The page's thread is the one that drew frames; browsers have others of the same name."""
    frames = [event for event in events if event["name"] == _FRAME and event["ph"] == "X"]
    threads = {(event["pid"], event["tid"]) for event in frames}
    assert len(threads) == 1, f"frames were drawn by {len(threads)} threads"
    (thread,) = threads
    drawn = sorted(event["ts"] for event in frames)
    for event in events:
        if event["name"] != _TASK or event["ph"] != "X" or (event["pid"], event["tid"]) != thread:
            continue
        took = event["tdur"] / 1000
        seen.tasks_ms.append(took)
        if any(event["ts"] <= at <= event["ts"] + event["dur"] for at in drawn):
            seen.frames_ms.append(took)
