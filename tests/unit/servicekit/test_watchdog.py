"""The watch over the event loop, on a clock that the test moves."""

import logging

import pytest

from servicekit.watchdog import watch_loop


class OverError(Exception):
    """There are no more wakes."""


async def told(caplog: pytest.LogCaptureFixture, *wakes_late_by: float) -> list[dict[str, object]]:
    """The fields of the lines that so many wakes bring, each late by so much."""
    now, late = 100.0, iter(wakes_late_by)

    async def sleep(seconds: float) -> None:
        nonlocal now
        try:
            now += seconds + next(late)
        except StopIteration:
            raise OverError from None

    with caplog.at_level(logging.WARNING), pytest.raises(OverError):
        await watch_loop(sleep=sleep, clock=lambda: now)
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == "event loop was held up"]


async def test_small_delays_are_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    assert await told(caplog, 0.0, 0.5, 0.99, 0.0) == []


async def test_second_or_more_is_told_at_once_with_how_long_it_was(caplog: pytest.LogCaptureFixture) -> None:
    assert await told(caplog, 0.0, 2.5) == [{"seconds": 2.5, "times": 1}]


async def test_many_in_a_row_make_one_line_in_ten_seconds_and_none_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet = [0.0] * 40
    assert await told(caplog, 2.0, 1.5, 3.0, *quiet, *quiet) == [
        {"seconds": 2.0, "times": 1},
        {"seconds": 3.0, "times": 2},
    ]
