"""Which agent_instance gets an attempt: one with many free workers, by what it last said and what went there since.

Of two taken at random the better one: several executions that know the same do not all go to the same place. Numbers
only; who asks them how they are, and who is ready at all, is told from outside.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Placement"]

# What was said longer ago than this says nothing any more.
_FRESH_S: Final = 5.0
# One that refused is passed over for this long, while there are others.
_PASSED_OVER_S: Final = 1.0


@dataclass(slots=True)
class _Place:
    """One agent_instance. ``ours`` are the attempts of this process that are there now."""

    ours: int = 0
    said_busy: int = 0
    said_ours: int = 0
    capacity: int = 0
    said_at: float = float("-inf")
    refused_at: float = float("-inf")

    def free(self, now: float) -> float:
        """Workers that are free there, as far as is known."""
        if now - self.said_at > _FRESH_S:
            return self.capacity - self.ours
        # What has begun since it spoke is not in its count yet, and what has ended is still.
        return self.capacity - max(self.ours, self.said_busy + self.ours - self.said_ours)


class Placement:
    """Chooses, over addresses; in turn while ``by_load`` says so, whatever they tell of themselves."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        dice: random.Random | None = None,
        by_load: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock = clock
        self._by_load = by_load
        self._turn = 0
        self._dice = dice or random.Random()  # noqa: S311 -- spreads load, guards nothing
        self._places: dict[str, _Place] = {}

    def choose(self, addresses: Sequence[str]) -> str:
        """The address of the next attempt.

        Args:
            addresses: Those that are ready, at least one.
        """
        now = self._clock()
        places = {address: self._at(address) for address in addresses}
        welcome = [address for address, place in places.items() if now - place.refused_at > _PASSED_OVER_S]
        candidates = welcome or list(places)
        if not self._by_load():
            self._turn += 1
            return sorted(candidates)[self._turn % len(candidates)]
        # Sampled in a random order, so that of two that are alike either may be the first.
        two = self._dice.sample(candidates, min(2, len(candidates)))
        return max(two, key=lambda address: places[address].free(now))

    def said(self, address: str, *, busy: int, capacity: int) -> None:
        """It has told how many attempts run or wait there, and how many may run."""
        place = self._at(address)
        place.said_busy, place.said_ours, place.capacity = busy, place.ours, capacity
        place.said_at = self._clock()

    def began(self, address: str) -> None:
        """An attempt goes there."""
        self._at(address).ours += 1

    def ended(self, address: str) -> None:
        """It is over."""
        self._at(address).ours -= 1

    def refused(self, address: str) -> None:
        """It would not have an attempt, or could not be reached."""
        self._at(address).refused_at = self._clock()

    def forget(self, addresses: Sequence[str]) -> None:
        """Keep what is known of these alone, and of those where attempts still are."""
        known = self._places
        self._places = {address: place for address, place in known.items() if address in addresses or place.ours}

    def _at(self, address: str) -> _Place:
        return self._places.setdefault(address, _Place())
