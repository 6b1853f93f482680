"""The table of ``carrel run --timing``."""

from __future__ import annotations

from typing import Any

from carrel.cli.timing import REST, Timing, fetch_timing, timing_table


def body(complete: bool = True) -> dict[str, Any]:
    return {"timing": {"parts_ms": {"admission": 2.0, "agent": 90.0}, "total_ms": 92.0, "complete": complete}}


class Told:
    """Runs as they are told, one answer after the other, the last one again and again."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def run(self, run_id: str) -> dict[str, Any]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def test_the_table_names_what_is_left_and_adds_up() -> None:
    timing = await fetch_timing(Told(body()), "run-1", 0.1)
    assert timing is not None
    assert timing.parts_ms == {"admission": 2.0, "agent": 90.0, REST: 8.0}
    lines = timing_table(timing)
    assert lines[0].split() == ["admission", "2.0", "ms", "2", "%", "until", "the", "run", "was", "durable"]
    assert lines[-1].split()[:3] == ["sum", "100.0", "ms"]
    assert timing.to_json() == {"parts_ms": {"admission": 2.0, "agent": 90.0, REST: 8.0}, "wall_ms": 100.0}


async def test_it_waits_until_the_run_has_come_to_its_end() -> None:
    told = Told({}, body(complete=False), body())
    assert await fetch_timing(told, "run-1", 0.1) is not None
    assert told.asked == 3


def test_execution_that_goes_on_after_the_last_event_leaves_nothing() -> None:
    late = {"parts_ms": {"admission": 2.0, "agent": 90.0, "websocket_emitter": 4.0, "delivery": 1.0}}
    timing = Timing.of(late, 0.0945)
    assert timing.parts_ms == {"admission": 2.0, "agent": 90.0, "websocket_emitter": 2.5, "delivery": 0.0, REST: 0.0}
    assert sum(timing.parts_ms.values()) == timing.wall_ms
    # The run began before this request: nothing here can explain that, and nothing is made up.
    assert Timing.of(late, 0.05).parts_ms["delivery"] == 0.0
    assert Timing.of(body()["timing"], 0.09).parts_ms[REST] == 0.0
