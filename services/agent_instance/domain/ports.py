"""What the host needs of the world outside: the stream up to execution, language models, servers of tools.

Implemented by ``service``, by ``model_calls`` and by ``mcp_servers``, faked in tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from carrel.agent_messages import CallModel, DownMessage
from carrel.errors import CarrelError
from carrel.tools import Tool
from services.agent_instance.domain.receipts import Receipt
from services.agent_instance.domain.told_errors import error_bytes
from services.agent_instance.models import AuditEntry, BudgetUse, Caller, ChunkUp, JournalItem

if TYPE_CHECKING:
    from services.agent_instance.domain.contexts import Scope
    from services.agent_instance.domain.dispatcher import TurnTools
    from services.agent_instance.domain.model_budget import StageBudget
    from services.agent_instance.domain.registry import AgentEntry

__all__ = [
    "MAX_STAGE_JOURNAL_BYTES",
    "AttemptTools",
    "BoundedJournal",
    "ModelAccess",
    "ModelCalls",
    "OwnTools",
    "ToolServers",
    "Uplink",
]

# It comes back whole with the next attempt's start, in one message of at most 4 MiB with the request beside it.
MAX_STAGE_JOURNAL_BYTES: Final = 2 * 1024 * 1024
_ENTRY_BYTES: Final = 512


class Uplink(Protocol):
    """Messages up to execution, in order. Each call waits while the stream is slow; its queue is bounded.

    A message sent after the stream's end goes nowhere and is no error: the attempt is being killed then.
    """

    async def journal(self, item: JournalItem) -> Receipt | None:
        """A completed call; returns when it is sent. Its agent gets the result when the receipt is done.

        Returns None for a call that is not kept. Entries come in the order of their numbers.
        """

    async def audit(self, entry: AuditEntry) -> None:
        """A record for the audit trail."""

    async def chunk(self, chunk: ChunkUp) -> None:
        """A piece of an artifact."""

    async def budget_use(self, use: BudgetUse) -> None:
        """Tokens that a model call has used; the answer is a fresh ``BudgetGrant`` down."""


class BoundedJournal:
    """An ``Uplink`` that lets a stage's journal grow to ``max_bytes``; what is over is not journaled, and runs again in
    a repeated attempt.

    Args:
        earlier: What earlier attempts have journaled.
    """

    def __init__(
        self, uplink: Uplink, earlier: tuple[JournalItem, ...] = (), max_bytes: int = MAX_STAGE_JOURNAL_BYTES
    ) -> None:
        self._uplink = uplink
        self._left = max_bytes - sum(_size(item) for item in earlier)
        self.audit = uplink.audit
        self.chunk = uplink.chunk
        self.budget_use = uplink.budget_use

    async def journal(self, item: JournalItem) -> Receipt | None:
        """Send it up while there is room."""
        size = _size(item)
        if size > self._left:
            return None
        self._left -= size
        return await self._uplink.journal(item)


def _size(item: JournalItem) -> int:
    return _ENTRY_BYTES + len(item.result) + (0 if item.error is None else error_bytes(item.error))


class ModelCalls(Protocol):
    """The model calls of one turn of an agent. Each is answered later, by its reply, exactly once unless given up."""

    def environment(self) -> Mapping[str, str]:
        """Variables for the turn's worker."""
        ...

    async def request(self, message: CallModel, scope: Scope, reply: Callable[[DownMessage], Awaitable[None]]) -> None:
        """The worker calls a model in this context."""

    async def give_up(self, call_id: int) -> None:
        """Nobody waits for that call any more."""

    async def aclose(self) -> None:
        """End every call. Idempotent."""


class ModelAccess(Protocol):
    """The process's access to language models."""

    @property
    def available(self) -> bool:
        """Whether there is a model to call."""
        ...

    def for_turn(self, turn: TurnTools, caller: Callable[[], Caller], budget: StageBudget) -> ModelCalls:
        """The calls of one turn; ``caller`` gives the newest verified one."""
        ...


class AttemptTools(Protocol):
    """The tools of one attempt: of its agents' own and of servers, with the attempt's sessions there."""

    def tools(self, entry: AgentEntry) -> Mapping[str, Tool]:
        """All that this agent may call, by name."""
        ...

    def missing(self, entry: AgentEntry, tool_name: str) -> CarrelError | None:
        """Why a tool that it does not have may be there later; None when there is no such tool."""
        ...

    async def aclose(self) -> None:
        """End the attempt's sessions, whatever ended it. Idempotent."""


class ToolServers(Protocol):
    """Servers of tools that this process may reach."""

    def for_attempt(self) -> AttemptTools:
        """The tools of one attempt; closed at its end."""
        ...

    def listed(self, entry: AgentEntry) -> Iterable[Tool]:
        """All that this agent may call as far as it is known now."""
        ...


class OwnTools:
    """``AttemptTools`` where there are no servers."""

    def tools(self, entry: AgentEntry) -> Mapping[str, Tool]:
        """The agent's own."""
        return entry.tools

    def missing(self, entry: AgentEntry, tool_name: str) -> CarrelError | None:
        """Nothing is away."""
        return None

    async def aclose(self) -> None:
        """Nothing is open."""
