"""``carrel run --timing``: where a run's time went, as a small table whose lines add up to what was waited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["Timing", "fetch_timing", "timing_table"]

REST: Final = "gateway and client"
# The last thing that execution waits for is the log's word that it has the terminal event: from the bridge by way of
# the emitter. The event itself is on its way to the client meanwhile, so this wait may last beyond its arrival, where
# the measured time ends. In the order from the wait's end backwards.
_LAST: Final = ("delivery", "websocket_emitter", "bridge_integration")
_WITHIN_S: Final = 2.0
_AGAIN_S: Final = 0.02
_WORDS: Final[Mapping[str, str]] = {
    "earlier": "before the process that tells took it up",
    "admission": "until the run was durable",
    "queue": "for its thread or an engine",
    "waiting": "for a person",
    "execution_engine": "preparing stages",
    "agent_instance": "the wait for a worker, and its creation",
    "agent": "the agents' own time",
    "websocket_emitter": "events at the emitter",
    "bridge_integration": "events at the bridge, until they were durable",
    "delivery": "events on their way",
    "checkpoint": "writes of the run store",
    "lost_attempts": "attempts that were lost",
    REST: "everything outside of execution's sight",
}


class Runs(Protocol):
    """Where runs are read: ``GatewayHttp``."""

    async def run(self, run_id: str) -> dict[str, Any]:
        """A run as REST shows it."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds by part, in the order of a run's way; the last is what is left of ``wall_ms``."""

    parts_ms: Mapping[str, float]
    wall_ms: float

    @classmethod
    def of(cls, body: Mapping[str, Any], wall_s: float) -> Timing:
        """From what REST says of a run, and what was waited for it here.

        Execution's parts are disjoint, by one clock. What they have after the last event's arrival here is left out of
        the wait for the log, so that all of it adds up to ``wall_s``; it still exceeds that where the run began before
        the request did (a request that was sent again).
        """
        parts = {str(name): float(ms) for name, ms in body["parts_ms"].items()}
        wall_ms = wall_s * 1000
        rest = wall_ms - sum(parts.values())
        beyond = max(0.0, -rest)
        for name in _LAST:
            taken = min(beyond, parts.get(name, 0.0))
            if taken:
                parts[name] -= taken
                beyond -= taken
        return cls({**parts, REST: max(0.0, rest)}, wall_ms)

    def to_json(self) -> dict[str, Any]:
        """For a machine."""
        rounded = {name: round(ms, 3) for name, ms in self.parts_ms.items()}
        return {"parts_ms": rounded, "wall_ms": round(self.wall_ms, 3)}


async def fetch_timing(runs: Runs, run_id: str, wall_s: float) -> Timing | None:
    """The run's timing once it is complete; None when no process remembers it.

    Raises:
        CarrelError: The gateway cannot be asked.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _WITHIN_S
    while True:
        body = (await runs.run(run_id)).get("timing")
        if body is not None and (body["complete"] or loop.time() > until):
            return Timing.of(body, wall_s)
        if loop.time() > until:
            return None
        await asyncio.sleep(_AGAIN_S)


def timing_table(timing: Timing) -> list[str]:
    """Lines for a person."""
    width = max(len(name) for name in (*timing.parts_ms, "sum"))
    lines = [
        f"{name:<{width}}  {ms:10.1f} ms  {_share(ms, timing)}  {_WORDS.get(name, '')}".rstrip()
        for name, ms in timing.parts_ms.items()
    ]
    total = sum(timing.parts_ms.values())
    return [*lines, f"{'sum':<{width}}  {total:10.1f} ms  of {timing.wall_ms:.1f} ms, request to last event"]


def _share(ms: float, timing: Timing) -> str:
    return f"{100 * ms / timing.wall_ms:4.0f} %" if timing.wall_ms else "     "
