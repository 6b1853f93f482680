"""Runs that live only as long as somebody who asked for them is there, where that may be at any of several processes.

Each process notes in the store which bound runs it has a caller of. Whoever lets the last one go ends the run, wherever
it runs. Its holder looks now and then whether it is kept, since a process that dies lets go of nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from carrel.errors import CarrelError
from servicekit.logs import get_logger
from services.execution.domain.retry import insist
from services.execution.domain.services import RunServices
from services.execution.models import UserKey

__all__ = ["SharedBoundRuns"]

_Key: TypeAlias = tuple[UserKey, str]
_log = get_logger("execution.bound")


@dataclass(slots=True)
class _Bond:
    timer: asyncio.TimerHandle
    was_kept: bool = False


@dataclass(slots=True)
class _Kept:
    noted: asyncio.Task[None]
    callers: int = 0


class SharedBoundRuns:
    """What ``BoundRuns`` does for one process.

    Args:
        services: The store, and the owner of tasks.
        lapse: Called with the run and the reason once nobody keeps it alive.
        excused: Asked whether a caller that goes now goes because of us, since this process is ending.
    """

    def __init__(
        self, services: RunServices, lapse: Callable[[UserKey, str, str], None], excused: Callable[[], bool]
    ) -> None:
        self._services = services
        self._keeper_s = services.options.keeper_s
        self._lapse = lapse
        self._excused = excused
        self._bonds: dict[_Key, _Bond] = {}
        self._kept: dict[_Key, _Kept] = {}

    def __len__(self) -> int:
        return len(self._bonds)

    def expect(self, user: UserKey, run_id: str) -> None:
        """A bound run is in this process's care from now on. Expecting it again changes nothing."""
        key = (user, run_id)
        if key not in self._bonds:
            self._bonds[key] = _Bond(self._look_later(key))

    def forget(self, user: UserKey, run_id: str) -> None:
        """The run's outcome is decided, or it is in somebody else's care."""
        bond = self._bonds.pop((user, run_id), None)
        if bond is not None:
            bond.timer.cancel()

    def stop(self) -> None:
        """End nothing more."""
        for user, run_id in list(self._bonds):
            self.forget(user, run_id)

    @contextmanager
    def keeping(self, user: UserKey, run_id: str) -> Iterator[asyncio.Future[None]]:
        """Somebody keeps the run alive for the length of the block, and the other processes know it once what is given
        is done. A run that is not bound is left alone."""
        key = (user, run_id)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept(self._services.start(self._note(key), "keeper of a run"))
        kept.callers += 1
        try:
            yield kept.noted
        finally:
            kept.callers -= 1
            if kept.callers == 0:
                del self._kept[key]
                # One that leaves since this process ends comes back at another; until then the note stays, which is
                # worth nothing once this process's lease is over.
                if not self._excused():
                    _ = self._services.start(self._let_go(key, kept.noted), "keeper of a run")

    async def _note(self, key: _Key) -> None:
        options = self._services.options
        store = self._services.store
        await insist(lambda: store.keep(*key), first_s=options.retry_first_s, max_s=options.retry_max_s, run_id=key[1])

    async def _let_go(self, key: _Key, noted: asyncio.Task[None]) -> None:
        await asyncio.wait([noted])
        if key in self._kept:  # somebody else came meanwhile, under whose name the note stays
            return
        try:
            last = await self._services.store.let_go(*key)
        except CarrelError as error:
            _log.warning("a caller's end could not be noted", code=error.code, run_id=key[1])
            return  # the holder finds out when this process's lease, or the run's time, is over
        if last and key not in self._kept:
            self._lapse(*key, "its caller has gone away")

    def _look_later(self, key: _Key) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._keeper_s, self._look_soon, key)

    def _look_soon(self, key: _Key) -> None:
        _ = self._services.start(self._look(key), "look for a run's keeper")

    async def _look(self, key: _Key) -> None:
        try:
            kept = key in self._kept or await self._services.store.is_kept(*key)
        except CarrelError:
            kept = True  # as long as nobody can say otherwise
        bond = self._bonds.get(key)
        if bond is None:
            return
        if kept or bond.was_kept:
            # A caller whose process has ended gets the time that the first one gets, to come back at another.
            bond.was_kept = kept
            bond.timer = self._look_later(key)
        elif not self._excused():
            self._lapse(*key, f"nobody kept it alive within {self._keeper_s:g} s")
