"""Where a run's time goes: whatever happens, the parts add up to the whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.execution.domain.timing import Part, RunClock, RunTimings
from services.execution.models import UserKey

ADA = UserKey("ada")


@dataclass
class Hands:
    """A clock that is moved by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


STEPS = st.one_of(
    st.tuples(st.just("wait"), st.floats(0, 10)),
    st.tuples(st.just("enter"), st.sampled_from(Part)),
    st.tuples(st.just("move"), st.tuples(st.sampled_from(Part), st.sampled_from(Part), st.floats(-5, 20))),
    st.tuples(st.just("share"), st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))),
    st.tuples(st.just("decide"), st.none()),
)


@given(st.lists(STEPS, max_size=40))
def test_the_parts_are_the_whole_whatever_happens(steps: list[tuple[str, object]]) -> None:
    hands = Hands()
    clock = RunClock(Part.ADMISSION, 0.5, hands)
    for step, argument in steps:
        match step, argument:
            case "wait", float(seconds):
                hands.now += seconds
            case "enter", Part() as part:
                clock.enter(part)
            case "move", (Part() as source, Part() as target, float(seconds)):
                clock.move(source, target, seconds)
            case "share", (float(wait_s), float(emitter_s), float(bridge_s)):
                clock.share(wait_s, emitter_s, bridge_s)
            case "decide", _:
                clock.decide()
    parts = clock.so_far()
    assert sum(parts.values()) == pytest.approx(0.5 + hands.now - 100.0)
    assert min(parts.values()) >= -1e-9


def test_a_stage_in_its_parts() -> None:
    hands = Hands()
    clock = RunClock(Part.ADMISSION, 0.01, hands)
    clock.enter(Part.AGENT_INSTANCE)
    hands.now += 0.1
    clock.enter(Part.AGENT)
    hands.now += 1.0
    clock.move(Part.AGENT, Part.DELIVERY, 0.2)
    clock.share(0.2, 0.15, 0.05)
    clock.decide()
    hands.now += 0.3
    clock.enter(Part.QUEUE)  # what an attempt still does after the outcome is no part of the run
    clock.close()
    hands.now += 100.0
    assert {part.value: round(seconds, 6) for part, seconds in clock.so_far().items() if seconds} == {
        "admission": 0.01,
        "agent_instance": 0.1,
        "agent": 0.8,
        "delivery": pytest.approx(0.35),
        "bridge_integration": 0.05,
        "websocket_emitter": pytest.approx(0.1),
    }


def test_a_lost_attempt_takes_its_time_with_it() -> None:
    hands = Hands()
    clock = RunClock(Part.EXECUTION_ENGINE, 0.0, hands)
    hands.now += 1
    before = clock.so_far()
    clock.enter(Part.AGENT)
    hands.now += 5
    clock.lose(before)
    parts = clock.so_far()
    assert parts[Part.LOST] == 5
    assert parts[Part.AGENT] == 0
    assert parts[Part.EXECUTION_ENGINE] == 1


def test_a_run_is_told_once_at_its_end_and_the_oldest_ended_ones_are_forgotten() -> None:
    told: list[float] = []
    timings = RunTimings(lambda parts: told.append(sum(parts.values())), kept=3)
    for number in range(5):
        timings.admitted(ADA, f"run-{number}", 1.0)
        if number != 0:
            timings.close(ADA, f"run-{number}")
            timings.close(ADA, f"run-{number}")
    assert len(told) == 4
    assert timings.known(ADA, "run-0") is not None, "it has not ended"
    assert timings.known(ADA, "run-1") is None
    assert timings.known(UserKey("bob"), "run-4") is None
