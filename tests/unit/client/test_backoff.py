"""Jitter, bounded in time and number."""

from __future__ import annotations

from carrel.client.backoff import Backoff


def test_waits_are_spread_below_a_bound_that_doubles_up_to_the_longest() -> None:
    backoff = Backoff(attempts=50, first_s=0.1, longest_s=1.0)
    for failures, bound in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (49, 1.0)):
        waits = [backoff.delay_s(failures) or 0.0 for _ in range(300)]
        assert max(waits) <= bound
        assert max(waits) > 0.8 * bound
        assert min(waits) < 0.2 * bound


def test_gives_up_at_the_last_attempt() -> None:
    assert Backoff(attempts=3).delay_s(2) is not None
    assert Backoff(attempts=3).delay_s(3) is None
    assert Backoff(attempts=10**9).delay_s(10**6) is not None


def test_waits_at_least_as_long_as_the_peer_asks() -> None:
    assert all((Backoff().delay_s(1, 2.0) or 0.0) >= 2.0 for _ in range(50))


def test_a_steady_part_is_always_waited_and_bounds_grow_by_the_factor() -> None:
    backoff = Backoff(attempts=9, first_s=0.5, longest_s=10.0, factor=4.0, steady=0.5)
    for failures, bound in ((1, 0.5), (2, 2.0), (3, 8.0), (4, 10.0)):
        waits = [backoff.delay_s(failures) or 0.0 for _ in range(300)]
        assert min(waits) >= bound / 2
        assert 0.9 * bound < max(waits) <= bound
