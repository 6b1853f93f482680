"""How long to wait before trying again: jitter under a bound that grows, for a bounded number of times."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Args:
    attempts: How many tries in a row may fail, the first one included.
    first_s: Bound of the first wait.
    longest_s: Bound of every wait.
    factor: How much longer each bound is than the one before.
    steady: The part of a bound that is always waited, 0 to 1; the rest is jitter.
    """

    attempts: int = 12
    first_s: float = 0.1
    longest_s: float = 5.0
    factor: float = 2.0
    steady: float = 0.0

    def delay_s(self, failures: int, at_least_s: float = 0.0) -> float | None:
        """Seconds to wait after so many failures in a row; None when it is time to give up.

        Args:
            failures: 1 after the first failure.
            at_least_s: What the peer asked for; the jitter comes on top of it.
        """
        if failures >= self.attempts:
            return None
        # Past the 30th power every bound is the longest one; larger powers only overflow.
        bound = min(self.longest_s, self.first_s * self.factor ** min(failures - 1, 30))
        return at_least_s + random.uniform(self.steady * bound, bound)  # noqa: S311 -- spreads clients, keeps no secret
