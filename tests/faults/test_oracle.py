"""The oracle itself: it passes what is right, and each way of being wrong is found by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from carrel.client import Event, Notice
from tests.faults.oracle import Committed, LogEnd, Received, judge

KINDS = ("run_accepted", "agent_started", "agent_thinking", "agent_thinking", "agent_completed", "run_completed")


def committed(offset: int, kind: str, run_id: str = "run-1", **data: object) -> Committed:
    agent = "" if kind.startswith("run") else "slow"
    return Committed(offset, f"evt-{offset}", kind, run_id, agent, 1 if agent else 0, json.dumps(data))


def good_log(run_id: str = "run-1", after: int = 0) -> list[Committed]:
    """One run of two steps that ended well."""
    told: list[dict[str, object]] = [{}, {}, {"number": 1}, {"number": 2}, {"result": {"steps": 2}}, {}]
    told[-1] = {"status": "SUCCEEDED"}
    return [
        committed(after + number, kind, run_id, **data)
        for number, (kind, data) in enumerate(zip(KINDS, told, strict=True), 1)
    ]


def received(entries: Sequence[Committed], user: str = "alice") -> Received:
    got = Received(user)
    for entry in entries:
        got.add(Event(entry.offset, entry.event_id, entry.event_type, user, "thread", entry.run_id, "req"))
    return got


def test_everything_once_and_in_order_is_good() -> None:
    log = good_log() + good_log("run-2", 6)
    verdict = judge(received(log), LogEnd("e", log), ["run-1", "run-2"])
    assert verdict.good, verdict.problems
    assert (verdict.committed, verdict.received, dict(verdict.ends)) == (12, 12, {"SUCCEEDED": 2})


@pytest.mark.parametrize("missing", range(6))
def test_an_event_that_did_not_come_is_lost(missing: int) -> None:
    log = good_log()
    verdict = judge(received(log[:missing] + log[missing + 1 :]), LogEnd("e", log))
    assert verdict.lost == 1
    assert not verdict.good


def test_a_gap_that_was_told_is_no_loss() -> None:
    log = good_log()
    got = received(log[:2])
    got.add(Notice("gap", {"from": 3, "to": 4}))
    for event in received(log[4:]).items:
        got.add(event)
    assert judge(got, LogEnd("e", log)).good


def test_an_event_that_came_twice_is_repeated() -> None:
    log = good_log()
    assert judge(received([*log, log[-1]]), LogEnd("e", log)).repeated == 1


def test_an_event_that_was_sent_twice_is_repeated_though_the_client_dropped_it() -> None:
    log = good_log()
    got = received(log)
    got.wire_repeats = 3
    assert judge(got, LogEnd("e", log)).repeated == 3
    got.add(Notice("reset", {"reason": "trimmed", "offset": 0}))
    assert judge(got, LogEnd("e", log)).repeated == 0


def test_an_event_of_somebody_else_is_foreign() -> None:
    log = good_log()
    got = received(log)
    got.items[3] = replace(got.events[3], user_id="bob")
    assert judge(got, LogEnd("e", log)).foreign == 1


def test_events_out_of_order_and_offsets_that_skip_are_gaps() -> None:
    log = good_log()
    assert judge(received([log[1], log[0], *log[2:]]), LogEnd("e", log)).unexplained_gaps == 1
    got = received(log)
    got.wire_holes = 1
    assert judge(got, LogEnd("e", log)).unexplained_gaps == 1
    holed = [entry for entry in log if entry.offset != 4]
    assert judge(received(holed), LogEnd("e", holed)).unexplained_gaps == 1


def test_a_log_that_lost_what_was_given_to_a_user_is_found_unless_it_said_so() -> None:
    log = good_log()
    got = received([*log, committed(7, "run_accepted", "run-2")])
    assert judge(got, LogEnd("e", log)).lost == 1
    got.add(Notice("reset", {"reason": "event_mismatch", "offset": 0}))
    assert judge(got, LogEnd("e", log)).good


def test_a_run_without_its_end_or_with_two_is_found() -> None:
    log = good_log()
    assert judge(received(log[:-1]), LogEnd("e", log[:-1])).runs_without_end == 1
    twice = [*log, committed(7, "run_completed", status="SUCCEEDED")]
    assert judge(received(twice), LogEnd("e", twice)).runs_without_end == 1


def test_a_run_that_was_accepted_and_is_not_in_the_log_is_found() -> None:
    log = good_log()
    assert judge(received(log), LogEnd("e", log), ["run-1", "run-9"]).runs_without_end == 1


def test_a_step_that_was_acknowledged_and_is_not_in_the_log_is_lost_unless_it_was_left_out_and_said_so() -> None:
    log = good_log()
    short = [entry._replace(offset=n, event_id=f"evt-{n}") for n, entry in enumerate(log[:2] + log[3:], 1)]
    assert judge(received(short), LogEnd("e", short)).lost == 1
    short[2] = short[2]._replace(data=json.dumps({"number": 2, "shed": 1}))
    assert judge(received(short), LogEnd("e", short)).good


def test_events_after_a_run_s_end_are_found() -> None:
    log = good_log()
    late = [*log, committed(7, "agent_thinking")]
    assert not judge(received(late), LogEnd("e", late)).good


def test_a_lossy_store_whose_log_is_whole_needs_no_word() -> None:
    log = good_log()
    assert judge(received(log), LogEnd("e", log), ["run-1"], lossy=True).good


@pytest.mark.parametrize("kept", range(6))
def test_a_lossy_store_that_lost_the_end_of_a_run_unseen_must_have_said_so(kept: int) -> None:
    log = good_log()[:kept]
    got = received(log)
    assert judge(got, LogEnd("e", log), ["run-1"], lossy=True).lost
    got.add(Notice("reset", {"reason": "epoch_changed", "offset": kept}))
    assert judge(got, LogEnd("e", log), ["run-1"], lossy=True).good


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_a_lossy_store_that_lost_a_step_unseen_must_have_said_so(status: str) -> None:
    log = good_log()
    log[-1] = log[-1]._replace(data=json.dumps({"status": status}))
    short = [entry._replace(offset=n, event_id=f"evt-{n}") for n, entry in enumerate(log[:2] + log[3:], 1)]
    assert judge(received(short), LogEnd("e", short), ["run-1"], lossy=True).lost
    short.insert(3, committed(4, "log_gap"))
    told = [entry._replace(offset=n, event_id=f"evt-{n}") for n, entry in enumerate(short, 1)]
    assert judge(received(told), LogEnd("e", told), ["run-1"], lossy=True).good


def test_a_lossy_store_that_lost_what_a_user_had_been_given_must_have_said_so() -> None:
    log = good_log()
    got = received(good_log("run-9"))
    later = [entry._replace(event_id=f"new-{entry.offset}") for entry in log]
    for event in received(later).items:
        got.add(event)
    assert judge(got, LogEnd("e", later), lossy=True).lost
