"""One attempt of one stage, from execution's side: what comes up is kept or answered, silence is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import singledispatchmethod
from typing import Final, TypeVar

from carrel.errors import CancelledRunError, DrainingError, StoreUnavailableError, UnavailableError
from services.execution.domain.budgets import Budgets
from services.execution.domain.coalesce import Coalescer
from services.execution.domain.errors import AgentInstanceDrainedError, AgentInstanceLostError
from services.execution.domain.ports import (
    ArtifactChunk,
    BudgetGrant,
    BudgetUse,
    CancelStage,
    Downlink,
    Heartbeat,
    JournalStored,
    RefreshTicket,
    StageAccepted,
    StageResult,
    StageStart,
    StageStream,
    Uplink,
)
from services.execution.domain.retry import insist
from services.execution.domain.services import RunServices
from services.execution.domain.silence import SilenceWatch
from services.execution.domain.timing import Part, RunClock
from services.execution.domain.uploads import Uploads
from services.execution.models import AuditEntry, JournalItem, RunRef

__all__ = ["StageSession"]

_T = TypeVar("_T")
# Of 256 KiB: while one artifact is stored, so much may wait before what comes after it does, too.
_CHUNKS: Final = 16


class StageSession:
    """Runs one attempt to its result.

    Args:
        start: What the attempt needs.
        services: What every run shares.
        budgets: What users may use of models.

    ``sent`` and ``accepted`` say how far the attempt came: whether agent_instance may have begun it, and whether it
    has said so.
    """

    def __init__(self, start: StageStart, services: RunServices, budgets: Budgets) -> None:
        self.sent = self.accepted = False
        self._start = start
        self._services = services
        self._budgets = budgets
        self._options = services.options
        self._ref = RunRef(start.identity.user, start.identity.run_id, start.fence)
        self._stream: StageStream | None = None
        self._watch: SilenceWatch | None = None
        self._cancel: CancelStage | None = None
        self._agent_before = self._timing().so_far().get(Part.AGENT, 0.0)
        self._stop_at: float | None = None
        self._refresh_at = 0.0
        self._uploads = Uploads(services.store, services.folder, self._ref, self._options.artifacts, services.clock)
        self._journal = Coalescer[JournalItem](self._save_journal, services.start, "journal")
        self._stored = Coalescer[int](self._acknowledge, services.start, "journal acknowledgements")
        self._chunks = Coalescer[ArtifactChunk](self._take_chunks, services.start, "artifacts", _CHUNKS)
        self._audit = Coalescer[AuditEntry](self._save_audit, services.start, "audit")
        self._uses = Coalescer[BudgetUse](self._save_uses, services.start, "budget")

    async def run(self) -> StageResult:
        """Open the attempt and see it through.

        Raises:
            AgentInstanceLostError: It broke off, or gave no sign of life for ``silence_s``; or, drained, gave it back.
            DrainingError: agent_instance is ending and has not begun it.
            CarrelError: agent_instance refused it, or the store what it has to keep.
        """
        loop = asyncio.get_running_loop()
        self._timing().enter(Part.AGENT_INSTANCE)
        self._refresh_at = loop.time() + self._options.ticket_refresh_s
        try:
            async with SilenceWatch(self._options.silence_s) as watch:
                self._watch = watch
                if self._stop_at is not None:
                    watch.end_at(self._stop_at)
                async with self._services.host.run_stage(self._start) as stream:
                    self._stream, self.sent = stream, True
                    if self._cancel is not None:
                        await stream.send(self._cancel)
                    result = await self._listen(stream)
        except TimeoutError:
            if self._watch is None or not self._watch.expired:  # another clock's
                raise
            raise AgentInstanceLostError(
                f"agent_instance gave no sign of life for {self._options.silence_s:g} s"
            ) from None
        except StoreUnavailableError:
            raise
        except (UnavailableError, CancelledRunError) as error:
            if isinstance(error, DrainingError):
                if not self.accepted:
                    raise
                raise AgentInstanceDrainedError(error.message) from error
            raise AgentInstanceLostError(f"agent_instance broke off: {error.message}") from error
        finally:
            # A finished watch can't be set anew, and a cancel may come at any moment.
            self._stream = self._watch = None
        self._told(result)
        await self._chunks.drained()
        await self._journal.drained()
        await self._audit.drained()
        await self._uses.drained()
        return result

    async def cancel(self, reason: str) -> None:
        """Ask the attempt to end, and end it when the grace is over. Returns once asked."""
        grace_s = self._options.cancel_grace_s
        self._cancel = CancelStage(reason, grace_s)
        # A little more than the grace: its last word, that it has ended, should still be heard.
        self._stop_at = asyncio.get_running_loop().time() + grace_s + 0.5
        if self._watch is not None:
            self._watch.end_at(self._stop_at)
        if self._stream is not None:
            await self._stream.send(self._cancel)

    async def _listen(self, stream: StageStream) -> StageResult:
        assert self._watch is not None, "set before"
        async for message in stream:
            if isinstance(message, StageResult):
                return message
            self._watch.heard()
            self._check_kept()
            await self._take(message)
        raise AgentInstanceLostError("agent_instance ended the attempt without a result")

    def _check_kept(self) -> None:
        """End an attempt of which something cannot be kept: its agent may wait for that, and says nothing more."""
        for kept in (self._journal, self._stored, self._chunks, self._audit, self._uses):
            kept.check()

    @singledispatchmethod
    async def _take(self, message: Uplink) -> None:
        """What this version does not know."""

    @_take.register
    async def _(self, message: Heartbeat) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._refresh_at:
            self._refresh_at = now + self._options.ticket_refresh_s
            await self._send(RefreshTicket())

    @_take.register
    async def _(self, message: StageAccepted) -> None:
        self.accepted = True
        self._services.metrics.layer("agent_instance", message.creation_s * 1000)
        self._timing().enter(Part.AGENT)

    @_take.register
    async def _(self, message: JournalItem) -> None:
        await self._journal.add(message)

    @_take.register
    async def _(self, message: AuditEntry) -> None:
        await self._audit.add(message)

    @_take.register
    async def _(self, message: BudgetUse) -> None:
        await self._uses.add(message)

    @_take.register
    async def _(self, message: ArtifactChunk) -> None:
        # Not waited for: an agent waits for the acknowledgement of a journal entry behind it.
        await self._chunks.add(message)

    def _timing(self) -> RunClock:
        return self._services.timings.of(self._ref.user, self._ref.run_id)

    def _told(self, result: StageResult) -> None:
        """Where the time went since the agent began: its own is known, and the wait for the log in its parts."""
        timing = self._timing()
        before = timing.so_far().get(Part.AGENT, 0.0)
        timing.move(Part.AGENT, Part.DELIVERY, result.log_wait_s)
        timing.share(result.log_wait_s, result.emitter_s, result.bridge_s)
        spent = before - self._agent_before - result.log_wait_s
        timing.move(Part.AGENT, Part.AGENT_INSTANCE, spent - result.agent_s)
        timing.enter(Part.CHECKPOINT)

    async def _send(self, message: Downlink) -> None:
        if self._stream is not None:
            await self._stream.send(message)

    async def _take_chunks(self, chunks: Sequence[ArtifactChunk]) -> None:
        for chunk in chunks:
            answer = await self._uploads.take(chunk)
            if answer is not None:
                await self._send(answer)

    async def _save_journal(self, entries: Sequence[JournalItem]) -> None:
        store, stage = self._services.store, self._start.index
        if await self._insist(lambda: store.save_journal(self._ref, stage, entries)):
            # In a task of its own: what has come meanwhile is to be stored at once.
            await self._stored.add(max(entry.number for entry in entries))
        # Else the run is over or somebody newer's: whoever made it so ends this attempt, and until then its agent,
        # which gets no acknowledgement, does not go on.

    async def _acknowledge(self, numbers: Sequence[int]) -> None:
        await self._send(JournalStored(max(numbers)))

    async def _save_audit(self, entries: Sequence[AuditEntry]) -> None:
        await self._insist(lambda: self._services.store.save_audit(entries))

    async def _save_uses(self, uses: Sequence[BudgetUse]) -> None:
        used = sum(use.input_tokens + use.output_tokens for use in uses)
        await self._send(BudgetGrant(await self._budgets.use(self._ref, self._start.identity, used)))

    async def _insist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        return await insist(
            write, first_s=self._options.retry_first_s, max_s=self._options.retry_max_s, run_id=self._ref.run_id
        )
