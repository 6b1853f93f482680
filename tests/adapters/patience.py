"""Patience with libraries: how long they take to load on a busy machine, and what they leave to the collector, is not
what is tested here."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

from carrel import Agent
from tests.unit.agent_instance.support import Bench

__all__ = ["bench", "let_go"]

# More than it takes from a generator's end to its connection's.
_TURNS: Final = 50


def bench(*agents: type[Agent], **options: Any) -> Bench:
    """The host."""
    return Bench(*agents, **{"idle_s": 40.0, "wall_s": 50.0, "periodic_s": 100.0, **options})


async def let_go() -> None:
    """A stream that was left half read is closed while there is a loop."""
    gc.collect(1)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
