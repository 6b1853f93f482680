"""What must hold of a user's run of the packaged agents, as named checks over the events that the user received.

Only what can be told from the outside: from events, as any client gets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from carrel.client.models import Event

__all__ = ["STAGES", "Check", "check_events"]

STAGES: Final = ("data", "optimization", "report")
_BETWEEN: Final = ("agent_thinking", "tool_executing", "tool_completed")


@dataclass(frozen=True, slots=True)
class Check:
    """One statement, and what contradicts it: an empty ``problem`` means that it holds."""

    name: str
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether it holds."""
        return not self.problem


def check_events(events: Sequence[Event], user: str, run_id: str, thread_id: str) -> list[Check]:
    """Every check over all events that a user received while one run of theirs went on."""
    foreign = [e for e in events if (e.user_id, e.run_id, e.thread_id) != (user, run_id, thread_id)]
    return [
        Check("zero foreign events", _first(f"event {e.offset} is of {e.user_id}, run {e.run_id}" for e in foreign)),
        Check("offsets without a gap", _first(_gaps(events))),
        Check("every event once", _first(_repeats(events))),
        Check("run_accepted first", "" if events and events[0].event_type == "run_accepted" else "it is not"),
        Check("one run_completed, last, SUCCEEDED", _ending(events)),
        Check("stages in order, each framed by started and completed", _first(_frames(events))),
        Check("children's events under their own request_id", _first(_children(events))),
    ]


def _first(problems: Iterator[str]) -> str:
    return next(problems, "")


def _gaps(events: Sequence[Event]) -> Iterator[str]:
    for before, after in pairwise(events):
        if after.offset != before.offset + 1:
            yield f"{after.offset} follows {before.offset}"


def _repeats(events: Sequence[Event]) -> Iterator[str]:
    seen: set[str] = set()
    for event in events:
        if event.event_id in seen:
            yield f"event {event.offset} was there before"
        seen.add(event.event_id)


def _ending(events: Sequence[Event]) -> str:
    ends = [event for event in events if event.terminal]
    if len(ends) != 1:
        return f"there are {len(ends)}"
    if events[-1] is not ends[0]:
        return f"{events[-1].event_type} comes after it"
    status = ends[0].data.get("status")
    return "" if status == "SUCCEEDED" else f"its status is {status}"


def _frames(events: Sequence[Event]) -> Iterator[str]:
    ends: list[int] = []
    for stage in STAGES:
        own = [event for event in events if event.agent_name == stage]
        kinds = [event.event_type for event in own]
        if not kinds or kinds[0] != "agent_started" or kinds.count("agent_started") != 1:
            yield f"{stage} does not begin with one agent_started"
            return
        if kinds[-1] != "agent_completed" or kinds.count("agent_completed") != 1:
            yield f"{stage} does not end with one agent_completed"
            return
        if missing := [kind for kind in _BETWEEN if kind not in kinds]:
            yield f"{stage} has no {missing[0]}"
        if ends and own[0].offset < ends[-1]:
            yield f"{stage} began before the stage ahead of it had ended"
        ends.append(own[-1].offset)


def _children(events: Sequence[Event]) -> Iterator[str]:
    root = events[0].request_id if events else ""
    children = [event for event in events if event.request_id != root]
    if not children:
        yield "no child context said anything"
    for event in children:
        parent = event.parent_request_id
        if not event.request_id.startswith(f"{parent}_") or not (parent == root or parent.startswith(f"{root}_")):
            yield f"event {event.offset} is of {event.request_id}, which does not extend its run's {root}"
