"""Events as lines that a person reads. Every text comes from agents or users: control characters are taken out.

Where the lines go, and in which colour, is the caller's; a run's result is ``result.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from carrel.client.models import Event
from carrel.client.notices import Gap, Notice, Reset

__all__ = ["Line", "clean", "describe", "notice_text"]

_SHORT: Final = 100
_DIM, _BOLD, _GOOD, _BAD, _PLAIN = "2", "1", "32", "1;31", ""


@dataclass(frozen=True, slots=True)
class Line:
    """What to print: an ANSI style and the text."""

    style: str
    text: str


def clean(text: object, longest: int = 0) -> str:
    """The text without control characters but line ends and tabs, cut to ``longest`` characters if that is set.

    A terminal obeys escape sequences; whoever writes an event must not steer the reader's.
    """
    kept = "".join(c for c in str(text) if c in "\n\t" or c.isprintable())
    return kept if not longest or len(kept) <= longest else kept[: longest - 1] + "…"


_RESETS: Final[Mapping[str, str]] = {
    "trimmed": "the place to go on from is older than what the event log keeps: the events in between are gone",
    "epoch_changed": "the event log lost something or was made anew: what follows is what it has now",
    "beyond_top": "the event log lost its newest events: some of those above may not be in it any more",
    "event_mismatch": "the event log lost its newest events and went on: some of those above may not be in it any more",
}


def notice_text(notice: Notice) -> str:
    """What a notice means for whoever reads the events; empty when that is nothing."""
    if isinstance(notice, Reset):
        return "… " + _RESETS.get(notice.reason, f"the event log begins anew here ({clean(notice.reason, _SHORT)})")
    if isinstance(notice, Gap):
        which = (
            f"event {notice.first} is" if notice.first == notice.last else f"events {notice.first} to {notice.last} are"
        )
        return f"… {which} missing" + ("" if notice.announced else "; the gateway does not say why")
    return ""


def describe(event: Event) -> Line:
    """One line for an event, or several for an answer."""
    known = _KINDS.get(event.event_type)
    if known is None:
        return Line(_DIM, f"{clean(event.event_type)} {_short(event.data)}")
    return known(event, event.data)


def _accepted(event: Event, data: Mapping[str, Any]) -> Line:
    queued = "  (queued: it begins once its thread and an engine are free)" if data.get("status") == "QUEUED" else ""
    return Line(_DIM, f"run {event.run_id} in thread {event.thread_id}{queued}")


def _started(event: Event, data: Mapping[str, Any]) -> Line:
    description = clean(data.get("description") or "", _SHORT)
    line = f"▶ {_agent(event)}" + (f"  {description}" if description else "") + _again(data)
    return Line(_DIM if data.get("replayed") else _BOLD, line)


def _thinking(event: Event, data: Mapping[str, Any]) -> Line:
    return Line(_DIM, f"  · {clean(data.get('text', ''), 300)}")


def _executing(event: Event, data: Mapping[str, Any]) -> Line:
    line = f"  ⚙ {clean(data.get('tool_name', ''))}{_arguments(data.get('arguments'))}{_again(data)}"
    return Line(_DIM if data.get("replayed") else _PLAIN, line)


def _executed(event: Event, data: Mapping[str, Any]) -> Line:
    name, took = clean(data.get("tool_name", "")), f"{float(data.get('duration_ms') or 0):.0f} ms"
    if data.get("replayed"):
        mark = "✓" if data.get("status") == "ok" else "✗"
        return Line(_DIM, f"  {mark} {name}{_again(data)}")
    if data.get("status") == "ok":
        return Line(_GOOD, f"  ✓ {name} ({took})")
    return Line(_BAD, f"  ✗ {name}: {_error(data.get('error')) or clean(data.get('status', ''))} ({took})")


def _completed(event: Event, data: Mapping[str, Any]) -> Line:
    took = data.get("duration_ms")
    return Line(_GOOD, f"✓ {_agent(event)}" + (f" ({float(took) / 1000:.2f} s)" if took is not None else ""))


def _failed(event: Event, data: Mapping[str, Any]) -> Line:
    fallback = f"; {clean(data['fallback'])} answers instead" if data.get("fallback") else ""
    return Line(_BAD, f"✗ {_agent(event)}: {_error(data)}{fallback}")


def _message(event: Event, data: Mapping[str, Any]) -> Line:
    return Line(_PLAIN, clean(data.get("text") or data.get("delta") or ""))


def _attempt(event: Event, data: Mapping[str, Any]) -> Line:
    who = f" of {clean(data['agent_name'])}" if data.get("agent_name") else ""
    why = f": {clean(data['reason'], 200)}" if data.get("reason") else ""
    return Line(_DIM, f"↻ attempt {clean(data.get('attempt', ''))}{who}{why}")


def _ended(event: Event, data: Mapping[str, Any]) -> Line:
    status = clean(data.get("status", ""))
    if status == "SUCCEEDED":
        return Line(_GOOD, "✓ the run succeeded")
    return Line(_BAD, f"✗ the run ended as {status}" + (f": {_error(data.get('error'))}" if data.get("error") else ""))


def _asks(event: Event, data: Mapping[str, Any]) -> Line:
    return Line(
        _BOLD,
        f"? {clean(data.get('prompt') or 'the run waits for an answer')} (input {clean(data.get('input_id', ''))})",
    )


def _rejected(event: Event, data: Mapping[str, Any]) -> Line:
    return Line(_BAD, f"  ! an event {clean(data.get('event_type', ''))} was rejected: {clean(data.get('reason', ''))}")


_KINDS: Final[Mapping[str, Callable[[Event, Mapping[str, Any]], Line]]] = {
    "run_accepted": _accepted,
    "agent_started": _started,
    "agent_thinking": _thinking,
    "tool_executing": _executing,
    "tool_completed": _executed,
    "agent_completed": _completed,
    "agent_error": _failed,
    "agent_message": _message,
    "run_attempt": _attempt,
    "run_completed": _ended,
    "input_required": _asks,
    "event_rejected": _rejected,
}


def _again(data: Mapping[str, Any]) -> str:
    """That nothing was done again: the next attempt of a stage took it from the journal of the one before."""
    return "  (as in the attempt before)" if data.get("replayed") else ""


def _agent(event: Event) -> str:
    return clean(event.agent_name or event.data.get("agent_name") or "agent")


def _arguments(value: object) -> str:
    if not isinstance(value, Mapping) or not value:
        return "()"
    inner = ", ".join(f"{clean(name)}={_short(item, 40)}" for name, item in value.items())
    return f"({inner})" if len(inner) <= _SHORT else f"({inner[: _SHORT - 1]}…)"


def _error(value: object) -> str:
    if not isinstance(value, Mapping):
        return ""
    text = clean(value.get("message") or value.get("code") or "")
    return f"{text} ({clean(value['advice'])})" if value.get("advice") else text


def _short(value: object, longest: int = _SHORT) -> str:
    return clean(json.dumps(value, ensure_ascii=False, default=str), longest)
