"""A run's outbox on its way to the log: its first event at once, its last ones until the log has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from carrel.errors import CarrelError, SealedLogError, StaleFenceError, UnavailableError
from servicekit.logs import get_logger
from services.execution.domain.ports import OutboxChannel
from services.execution.domain.services import RunServices
from services.execution.models import OutboxEvent, RunRecord, RunRef

__all__ = ["OutboxRelay"]

_log = get_logger("execution.relay")


class OutboxRelay:
    """Relays one run's outbox. The rows are in the store already, so nothing depends on this object's life."""

    def __init__(self, run: RunRecord, services: RunServices) -> None:
        self._run = run
        self._services = services
        self._channel: OutboxChannel | None = None
        self._sending = asyncio.Lock()
        self._closing = False

    @property
    def ref(self) -> RunRef:
        """The run."""
        return self._run.ref

    async def send(self, events: Sequence[OutboxEvent]) -> None:
        """Send events from memory, without waiting for the log; what goes wrong is mended by ``close``."""
        async with self._sending:
            if self._channel is None and events[0].number > 1:
                return  # those before it may not be in the log yet: `close` sends all, in order
            try:
                channel = self._channel or self._open()
                for event in events:
                    await channel.emit(event)
            except CarrelError as error:
                _log.warning("outbox event not sent", run_id=self.ref.run_id, code=error.code)
                await self.aclose()  # so that `close` begins anew with what the store has

    async def begun(self) -> None:
        """Wait until the log has the run's first event, so that no stage's event comes before it.

        Returns, too, when ``close`` takes over. Retries for ever: with the log away, no stage could end anyway.

        Raises:
            StaleFenceError: Somebody newer holds the run.
        """
        delay = self._services.options.retry_first_s
        while not self._closing:
            try:
                await self._settle()
                return
            except StaleFenceError:
                raise
            except CarrelError as error:
                _log.warning("a run's first event is not in the log yet", run_id=self.ref.run_id, code=error.code)
                await self.aclose()
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._services.options.retry_max_s)

    async def close(self) -> None:
        """See to it that the log has the terminal event, then make the run's state terminal. Retries for ever."""
        self._closing = True
        delay = self._services.options.retry_first_s
        began = time.perf_counter()
        while True:
            try:
                await self._settle()
                if await self._services.store.close_run(self.ref):
                    self._services.metrics.layer("bridge_integration", (time.perf_counter() - began) * 1000)
                break
            except StaleFenceError:
                # Somebody newer holds the run and relays its outbox.
                break
            except CarrelError as error:
                if not isinstance(error, UnavailableError):
                    _log.error("the log does not take a run's last events", error=error, run_id=self.ref.run_id)
                await self.aclose()
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._services.options.retry_max_s)
        await self.aclose()
        self._services.changes.notify(self.ref.user, self.ref.run_id)

    async def aclose(self) -> None:
        """Let go of the channel. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()

    async def _settle(self) -> None:
        async with self._sending:
            channel = self._channel
            if channel is None:
                events = await self._services.store.outbox(self.ref.user, self.ref.run_id)
                channel = self._open()
                for event in events:
                    await channel.emit(event)
        try:
            await channel.settled()
        except SealedLogError:
            # Only a terminal event seals a run's log, and only this outbox writes one.
            return

    def _open(self) -> OutboxChannel:
        began = time.perf_counter()
        self._channel = self._services.sink.outbox(self._run.identity, self._run.fence, self._run.deadline_at)
        self._services.metrics.layer("websocket_emitter", (time.perf_counter() - began) * 1000)
        return self._channel
