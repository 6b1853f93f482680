"""One tool call from its request to its end, and the ledger that counts the calls of a stage.

Values and rules only: who may call, what runs and what is told to whom is ``dispatcher``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carrel.errors import CarrelError
from carrel.tools import Tool
from servicekit.telemetry.tracing import NO_SPAN, Span
from services.agent_instance.domain.contexts import Scope
from services.agent_instance.domain.questions import Pending, Work
from services.agent_instance.models import JournalItem

__all__ = ["Asked", "CallLedger", "CallName", "ToolCall", "hash_arguments", "permits"]

Reply = Callable[[Any, CarrelError | None], Awaitable[None]]


def hash_arguments(arguments: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the canonical JSON of the arguments: what audit and journal keep in their place."""
    canonical = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def permits(granted: frozenset[str], needed: str | None) -> bool:
    """Whether the permissions include ``needed``: itself, ``*``, or a prefix of its parts such as ``trace:*``."""
    if not needed or needed in granted or "*" in granted:
        return True
    parts = needed.split(":")
    return any(":".join([*parts[:count], "*"]) in granted for count in range(1, len(parts)))


@dataclass(frozen=True, slots=True)
class CallName:
    """A call's names: ``tool_call_id`` for events and the tool, ``journal_id`` for the journal.

    Both are the same in a repeated attempt. ``earlier`` is how the call ended in one before, if it did.
    """

    tool_call_id: str
    journal_id: str
    earlier: JournalItem | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a caller asks for. ``key`` is the caller's own name for the call, ``reply`` tells it the end, once."""

    key: tuple[int, int]
    scope: Scope
    tool_name: str
    arguments: Mapping[str, Any]
    reply: Reply


@dataclass(slots=True, eq=False)
class ToolCall:
    """A call that was admitted. Times are in seconds. ``nested``: asked for by the body of another call.

    ``work`` is set while its body runs, ``pending`` while its user has not said whether it may.
    """

    asked: Asked
    tool: Tool
    name: CallName
    arguments_hash: str
    nested: bool
    began_unix: float
    began: float
    running: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    work: Work | None = field(default=None, repr=False)
    pending: Pending | None = field(default=None, repr=False)
    span: Span = field(default=NO_SPAN, repr=False)

    @property
    def call_id(self) -> str:
        """Its ``tool_call_id``."""
        return self.name.tool_call_id

    @property
    def scope(self) -> Scope:
        """The context that it was called in."""
        return self.asked.scope


class CallLedger:
    """Names a stage's calls so that a repeated attempt names the same call the same, and finds how it ended then.

    A call is known by kind, name and arguments, and by its order among calls with the same three. So the order in
    which different calls come does not matter. Calls within another call (a tool's body, a sub-agent) are counted
    apart: when that one is answered from the journal, they are not made again.

    Args:
        journal: What earlier attempts of the stage have completed.
    """

    def __init__(self, stage_index: int, journal: Sequence[JournalItem] = (), *, path: str = "") -> None:
        self.stage_index = stage_index
        self._path = path
        self._journal = _Journal(journal)
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._refused = 0

    def under(self, path: str) -> CallLedger:
        """The ledger of a sub-agent's calls, known by ``path``; it numbers the same journal."""
        ledger = CallLedger(self.stage_index, path=f"{self._path}/{path}" if self._path else path)
        ledger._journal = self._journal
        return ledger

    def refused_id(self) -> str:
        """An id for the events of a call that never began."""
        self._refused += 1
        return f"refused-{self._prefix('')}{self._refused}"

    def recall(self, kind: str, name: str, arguments_hash: str, *, within: str = "") -> tuple[str, JournalItem | None]:
        """The journal's id for the next call with these three, and how it ended in an earlier attempt, if it did.

        Args:
            within: The id of the tool call whose body makes this one.
        """
        count = self._next(kind, name, arguments_hash, within)
        prefix = self._prefix(within, stage=False)
        journal_id = f"{prefix}{kind}:{name}:{arguments_hash[:16]}:{count}"
        return journal_id, self._journal.earlier(journal_id, kind, name, arguments_hash)

    def entry(
        self, journal_id: str, kind: str, name: str, arguments_hash: str, result: bytes, error: CarrelError | None
    ) -> JournalItem:
        """The next journal entry, for a call that has completed."""
        return JournalItem(
            number=self._journal.next_number(),
            call_id=journal_id,
            kind=kind,
            name=name,
            arguments_hash=arguments_hash,
            result=result,
            error=error,
        )

    def name_tool_call(self, tool_name: str, arguments_hash: str, *, within: str = "") -> CallName:
        """Names for the next call of this tool with these arguments."""
        journal_id, earlier = self.recall("tool", tool_name, arguments_hash, within=within)
        count = journal_id.rpartition(":")[2]
        call_id = f"call-{self._prefix(within)}{tool_name}-{arguments_hash[:8]}-{count}"
        return CallName(call_id, journal_id, earlier)

    def _next(self, *key: str) -> int:
        self._counts[key] += 1
        return self._counts[key]

    def _prefix(self, within: str, *, stage: bool = True) -> str:
        whose = "/".join(filter(None, (self._path, within)))
        apart = f"{hashlib.sha256(whose.encode()).hexdigest()[:10]}-" if whose else ""
        return f"{self.stage_index}-{apart}" if stage else apart


class _Journal:
    """A stage's journal: earlier attempts' entries, and the numbers of new ones."""

    def __init__(self, items: Sequence[JournalItem]) -> None:
        self._items = {item.call_id: item for item in items}
        self._last = max((item.number for item in items), default=0)

    def next_number(self) -> int:
        self._last += 1
        return self._last

    def earlier(self, journal_id: str, kind: str, name: str, arguments_hash: str) -> JournalItem | None:
        item = self._items.get(journal_id)
        # The id holds a part of the hash only.
        known = item is not None and (item.kind, item.name, item.arguments_hash) == (kind, name, arguments_hash)
        return item if known else None
