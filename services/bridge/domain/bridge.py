"""The bridge itself: the log, the hub and the monitor as one thing that the servicer talks to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from carrel.errors import UnavailableError, UnknownRunError
from servicekit.tasks import FailureHandler, TaskOwner, end_service
from servicekit.telemetry.buckets import Buckets
from services.bridge.domain.hub import Hub, HubOptions
from services.bridge.domain.integration import IntegrationMonitor, RecoveryOptions
from services.bridge.domain.reading import ReadQuery, read_events
from services.bridge.models import Append, AppendResult, IntegrationState, ReadItem, RunInfo
from services.bridge.store import EventLog

__all__ = ["Bridge", "Counts"]


@dataclass(slots=True)
class Counts:
    """Since the start."""

    appended: int = 0
    duplicate: int = 0
    refused: int = 0
    failed: int = 0
    # From an append's arrival to its being durable, in seconds.
    append_s: Buckets = field(default_factory=Buckets)


class Bridge:
    """``AgentWebSocketBridge`` of the documents: where runs, threads and connections meet.

    Use it as an async context manager; entering raises when the log does not work. It does not close the log.

    Args:
        log: The users' event logs.
        hub_options: Bounds of the fan-out.
        recovery: How it recovers from failures of the log.
        state_changed: Told each new ``IntegrationState``.
        on_failure: Told when a task fails by a fault of ours.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        hub_options: HubOptions | None = None,
        recovery: RecoveryOptions | None = None,
        state_changed: Callable[[IntegrationState], None] = lambda state: None,
        on_failure: FailureHandler = end_service,
    ) -> None:
        self._log = log
        self._tasks = TaskOwner(on_failure)
        self.monitor = IntegrationMonitor(log.probe, recovery, changed=state_changed)
        if log.changes is not None:
            log.changes.on_return(self.monitor.note_life)
        self.hub = Hub(log, hub_options, store_failed=self.monitor.note_failure, on_failure=on_failure)
        self.counts = Counts()

    async def __aenter__(self) -> Self:
        await self.monitor.initialize()
        _ = self._tasks.start(self.monitor.run(), "integration monitor")
        _ = self._tasks.start(self.hub.check(), "checks of positions")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.aclose()

    def publish(self, appends: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        """Append, and hand what is new to the subscribed gateways as soon as it is durable.

        Calls may follow each other without waiting; they take effect in their order.

        Raises:
            StoreUnavailableError: The bridge is not ACTIVE; or, from the future, the store failed.
            QueueFullError: Too much is waiting to be written.
        """
        self.monitor.require_active()
        began = time.perf_counter()
        try:
            future = self._log.append(appends)
        except UnavailableError as error:
            self.counts.failed += 1
            self.monitor.note_failure(error)
            raise

        def committed(done: asyncio.Future[list[AppendResult]]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is None:
                self.counts.append_s.add(time.perf_counter() - began)
                results = done.result()
                self.hub.committed(appends, results)
                self._count(appends, results)
                return
            self.counts.failed += 1
            self.hub.recheck({append.user for append in appends})
            if isinstance(error, UnavailableError):
                self.monitor.note_failure(error)

        # Callbacks run in the order in which the futures were settled: that of the commits, whoever awaits them.
        future.add_done_callback(committed)
        return future

    @property
    def commits(self) -> int:
        """Transactions of the log since its start."""
        return self._log.commits

    async def resolve_run(self, user: str, run_id: str) -> tuple[RunInfo, str]:
        """The run's row of the thread-run map, and the epoch of its offsets.

        Raises:
            UnknownRunError: The log has nothing of this run of this user.
        """
        run = await self._log.resolve_run(user, run_id)
        if run is None:
            raise UnknownRunError("the log has nothing of this run", run_id=run_id)
        return run, (await self._log.position(user)).epoch

    def read(self, query: ReadQuery) -> AsyncGenerator[ReadItem, None]:
        """Read a user's log; see ``reading.read_events``."""
        return read_events(self._log, self.hub, query)

    def _count(self, appends: Sequence[Append], results: Sequence[AppendResult]) -> None:
        counts = self.counts
        for append, result in zip(appends, results, strict=True):
            stored = len(result.events)
            counts.appended += stored
            if result.refusal is not None:
                counts.refused += 1
            elif stored < len(append.events):
                counts.duplicate += len(append.events) - stored
