"""Who wants to hear of a run's changes, in this process. Says that it changed; the store says how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from services.execution.models import TERMINAL_STATES, RunRecord, UserKey
from services.execution.store import RunStore

__all__ = ["Changes", "watch_run"]


class Changes:
    """Wakes the watchers of a run. Changes that come while a watcher is busy become one.

    Args:
        tell: Tells other processes of what has changed here.
    """

    def __init__(self, tell: Callable[[UserKey, str], None] = lambda user, run_id: None) -> None:
        self._watchers: dict[tuple[UserKey, str], set[asyncio.Event]] = {}
        self._tell = tell

    def notify(self, user: UserKey, run_id: str) -> None:
        """This process has changed the run in the store."""
        self.wake(user, run_id)
        self._tell(user, run_id)

    def wake(self, user: UserKey, run_id: str) -> None:
        """The run has changed in the store."""
        for event in self._watchers.get((user, run_id), ()):
            event.set()

    def wake_all(self) -> None:
        """Let every watcher look, for example since the service is draining."""
        for events in self._watchers.values():
            for event in events:
                event.set()

    @contextmanager
    def watching(self, user: UserKey, run_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change from now on."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault((user, run_id), set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop((user, run_id), None)


def _never(_run: RunRecord) -> bool:
    return False


async def watch_run(
    store: RunStore,
    changes: Changes,
    user: UserKey,
    run_id: str,
    *,
    poll_s: float = 5.0,
    stop: Callable[[RunRecord], bool] = _never,
) -> AsyncGenerator[RunRecord]:
    """The run as it is now, then after each change, the terminal state last; nothing when there is no such run.

    ``poll_s``: how often to look although nothing was heard, for runs that another replica drives. ``stop``: asked at
    each wake whether to end before the run does.
    """
    seen: RunRecord | None = None
    with changes.watching(user, run_id) as changed:
        while True:
            changed.clear()  # before reading: a change after it is not missed
            run = await store.get_run(user, run_id)
            if run is None:
                return
            if run != seen:
                seen = run
                yield run
            if run.state in TERMINAL_STATES or stop(run):
                return
            try:
                async with asyncio.timeout(poll_s):
                    await changed.wait()
            except TimeoutError:
                continue
