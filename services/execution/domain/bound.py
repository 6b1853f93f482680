"""Runs that live only as long as somebody who asked for them is there: who keeps which alive, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from services.execution.models import UserKey

__all__ = ["BoundRuns"]

_Key: TypeAlias = tuple[UserKey, str]


@dataclass(slots=True)
class _Bond:
    keepers: int = 0
    timer: asyncio.TimerHandle | None = None


class BoundRuns:
    """Ends a bound run when its first keeper does not come in time, and at once when its last one goes.

    Args:
        keeper_s: How long the first keeper may take.
        lapse: Called with the run and the reason once nobody keeps it alive.
        excused: Asked whether a keeper that goes now goes because of us, since this process is ending.
    """

    def __init__(
        self, keeper_s: float, lapse: Callable[[UserKey, str, str], None], excused: Callable[[], bool]
    ) -> None:
        self._keeper_s = keeper_s
        self._lapse = lapse
        self._excused = excused
        self._bonds: dict[_Key, _Bond] = {}

    def __len__(self) -> int:
        return len(self._bonds)

    def expect(self, user: UserKey, run_id: str) -> None:
        """A bound run is in this process's care from now on. Expecting it again changes nothing."""
        key = (user, run_id)
        if key not in self._bonds:
            timer = asyncio.get_running_loop().call_later(self._keeper_s, self._nobody, key)
            self._bonds[key] = _Bond(timer=timer)

    def forget(self, user: UserKey, run_id: str) -> None:
        """The run's outcome is decided, or it is in somebody else's care."""
        bond = self._bonds.pop((user, run_id), None)
        if bond is not None and bond.timer is not None:
            bond.timer.cancel()

    def stop(self) -> None:
        """End nothing more."""
        for user, run_id in list(self._bonds):
            self.forget(user, run_id)

    @contextmanager
    def keeping(self, user: UserKey, run_id: str) -> Iterator[asyncio.Future[None] | None]:
        """Somebody keeps the run alive for the length of the block. A run that is not bound is left alone."""
        bond = self._bonds.get((user, run_id))
        if bond is None:
            yield None
            return
        bond.keepers += 1
        if bond.timer is not None:
            bond.timer.cancel()
            bond.timer = None
        try:
            yield None
        finally:
            bond.keepers -= 1
            # Decided meanwhile, it is another bond's or nobody's.
            if bond.keepers == 0 and self._bonds.get((user, run_id)) is bond and not self._excused():
                self._lapse(user, run_id, "its caller has gone away")

    def _nobody(self, key: _Key) -> None:
        if not self._excused():
            self._lapse(*key, f"nobody kept it alive within {self._keeper_s:g} s")
