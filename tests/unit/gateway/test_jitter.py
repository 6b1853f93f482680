"""Those who are sent away together do not come back together, whatever sent them away."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from carrel.errors import CarrelError
from gateway.close_codes import CloseCode
from gateway.hub import Hub
from gateway.jitter import retry_ms, window_ms
from gateway.login import Login
from gateway.sockets import Ending
from gateway.sse import last_words


class Told:
    login = Login("user", 4e9)

    def __init__(self) -> None:
        self.waits: list[int | None] = []

    def wake(self) -> None:
        pass

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        self.waits.append(retry_ms)


def test_the_window_grows_with_the_number_up_to_a_bound() -> None:
    assert [window_ms(number) for number in (0, 400, 3_000, 10_000)] == [1_000, 1_000, 6_000, 15_000]
    assert window_ms(3, least_ms=250) == 250
    drawn = [retry_ms(100) for _ in range(5_000)]
    assert (min(drawn), max(drawn)) == (0, 100), "full jitter: the whole window"


def test_all_connections_of_a_gateway_are_sent_away_for_different_times() -> None:
    hub = Hub()
    _held: list[Any] = []
    listeners = [Told() for _ in range(2_000)]
    for number, listener in enumerate(listeners):
        _held.append(hub.join(Login(f"user{number % 500}", 4e9), listener))
    hub.end_all(CloseCode.UPSTREAM)
    waits = sorted(listener.waits[0] or 0 for listener in listeners)
    assert 0 <= waits[0] < 100
    assert 3_900 < waits[-1] <= 4_000, "2 ms for each of them"
    assert len(set(waits)) > 1_000


@pytest.mark.parametrize("code", [code for code in CloseCode if code.reconnect])
def test_every_code_that_says_come_back_says_when_not_the_same_for_everybody(code: CloseCode) -> None:
    waits = {Ending(code).retry_ms for _ in range(100)}
    assert len(waits) > 50
    assert waits <= set(range(1_001))
    streams = {_wait_of(last_words(Ending(code))) for _ in range(100)}
    assert len(streams) > 50
    assert streams <= set(range(1_000, 2_001)), "an EventSource waits as long each time: never next to nothing"


def _wait_of(words: bytes) -> int:
    first, _, data = words.rstrip().split(b"\n")
    wait = int(first.removeprefix(b"retry: "))
    assert orjson.loads(data.removeprefix(b"data: "))["retry_ms"] == wait
    return wait
