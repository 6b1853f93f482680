"""A run's result as a person reads it: its text where it has one, else its JSON, never more than a screen or so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from carrel.cli.render import clean
from carrel.client.models import Event

__all__ = ["Said", "result_text"]

_LINES: Final = 40
_CHARACTERS: Final = 4000
_TEXTS: Final = ("answer", "message", "summary", "text")


class Said:
    """Each run's last ``agent_message``, so that a result which repeats it is not shown twice."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, str]] = {}

    def take(self, event: Event) -> str:
        """Note an event; the last message of its run so far. A run that ends is forgotten."""
        if event.terminal:
            return self._last.pop(event.run_id, ("", ""))[1]
        message_id, text = self._last.get(event.run_id, ("", ""))
        if event.event_type == "agent_message":
            data = event.data
            new_id = str(data.get("message_id") or "")
            begun = text if new_id == message_id else ""
            text = str(data["text"]) if data.get("text") else (begun + str(data.get("delta") or ""))
            self._last[event.run_id] = (new_id, text)
        return text


def result_text(data: Mapping[str, Any], *, already: str = "") -> str:
    """What to show of a ``run_completed``'s result; empty when there is none, or it has been shown.

    Args:
        data: The event's data.
        already: The text that was shown last.
    """
    artifact, result = data.get("artifact"), data.get("result")
    if isinstance(artifact, Mapping):
        return f"the result is the artifact {clean(artifact.get('name', ''))}"
    if not isinstance(result, Mapping) or not result:
        return ""
    name = next((name for name in _TEXTS if isinstance(result.get(name), str) and result[name].strip()), "")
    if not name:
        return _bounded(clean(json.dumps(result, ensure_ascii=False, indent=2, default=str)))
    text = result[name].strip()
    return "" if text == already.strip() else _bounded(clean(text))


def _bounded(text: str) -> str:
    lines = text[:_CHARACTERS].split("\n")[:_LINES]
    kept = "\n".join(lines)
    return kept if len(kept) == len(text) else f"{kept}\n… (cut here; --json shows the whole result)"
