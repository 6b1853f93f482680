"""What a reader of AG-UI costs: however much a run does, what is kept of it is bounded, and a replay is the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ag_ui_ids import LATEST
from gateway.ag_ui_mapping import Translation
from gateway.ag_ui_subagents import MOST_OPEN
from gateway.replay_pace import ReplayPace
from tests.ag_ui.reader import body, opened, publish, read
from tests.ag_ui.rules import Rules, texts
from tests.ag_ui.test_mapping import NAMES, Entry, entry, logs
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, gateway, token

CALL: Final = {"tool_name": "t", "status": "ok", "duration_ms": 1}


def told(log: list[Entry], most: int = LATEST) -> list[list[Entry]]:
    """What a reader gets for each entry, checked; and what is kept is bounded all the way."""
    translation, rules, calls = Translation(NAMES, most), Rules(), set[str]()
    events: list[list[Entry]] = []
    for item in log:
        events.append(translation.feed(item))
        assert translation.kept <= 4 * most
        for event in events[-1]:
            rules.take(event)
            if event["type"] == "TOOL_CALL_START":
                assert event["toolCallId"] not in calls, "an id comes twice"
                calls.add(event["toolCallId"])
    return events


@settings(max_examples=40)
@given(logs(), st.integers(1, 2))
def test_beyond_the_bounds_a_log_comes_out_in_order_and_the_same_each_time(log: list[Entry], most: int) -> None:
    first = told(log, most)
    # Whoever comes back is told the rest of this, wherever that begins.
    again = Translation(NAMES, most)
    assert [again.feed(item) for item in log] == first


def test_calls_without_end_are_told_and_forgotten_oldest_first() -> None:
    names = [f"c{number}" for number in range(LATEST + 10)]
    log = [entry("tool_completed", {**CALL, "tool_call_id": name, "result": name}, at) for at, name in enumerate(names)]
    again = [
        entry("tool_completed", {**CALL, "tool_call_id": name, "result": name}, 10_000 + at, attempt=2)
        for at, name in enumerate(["c0", names[-1], "c0"])
    ]
    events = [event for events in told([*log, *again]) for event in events]
    ids = [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_RESULT"]
    # The last one is known, the first one is not any more: it is told again, once, as another.
    assert ids == [f"run-1:{name}" for name in names[:LATEST]] + [f"run-1:{name}~1" for name in [*names[LATEST:], "c0"]]


def test_calls_that_never_end_are_cut_off_oldest_first() -> None:
    log = [entry("tool_executing", {"tool_name": "t", "tool_call_id": f"c{at}"}, at) for at in range(5)]
    late = entry("tool_completed", {**CALL, "tool_call_id": "c4"}, 5)
    end = entry("run_completed", {"status": "SUCCEEDED", "result": {}}, 6)
    events = [event for events in told([*log, late, end], 3) for event in events]
    results = [
        (event["toolCallId"], "cut_off" in event["content"]) for event in events if event["type"] == "TOOL_CALL_RESULT"
    ]
    assert [name for name, _ in results] == [f"run-1:{name}" for name in ("c0", "c1", "c4~1", "c2", "c3~1")]
    assert [cut for _, cut in results] == [True, True, False, True, True]


def test_messages_without_end_are_told_and_forgotten_oldest_first() -> None:
    log = [entry("agent_message", {"message_id": f"m{at}", "text": f"text {at}"}, at) for at in range(LATEST + 5)]
    again = [
        entry("agent_message", {"message_id": name, "text": text}, 10_000 + at, attempt=2)
        for at, (name, text) in enumerate([("m0", "text 0"), (f"m{LATEST + 4}", f"text {LATEST + 4}")])
    ]
    found = texts([event for events in told([*log, *again]) for event in events])
    assert len(found) == LATEST + 6
    assert found["run-1:m0"] == found["run-1:m0~1"] == "text 0"


def test_a_piece_of_a_long_message_costs_no_more_than_one_of_a_short_message() -> None:
    def cheapest(translation: Translation, at: int) -> float:
        """Seconds of the cheapest of some batches of pieces."""
        found = []
        for batch in range(10):
            pieces = [
                entry("agent_message", {"message_id": "m", "delta": "\U0001f600"}, at + 20 * batch + number)
                for number in range(20)
            ]
            began = time.thread_time()
            for piece in pieces:
                translation.feed(piece)
            found.append(time.thread_time() - began)
        return min(found)

    short, long = Translation(NAMES), Translation(NAMES)
    for number in range(26):
        long.feed(entry("agent_message", {"message_id": "m", "delta": "\U0001f600" * 10_000}, number))
    assert cheapest(long, 1000) < 10 * cheapest(short, 1000)


def test_ids_of_any_length_are_kept_short() -> None:
    long = "x" * 60_000
    log = [
        entry("tool_executing", {"tool_name": "t", "tool_call_id": long}),
        entry("agent_message", {"message_id": long, "delta": "Hello"}, 2),
        entry("agent_message", {"message_id": long, "text": "Hello you"}, 3),
        entry("tool_completed", {**CALL, "tool_call_id": long, "result": 1}, 4),
    ]
    events = [event for events in told(log) for event in events]
    ids = [str(event.get("toolCallId") or event.get("messageId")) for event in events]
    assert max(len(name) for name in ids) < 100
    assert list(texts(events).values()) == ["Hello you"]
    assert sum(event["type"] == "TOOL_CALL_RESULT" for event in events) == 1


def test_more_sub_agents_at_once_than_are_told_apart() -> None:
    def child(number: int) -> dict[str, Any]:
        return {"request_id": f"req-1_a_{number}", "parent_request_id": "req-1", "agent_name": "a"}

    log = [entry("agent_started", {"agent_name": "a"}, at, **child(at)) for at in range(MOST_OPEN + 1)]
    end = entry("agent_completed", {"agent_name": "a", "result": {}}, 1000, **child(0))
    said = entry("agent_message", {"message_id": "m", "text": "yes"}, 1001, **child(MOST_OPEN))
    events = [event for events in told([*log, end, said]) for event in events]
    over = [event["subagentRunId"] for event in events if event["type"] == "SUBAGENT_ERROR"]
    assert over == ["req-1_a_0#1"]
    assert not [event for event in events if event["type"] == "SUBAGENT_FINISHED"]
    assert events[-3]["subagentRunId"] == f"req-1_a_{MOST_OPEN}#{MOST_OPEN + 1}"


def test_requests_that_are_above_each_other_do_not_hold_anybody_up() -> None:
    circle = {"x": "y", "y": "x", "z": "z"}
    log = [
        entry("agent_started", {"agent_name": "a"}, at, request_id=name, parent_request_id=above)
        for at, (name, above) in enumerate([*circle.items(), ("req-1_a", "req-1"), *circle.items()])
    ]
    assert len(told(log)) == 7


@dataclass
class Pace:
    """The pace of a gateway in a test's hands: how long alice is to wait, and what everybody's streams took."""

    wait_s: float = 0.0
    took: dict[str, float] = field(default_factory=dict)

    def put(self, monkeypatch: pytest.MonkeyPatch) -> Pace:
        """Take the real one's place."""
        take = ReplayPace.took

        def took(pace: ReplayPace, user_id: str, entries: float) -> None:
            self.took[user_id] = self.took.get(user_id, 0) + entries
            take(pace, user_id, entries)

        monkeypatch.setattr(ReplayPace, "took", took)
        monkeypatch.setattr(ReplayPace, "wait_s", lambda _, user_id: self.wait_s if user_id == "alice" else 0.0)
        return self


async def run_of(g: Gateway, user: str, eventually: Eventually) -> str:
    """A run of theirs, which has ended and of which 298 entries are in the log."""
    async with opened(g, body(), user):
        await eventually(lambda: any(owner == user for owner, _ in g.execution.runs))
    run_id = next(run_id for owner, run_id in g.execution.runs if owner == user)
    for _ in range(3):
        await publish(g, user, run_id, [("agent_thinking", {"text": f"thought {at}"}) for at in range(99)])
    await publish(g, user, run_id, [("run_completed", {"status": "SUCCEEDED", "result": {}})])
    return run_id


async def test_streams_wait_for_their_users_pace_and_no_other(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace().put(monkeypatch)
    async with gateway(tmp_path) as g:
        for user in ("alice", "bob"):
            _ = await run_of(g, user, eventually)
        pace.took.clear()
        whole = await read(g, body())
        # Each entry once, whether it was read or made something of, and a little for their bytes.
        assert 298 <= pace.took["alice"] <= 330
        pace.wait_s = 0.05
        again = asyncio.ensure_future(read(g, body(), after=whole.blocks[-2].id or ""))
        assert (await read(g, body(), "bob")).kinds == whole.kinds
        assert not again.done()
        pace.wait_s = 0.0
        assert (await again).blocks == whole.blocks[-1:]
        assert pace.took["alice"] >= 2 * 298


async def test_who_would_wait_long_is_told_when_to_come_back(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace().put(monkeypatch)
    async with gateway(tmp_path) as g:
        for user in ("alice", "bob"):
            _ = await run_of(g, user, eventually)
        pace.wait_s = 6.2
        headers = {"Authorization": f"Bearer {token('alice')}"}
        async with g.http.post(f"{g.url}/ag-ui/data", json=body(), headers=headers) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
            error = (await refused.json())["error"]
        assert (error["code"], error["details"]["limit"]) == ("RATE_LIMIT", "replay_per_second")
        assert error["advice"]
        assert (await read(g, body(), "bob")).last["type"] == "RUN_FINISHED"
