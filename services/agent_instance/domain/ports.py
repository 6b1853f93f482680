"""What the host needs of the world outside: the stream up to execution. Implemented by ``service``, faked in tests."""

from __future__ import annotations

from typing import Protocol

from services.agent_instance.models import AuditEntry, BudgetUse, ChunkUp, JournalItem

__all__ = ["Uplink"]


class Uplink(Protocol):
    """Messages up to execution, in order. Each call waits while the stream is slow; its queue is bounded.

    A message sent after the stream's end goes nowhere and is no error: the attempt is being killed then.
    """

    async def journal(self, item: JournalItem) -> None:
        """A completed tool or model call."""

    async def audit(self, entry: AuditEntry) -> None:
        """A record for the audit trail."""

    async def chunk(self, chunk: ChunkUp) -> None:
        """A piece of an artifact."""

    async def budget_use(self, use: BudgetUse) -> None:
        """Tokens that a model call has used; the answer is a fresh ``BudgetGrant`` down."""
