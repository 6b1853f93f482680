"""Which sub-agents a run has at work, and whose a request is: what attributes events in AG-UI.

Bounded: of more than ``MOST_OPEN`` at once the oldest is told as cut off; what it still does is its parent's then.
Pure state: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from carrel.context import MAX_DEPTH
from gateway.ag_ui_ids import LATEST, keep_latest
from gateway.ag_ui_texts import Say

__all__ = ["MOST_OPEN", "Subagents"]

MOST_OPEN: Final = 256
_NAMES: Final = 64
_CUT_OFF: Final = "the attempt that asked for it has ended"
_TOO_MANY: Final = "more are at work at once than are told apart"


class Subagents:
    """Those of one run.

    Args:
        say: Tells an event: its type, and its fields.
        on_end: Is told the request of each that ends, just before it does.
        most_open: How many may be open.
    """

    def __init__(self, say: Say, on_end: Callable[[str], None], most_open: int = MOST_OPEN) -> None:
        self._say = say
        self._on_end = on_end
        self._most_open = most_open
        # By request: what AG-UI calls those that are open, oldest first; and the request above, of the latest ones.
        self._open: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    def seen(self, request_id: str, above: str) -> None:
        """A request is right below another."""
        keep_latest(self._parents, request_id, above, LATEST)

    def owner(self, request_id: str) -> str:
        """The sub-agent that a request is of, or the nearest above it; empty for the run's own agents."""
        if not self._open:
            return ""
        found = max((name for name in self._upwards(request_id) if name in self._open), key=len, default="")
        return self._open[found] if found else ""

    def _upwards(self, request_id: str) -> Iterator[str]:
        """The request, and those above it."""
        yield request_id
        for _ in range(MAX_DEPTH):
            if request_id not in self._parents:
                break
            request_id = self._parents[request_id]
            yield request_id
        # By names only where the way up is not known: the second sub-agent of a name has the first one's and ``_2``.
        for _ in range(_NAMES):
            if "_" not in request_id:
                break
            request_id = request_id.rpartition("_")[0]
            yield request_id

    def start(self, request_id: str, name: str, description: object) -> None:
        """One begins. What an attempt before this one left open under the same request is over."""
        self.end(request_id, "SUBAGENT_ERROR", message=_CUT_OFF, code="CUT_OFF")
        if len(self._open) >= self._most_open:
            self.end(next(iter(self._open)), "SUBAGENT_ERROR", message=_TOO_MANY, code="CUT_OFF")
        above = self.owner(request_id)
        self._count += 1
        invocation = self._open[request_id] = f"{request_id}#{self._count}"
        told = {"description": description, "parentSubagentRunId": above}
        named = {name: value for name, value in told.items() if value}
        self._say("SUBAGENT_STARTED", subagentRunId=invocation, name=name, **named)

    def end(self, request_id: str, kind: str, **fields: Any) -> bool:
        """Close one, those under it first; whether it was open."""
        if request_id not in self._open:
            return False
        below = [name for name in self._open if name != request_id and request_id in self._upwards(name)]
        for inner in reversed(below):
            self._on_end(inner)
            self._say("SUBAGENT_ERROR", subagentRunId=self._open.pop(inner), message=_CUT_OFF, code="CUT_OFF")
        self._on_end(request_id)
        self._say(kind, subagentRunId=self._open.pop(request_id), **fields)
        return True

    def close(self, suspended_by: str = "") -> None:
        """Close all, the inner before the outer: as suspended by a question, or as cut off."""
        for request_id in reversed(list(self._open)):
            invocation = self._open.pop(request_id)
            if suspended_by:
                outcome = {"type": "suspended", "interruptIds": [suspended_by]}
                self._say("SUBAGENT_FINISHED", subagentRunId=invocation, outcome=outcome)
            else:
                self._say("SUBAGENT_ERROR", subagentRunId=invocation, message=_CUT_OFF, code="CUT_OFF")
