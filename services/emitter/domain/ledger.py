"""What has been taken of each producer, what the log has acknowledged, and who is to hear of it.

The log alone decides what is a duplicate and what a gap. This memory only spares it work: repeats of what is on its way
are not queued twice, repeats of what is known to be logged are acknowledged at once, and a hole within what is on its
way is refused at once. It may be lost at any moment (a restart) without any harm. No protobuf, no clock of its own.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from carrel.errors import EventGapError, IdentityMismatchError, QueueFullError, StaleFenceError
from services.emitter.domain.contract import emitter_contract
from services.emitter.domain.fairness import FairQueue
from services.emitter.models import Batch, Limits, Listener, Offer, ProducerState, Refused, Verdict, VerdictKind

__all__ = ["Ledger"]

_STRICT_S: Final = 1.0
_RETRY_S: Final = 0.05


class Ledger:
    """The producers whose events pass here, over the users' queues."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._producers: dict[tuple[str, str], ProducerState] = {}
        self.queue = FairQueue(limits)
        self.contract = emitter_contract()

    def __len__(self) -> int:
        return len(self._producers)

    def offer(self, offer: Offer, listener: Listener, now: float) -> Verdict:
        """What is to be done with an item; registers the listener for what becomes of it.

        Raises:
            EventGapError: Numbers are missing before it; ``last_number`` says where to go on.
            IdentityMismatchError: The producer belongs to another run.
            StaleFenceError: A newer holder of the run has been here.
            QueueFullError: Too many producers are known.
        """
        producer = self._producers.get((offer.user_id, offer.producer_id)) or self._meet(offer, now)
        if producer.run_id != offer.run_id:
            raise IdentityMismatchError(
                "this producer belongs to another run", advice="use a producer_id that begins with the run's id"
            )
        if offer.fence != producer.fence:
            self._succeed(producer, offer)
        producer.touched = now
        if listener not in producer.listeners:
            producer.listeners[listener] = None
            listener.producers.add(producer)
        if offer.last <= producer.acked:
            return Verdict(VerdictKind.KNOWN, producer)
        pending = bool(producer.pending)
        if (pending or now < producer.strict_until) and offer.first > producer.accepted + 1 and not offer.declares_gap:
            raise EventGapError(
                "events are missing before this item",
                advice="send again from last_number + 1",
                last_number=producer.accepted,
            )
        if pending and offer.last <= producer.accepted:
            return Verdict(VerdictKind.IN_FLIGHT, producer)
        known = producer.accepted if pending else producer.acked
        return Verdict(VerdictKind.QUEUE, producer, max(0, known + 1 - offer.first))

    def check_room(self, batch: Batch, now: float) -> None:
        """Raises:
        QueueFullError: A bound is reached; the producer is to come again with this batch.
        """
        producer = batch.producer
        bound = self.queue.full_for(producer.user, batch.count, batch.size)
        if bound:
            producer.accepted = batch.first - 1
            producer.strict_until = now + _STRICT_S
            raise QueueFullError(
                "too many events wait for the log",
                advice="send again later, from last_number + 1",
                retry_after_s=_RETRY_S,
                limit=bound,
                limit_value=getattr(self._limits, bound),
                last_number=batch.first - 1,
            )

    def queue_batch(self, batch: Batch) -> None:
        """Hold a batch for the log, after ``check_room``."""
        producer = batch.producer
        producer.pending.append(batch)
        producer.accepted = batch.last
        self.queue.push(batch)

    def acknowledged(
        self, user_id: str, producer_id: str, through: int, offset: int, epoch: str
    ) -> tuple[ProducerState | None, list[Batch]]:
        """The log has everything up to ``through``; the producer, and its batches that are done."""
        producer = self._producers.get((user_id, producer_id))
        done: list[Batch] = []
        if producer is None or through <= producer.acked:
            return producer, done
        producer.acked = through
        producer.offset, producer.epoch = offset, epoch
        producer.accepted = max(producer.accepted, through)
        pending = producer.pending
        while pending and pending[0].last <= through:
            done.append(pending.popleft())
            self.queue.release(done[-1])
        return producer, done

    def refused(self, producer: ProducerState, refused: Refused, now: float) -> None:
        """The log refused what flies of this producer: everything held is given up, save what already starts again."""
        if 0 < refused.fence < producer.fence:
            return
        kept: deque[Batch] = deque()
        dropped_first = 0
        for batch in producer.pending:
            starts_again = bool(kept) or batch.first <= refused.last_number + 1
            if refused.rewinds and starts_again and not self.queue.is_flying(batch):
                kept.append(batch)
            else:
                dropped_first = dropped_first or batch.first
                self.queue.release(batch)
        producer.pending = kept
        if kept or not refused.rewinds:
            return
        if refused.is_gap:
            # The log's own word, even where it takes back what it acknowledged before it lost its tail.
            producer.accepted = refused.last_number
            producer.acked = min(producer.acked, refused.last_number)
        else:
            producer.accepted = max(refused.last_number, dropped_first - 1, producer.acked)
        producer.strict_until = now + _STRICT_S

    def restart(self) -> None:
        """The bridge is a new one: send again what flies, and let its log judge about everything else."""
        self.queue.rewind()
        self._forget_idle(math.inf)

    def leave(self, listener: Listener) -> None:
        """The listener hears of nothing any more; what is held goes on to the log regardless."""
        for producer in listener.producers:
            producer.listeners.pop(listener, None)
        listener.producers.clear()

    def sweep(self, now: float) -> None:
        """Forget producers and users that have been idle."""
        before = now - self._limits.remember_s
        self._forget_idle(before)
        for user in [u for u in self.queue.users if not u.events and not u.producers and u.touched < before]:
            if not user.listed:
                self.queue.forget_user(user)

    def pending_of(self, listener: Listener) -> bool:
        """Whether something is held of which the listener is to hear."""
        return any(producer.pending for producer in listener.producers)

    def _meet(self, offer: Offer, now: float) -> ProducerState:
        if len(self._producers) >= self._limits.producers:
            # All idle ones at once: one user who makes up producers must not use up what the others need.
            self._forget_idle(before=now)
        if len(self._producers) >= self._limits.producers:
            raise QueueFullError(
                "too many producers are at work",
                retry_after_s=1.0,
                limit="producers",
                limit_value=self._limits.producers,
                last_number=offer.first - 1,
            )
        contract = self.contract
        contract.check_input(offer)
        with contract.timed("create_emitter"):
            user = self.queue.user(offer.user_id, now)
            user.producers += 1
            # Whatever number comes first is taken: this process may be younger than the producer.
            producer = ProducerState(user, offer.producer_id, offer.run_id, offer.first - 1, offer.fence)
            self._producers[offer.user_id, offer.producer_id] = producer
        contract.check_output(producer)
        return producer

    def _succeed(self, producer: ProducerState, offer: Offer) -> None:
        """A new holder of the run writes under the same producer_id: what the old one left here will be refused."""
        if offer.fence < producer.fence:
            raise StaleFenceError("a newer holder of the run has sent events", last_number=producer.accepted)
        for batch in producer.pending:
            self.queue.release(batch)
        producer.pending.clear()
        producer.fence = offer.fence
        producer.accepted = offer.first - 1
        producer.strict_until = 0.0

    def _forget_idle(self, before: float) -> None:
        for producer in [p for p in self._producers.values() if not p.pending and p.touched < before]:
            self._forget(producer)

    def _forget(self, producer: ProducerState) -> None:
        del self._producers[producer.user.user_id, producer.producer_id]
        producer.user.producers -= 1
        for listener in producer.listeners:
            listener.producers.discard(producer)
        producer.listeners.clear()
