"""What must hold for every run's events, whatever happened meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from carrel.client import Event, SocketClient

TERMINAL = "run_completed"


async def until_end(client: SocketClient, run_id: str, within: float = 50.0) -> list[Event]:
    """Every event that comes up to the run's terminal one, of this run or not."""
    events: list[Event] = []
    async with asyncio.timeout(within):
        async for event in client.events():
            events.append(event)
            if event.run_id == run_id and event.event_type == TERMINAL:
                return events
    raise AssertionError("the stream of events ended before the run")


def check_sequence(events: Sequence[Event], user: str) -> None:
    """Each event once, offsets without a hole, nobody else's."""
    assert {event.user_id for event in events} == {user}
    offsets = [event.offset for event in events]
    assert offsets == list(range(offsets[0], offsets[0] + len(events))), f"offsets {offsets}"
    ids = [event.event_id for event in events]
    assert len(set(ids)) == len(ids), "an event came twice"


def check_run(events: Sequence[Event], run_id: str) -> list[Event]:
    """One run's events: accepted first, exactly one terminal event, last. Returns them."""
    mine = [event for event in events if event.run_id == run_id]
    kinds = [event.event_type for event in mine]
    assert kinds[0] == "run_accepted", kinds
    assert kinds.count(TERMINAL) == 1, kinds
    assert kinds[-1] == TERMINAL, kinds
    return mine


def stages(events: Sequence[Event]) -> dict[str, list[Event]]:
    """The events of each stage, by the agent's name, in order."""
    found: dict[str, list[Event]] = {}
    for event in events:
        if event.agent_name and event.event_type not in {TERMINAL, "run_accepted"}:
            found.setdefault(event.agent_name, []).append(event)
    return found
