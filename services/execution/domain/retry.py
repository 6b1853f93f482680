"""Writes that must happen, however long the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from carrel.errors import UnavailableError
from servicekit.logs import get_logger

__all__ = ["insist"]

_T = TypeVar("_T")
_log = get_logger("execution.retry")


async def insist(write: Callable[[], Awaitable[_T]], *, first_s: float, max_s: float, run_id: str) -> _T:
    """Call ``write`` until it succeeds, with growing delays between ``first_s`` and ``max_s`` seconds.

    Only ``UnavailableError`` is tried again; the write must have no effect when it raises that.
    """
    delay = first_s
    while True:
        try:
            return await write()
        except UnavailableError as error:
            _log.warning("a run waits for its store", run_id=run_id, code=error.code)
            await asyncio.sleep(delay)
            delay = min(delay * 2, max_s)
