"""AG-UI's rules of order, for tests: those that @ag-ui/client 1.0 enforces, and a few stricter ones of ours.

``Rules`` takes the events of one stream and fails at the first that breaks one. The real client is in test_http_agent.
"""

from __future__ import annotations

from typing import Any, Final

from ag_ui.core import Event
from pydantic import TypeAdapter

__all__ = ["Rules", "texts"]

_EVENT: Final[TypeAdapter[Any]] = TypeAdapter(Event)
_PAIRS: Final = {
    "TEXT_MESSAGE": ("messageId", ("CONTENT",)),
    "REASONING_MESSAGE": ("messageId", ("CONTENT",)),
    "TOOL_CALL": ("toolCallId", ("ARGS",)),
    "REASONING": ("messageId", ()),
}


class Rules:
    """One stream of one run."""

    def __init__(self) -> None:
        self.open: dict[str, set[str]] = {"STEP": set(), "SUBAGENT": set(), **{pair: set() for pair in _PAIRS}}
        self.owners: dict[tuple[str, str], str | None] = {}
        self.subagents: set[str] = set()
        self.started = self.ended = False

    def take(self, event: dict[str, Any]) -> None:
        """The next event."""
        kind = event["type"]
        _EVENT.validate_python(event)
        assert not [key for key, value in event.items() if value is None and key != "result"], event
        assert not self.ended, f"{kind} after the end"
        if not self.started:
            assert kind in {"RUN_STARTED", "RUN_ERROR"}, f"{kind} comes first"
            self.started = True
        else:
            assert kind != "RUN_STARTED", "a second begin"
        if kind in {"RUN_FINISHED", "RUN_ERROR"}:
            self.ended = True
            if kind == "RUN_FINISHED":
                left = {name: ids for name, ids in self.open.items() if ids}
                assert not left, f"open at the end: {left}"
        elif kind.startswith("STEP_"):
            self._toggle("STEP", event["stepName"], kind.endswith("STARTED"))
        elif kind.startswith("SUBAGENT_"):
            self._subagent(event, kind)
        elif kind == "TOOL_CALL_RESULT":
            self.owners["TEXT_MESSAGE", event["messageId"]] = event.get("subagentRunId")
        else:
            self._pair(event, kind)

    def _pair(self, event: dict[str, Any], kind: str) -> None:
        pair = next((name for name in _PAIRS if kind.startswith(f"{name}_")), None)
        if pair is None:
            return
        named, inner = _PAIRS[pair]
        name, step = event[named], kind.removeprefix(f"{pair}_")
        if step in inner:
            assert name in self.open[pair], f"{kind} of what is not open"
            assert event["delta"], "an empty piece"
        else:
            self._toggle(pair, name, step == "START")
        tag = event.get("subagentRunId")
        owner = self.owners.setdefault((pair, name), tag)
        assert tag is None or tag == owner, f"{kind} of {tag}, opened by {owner}"

    def _subagent(self, event: dict[str, Any], kind: str) -> None:
        name = event["subagentRunId"]
        if kind == "SUBAGENT_STARTED":
            assert name not in self.subagents, "a sub-agent's id comes twice"
            above = event.get("parentSubagentRunId")
            assert above is None or above in self.subagents
            self.subagents.add(name)
        self._toggle("SUBAGENT", name, kind == "SUBAGENT_STARTED")

    def _toggle(self, what: str, name: str, opens: bool) -> None:
        if opens:
            assert name not in self.open[what], f"{what} {name} is open already"
            self.open[what].add(name)
        else:
            assert name in self.open[what], f"{what} {name} is not open"
            self.open[what].remove(name)


def texts(events: list[dict[str, Any]]) -> dict[str, str]:
    """The text of each message, by its id, as a reader puts it together."""
    found: dict[str, str] = {}
    for event in events:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            found[event["messageId"]] = found.get(event["messageId"], "") + event["delta"]
    return found
