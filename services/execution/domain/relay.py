"""A run's outbox on its way to the log: its first event at once, its last ones until the log has them.

One relay for a run in each process, whatever drives the run, since the log numbers a run's own events by one producer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from carrel.errors import CarrelError, SealedLogError, StaleFenceError, UnavailableError
from servicekit.logs import get_logger
from servicekit.telemetry.names import of_run
from services.execution.domain.ports import OutboxChannel
from services.execution.domain.services import RunServices
from services.execution.domain.timing import Part
from services.execution.models import OutboxEvent, RunRecord, RunRef, UserKey

__all__ = ["OutboxRelay", "Relays"]

_log = get_logger("execution.relay")


class OutboxRelay:
    """Relays one run's outbox. The rows are in the store already, so nothing depends on this object's life.

    The log refuses a fence lower than the highest that it has seen of a run. So with each new fence (``follow``) the
    channel is opened anew and sends the whole outbox, from number 1: what the log has, it acknowledges and ignores.
    """

    def __init__(self, run: RunRecord, services: RunServices, relays: Relays | None = None) -> None:
        self._run = run
        self._services = services
        self._relays = relays
        self._channel: OutboxChannel | None = None
        self._sending = asyncio.Lock()
        self._closing = False
        self._generation = 0

    @property
    def ref(self) -> RunRef:
        """The run."""
        return self._run.ref

    async def follow(self, run: RunRecord) -> None:
        """Go on under the run's present fence, which must be held by this process; a lower one changes nothing."""
        self._generation += 1
        if run.fence <= self._run.fence:
            return
        async with self._sending:
            if run.fence > self._run.fence:
                self._run = run
                await self._drop()

    async def send(self, events: Sequence[OutboxEvent]) -> None:
        """Send events from memory, without waiting for the log; what goes wrong is mended by ``begun`` or ``close``."""
        if not events:
            return
        async with self._sending:
            if self._channel is None and events[0].number > 1:
                return  # those before it may not be in the log yet: `begun` and `close` send all, in order
            try:
                channel = self._channel or self._open()
                for event in events:
                    await channel.emit(event)
            except CarrelError as error:
                _log.warning("outbox event not sent", run_id=self.ref.run_id, code=error.code)
                await self._drop()  # so that the next one begins anew with what the store has

    async def begun(self) -> None:
        """Wait until the log has the run's own events so far, so that no stage's event comes before them.

        Returns, too, when ``close`` takes over. Retries for ever: with the log away, no stage could end anyway.

        Raises:
            StaleFenceError: Somebody newer holds the run.
        """
        delay = self._services.options.retry_first_s
        while not self._closing:
            fence = self._run.fence
            try:
                with self._services.timing(self._run).spent(Part.DELIVERY):
                    await self._settle()
                return
            except StaleFenceError:
                if fence == self._run.fence:
                    raise
            except CarrelError as error:
                if fence != self._run.fence:
                    continue  # `follow` has taken the channel away
                _log.warning("a run's own events are not in the log yet", run_id=self.ref.run_id, code=error.code)
                await self.aclose()
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._services.options.retry_max_s)

    async def rest(self) -> None:
        """``begun``, then let go of the channel: nothing more is to come for a while, unless somebody follows."""
        generation = self._generation
        try:
            await self.begun()
        except StaleFenceError:
            _log.info("somebody newer relays a run's events", run_id=self.ref.run_id)
        if generation == self._generation and not self._closing:
            await self.aclose()

    async def close(self) -> None:
        """See to it that the log has the terminal event, then make the run's state terminal. Retries for ever."""
        if self._closing:
            return
        self._closing = True
        identity = self._run.identity
        with self._services.tracing.span("last events", parent=identity.traceparent) as span:
            if span.recording:
                span.set(of_run(identity.user, identity.run_id))
            await self._bring_to_end()
        await self.retire()
        self._services.changes.notify(self.ref.user, self.ref.run_id)

    async def _bring_to_end(self) -> None:
        delay = self._services.options.retry_first_s
        began = time.perf_counter()
        while True:
            fence = self._run.fence
            try:
                await self._settle()
                # Its user has everything now; what is left is for the store.
                self._services.timings.close(self.ref.user, self.ref.run_id)
                if await self._services.store.close_run(self.ref):
                    self._services.metrics.layer("bridge_integration", (time.perf_counter() - began) * 1000)
                    break
                if fence == self._run.fence:
                    break
            except StaleFenceError:
                if fence == self._run.fence:
                    break  # somebody newer holds the run and relays its outbox
            except CarrelError as error:
                if fence != self._run.fence:
                    continue
                if not isinstance(error, UnavailableError):
                    _log.error("the log does not take a run's last events", error=error, run_id=self.ref.run_id)
                await self.aclose()
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._services.options.retry_max_s)

    async def retire(self) -> None:
        """Let go of the run."""
        if self._relays is not None:
            self._relays.forget(self)
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the channel. Idempotent."""
        await self._drop()

    async def _drop(self) -> None:
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
        began = time.perf_counter()
        try:
            await channel.settled()
            self._services.timing(self._run).share(time.perf_counter() - began, *channel.hops)
        except SealedLogError:
            # Only a terminal event seals a run's log, and only this outbox writes one.
            return

    def _open(self) -> OutboxChannel:
        began = time.perf_counter()
        self._channel = self._services.sink.outbox(self._run.identity, self._run.fence, self._run.deadline_at)
        self._services.metrics.layer("websocket_emitter", (time.perf_counter() - began) * 1000)
        return self._channel


class Relays:
    """The relays of this process, one for a run: two producers of one id would number over each other."""

    def __init__(self, services: RunServices) -> None:
        self._services = services
        self._relays: dict[tuple[UserKey, str], OutboxRelay] = {}

    def of(self, run: RunRecord) -> OutboxRelay:
        """The run's relay; after a step that raised the fence it must be told to ``follow``."""
        key = (run.identity.user, run.identity.run_id)
        relay = self._relays.get(key)
        if relay is None:
            relay = self._relays[key] = OutboxRelay(run, self._services, self)
        return relay

    def forget(self, relay: OutboxRelay) -> None:
        """The relay is done; one that took its place since stays."""
        key = (relay.ref.user, relay.ref.run_id)
        if self._relays.get(key) is relay:
            del self._relays[key]
