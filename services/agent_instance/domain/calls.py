"""One tool call from its request to its end, and the ledger that counts the calls of a stage.

Values and rules only: who may call, what runs and what is told to whom is ``dispatcher``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carrel.errors import CarrelError
from carrel.tools import Tool
from services.agent_instance.domain.contexts import Scope
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

    Both count the calls of one tool within the stage, so that a repeated attempt gives the same call the same names.
    """

    tool_call_id: str
    journal_id: str


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
    """A call that was admitted. Times are in seconds. ``nested``: asked for by the body of another call."""

    asked: Asked
    tool: Tool
    name: CallName
    arguments_hash: str
    nested: bool
    began_unix: float
    began: float
    running: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def call_id(self) -> str:
        """Its ``tool_call_id``."""
        return self.name.tool_call_id

    @property
    def scope(self) -> Scope:
        """The context that it was called in."""
        return self.asked.scope


class CallLedger:
    """Counts a stage's calls, and numbers its journal after what earlier attempts have journaled."""

    def __init__(self, stage_index: int, journaled: int = 0, journal: Sequence[JournalItem] = ()) -> None:
        self.stage_index = self._stage_index = stage_index
        self._journaled = max((item.number for item in journal), default=journaled)
        self._earlier = {item.call_id: item for item in journal}
        self._named: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._refused = 0

    def refused_id(self) -> str:
        """An id for the events of a call that never began."""
        self._refused += 1
        return f"refused-{self._stage_index}-{self._refused}"

    def next_name(self, tool_name: str) -> CallName:
        """Names for the next call of this tool."""
        count = self._calls[tool_name] = self._calls.get(tool_name, 0) + 1
        return CallName(f"call-{self._stage_index}-{tool_name}-{count}", f"tool:{tool_name}:{count}")

    def recall(self, kind: str, name: str, arguments_hash: str) -> tuple[str, JournalItem | None]:
        """The journal id of the next call with these three, and an earlier attempt's entry under it."""
        key = f"{kind}:{name}:{arguments_hash[:16]}"
        count = self._named[key] = self._named.get(key, 0) + 1
        journal_id = f"{key}:{count}"
        return journal_id, self._earlier.get(journal_id)

    def entry(
        self, journal_id: str, kind: str, name: str, arguments_hash: str, result: bytes, error: CarrelError | None
    ) -> JournalItem:
        """The next journal entry, for a call that has completed."""
        self._journaled += 1
        return JournalItem(self._journaled, journal_id, kind, name, arguments_hash, result, error)

    def journal(self, call: ToolCall, result: bytes, error: CarrelError | None) -> JournalItem:
        """The next journal entry, for a call that has completed."""
        self._journaled += 1
        return JournalItem(
            number=self._journaled,
            call_id=call.name.journal_id,
            kind="tool",
            name=call.tool.name,
            arguments_hash=call.arguments_hash,
            result=result,
            error=error,
        )
