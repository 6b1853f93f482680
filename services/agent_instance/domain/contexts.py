"""``ContextTable``: the contexts of one attempt, root and children, in the host, out of the worker's reach.

A worker knows handles only. What a handle may do (whose request it is, which tools it has) is said here and can only
shrink from parent to child. One table per turn of an agent; nothing in it is shared with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from carrel.context import UserExecutionContext
from carrel.errors import InvalidContextError, LimitExceededError, ToolPermissionError, UnknownToolError
from carrel.ids import ChildIds
from carrel.tools import Tool
from services.agent_instance.domain.questions import Work

__all__ = ["MAX_OPEN_CONTEXTS", "ContextTable", "Scope"]

MAX_OPEN_CONTEXTS: Final = 200


@dataclass(slots=True, eq=False)
class Scope:
    """One context and what it may use. ``handle`` is the name by which the worker knows it; 0 is the root.

    ``part_of`` is the work that it belongs to: the tool's body that runs in it, or the sub-agent whose root it is.
    """

    handle: int
    context: UserExecutionContext
    tools: Mapping[str, Tool]
    parent: Scope | None = None
    call_id: str = ""
    children: set[int] = field(default_factory=set)
    part_of: Work | None = None

    @property
    def in_call(self) -> bool:
        """Whether it belongs to the body of a tool call, or to a child that such a body opened."""
        return bool(self.within)

    @property
    def within(self) -> str:
        """The id of the tool call whose body it belongs to; "" outside of one."""
        return self.call_id or (self.parent.within if self.parent is not None else "")

    @property
    def work(self) -> Work | None:
        """The innermost work that it is a part of; None for the stage's agent itself."""
        return self.part_of or (self.parent.work if self.parent is not None else None)


class ContextTable:
    """Opens and closes contexts.

    Args:
        root: The run's verified context.
        tools: The agent class's tools: all that the root may use.
        ids: Names of children, shared by the turns of one stage so that no two have the same request id.
        part_of: The work that the whole table is a part of: a sub-agent's.
    """

    def __init__(
        self, root: UserExecutionContext, tools: Mapping[str, Tool], ids: ChildIds, part_of: Work | None = None
    ) -> None:
        self._ids = ids
        self._scopes: dict[int, Scope] = {0: Scope(0, root, dict(tools), part_of=part_of)}
        self._next = 1

    @property
    def root(self) -> Scope:
        """The attempt's own context."""
        return self._scopes[0]

    @property
    def open_children(self) -> int:
        """How many children are open."""
        return len(self._scopes) - 1

    def get(self, handle: int) -> Scope:
        """The open context of that handle.

        Raises:
            InvalidContextError: There is none, or it is closed.
        """
        scope = self._scopes.get(handle)
        if scope is None:
            raise InvalidContextError(
                "this context is closed", advice="use a child inside its `async with`, a tool's context inside the tool"
            )
        return scope

    def open(self, parent: Scope, operation_name: str, tools: Iterable[str] | None = None) -> Scope:
        """Open a child; a repeated name gets ``_2``, ``_3`` …

        Args:
            tools: The tools it may use, each one of its parent's; None for all of them.

        Raises:
            InvalidIdError: The name is malformed.
            InvalidContextError: The children nest too deeply.
            UnknownToolError: A tool that the agent does not have.
            ToolPermissionError: A tool that the parent may not use.
            LimitExceededError: Too many contexts open, or opened.
        """
        if len(self._scopes) > MAX_OPEN_CONTEXTS:
            raise LimitExceededError(
                f"{MAX_OPEN_CONTEXTS} child contexts are open",
                advice="close some before opening more",
                limit="open_contexts",
                limit_value=MAX_OPEN_CONTEXTS,
                use=self.open_children,
            )
        allowed = self._subset(parent, tools)
        return self._add(parent, self.named(parent, operation_name), allowed)

    def named(self, parent: Scope, operation_name: str) -> UserExecutionContext:
        """A context below the parent's, with a request id of its own; not in the table.

        Raises:
            InvalidIdError: The name is malformed.
            InvalidContextError: The children nest too deeply.
            LimitExceededError: Too many have been opened.
        """
        # A dry run first: a name must not be used up by a child that cannot be.
        parent.context.create_child_context(operation_name)
        return parent.context.create_child_context(self._ids.name(parent.context.request_id, operation_name))

    def for_call(self, parent: Scope, call_id: str, part_of: Work | None = None) -> Scope:
        """What a tool's body works in: its caller's context under a handle of its own, which ends with the call."""
        scope = self._add(parent, parent.context, parent.tools, call_id)
        scope.part_of = part_of
        return scope

    def close(self, scope: Scope) -> list[Scope]:
        """Close a child and every open child of it, innermost first; returns them. The root is never closed."""
        closed: list[Scope] = []
        for handle in sorted(scope.children):
            closed += self.close(self._scopes[handle])
        if scope.parent is not None and self._scopes.pop(scope.handle, None) is not None:
            scope.parent.children.discard(scope.handle)
            closed.append(scope)
        return closed

    def _add(self, parent: Scope, context: UserExecutionContext, tools: Mapping[str, Tool], call_id: str = "") -> Scope:
        handle, self._next = self._next, self._next + 1
        self._scopes[handle] = scope = Scope(handle, context, tools, parent, call_id)
        parent.children.add(handle)
        return scope

    def _subset(self, parent: Scope, tools: Iterable[str] | None) -> Mapping[str, Tool]:
        if tools is None:
            return dict(parent.tools)
        allowed: dict[str, Tool] = {}
        for name in tools:
            if name in parent.tools:
                allowed[name] = parent.tools[name]
            elif name in self.root.tools:
                raise ToolPermissionError(
                    f"tool {name} is not among its parent's", advice="a child may have fewer tools, never more"
                )
            else:
                known = ", ".join(self.root.tools) or "none"
                raise UnknownToolError(f"the agent has no tool {name[:64]!r}", advice=f"its tools: {known}")
        return allowed
