"""Carrel: AI agents for many users at once, each with their own context, engine and event stream.

The public names of the library. Not a place for code: each name is loaded from its module when first used, so that
``import carrel`` costs a few milliseconds and brings in neither grpc, protobuf nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from carrel.agent_context import AgentContext as AgentContext
    from carrel.agent_context import ArtifactRef as ArtifactRef
    from carrel.agent_context import Artifacts as Artifacts
    from carrel.agents import Agent as Agent
    from carrel.agents import Message as Message
    from carrel.agents import Plan as Plan
    from carrel.agents import Request as Request
    from carrel.context import UserContextFactory as UserContextFactory
    from carrel.context import UserExecutionContext as UserExecutionContext
    from carrel.errors import CarrelError as CarrelError
    from carrel.errors import ToolError as ToolError
    from carrel.events import EVENTS as EVENTS
    from carrel.events import validate_event as validate_event
    from carrel.frozen import JSON as JSON
    from carrel.ids import new_id as new_id
    from carrel.migration import FactoryAdapter as FactoryAdapter
    from carrel.migration import migrate_to_factory_pattern as migrate_to_factory_pattern
    from carrel.tools import Tool as Tool
    from carrel.tools import tool as tool

__version__: Final = "0.2.0"

_HOME: Final = {
    "AgentContext": "carrel.agent_context",
    "ArtifactRef": "carrel.agent_context",
    "Artifacts": "carrel.agent_context",
    "Agent": "carrel.agents",
    "Message": "carrel.agents",
    "Plan": "carrel.agents",
    "Request": "carrel.agents",
    "UserContextFactory": "carrel.context",
    "UserExecutionContext": "carrel.context",
    "CarrelError": "carrel.errors",
    "ToolError": "carrel.errors",
    "EVENTS": "carrel.events",
    "validate_event": "carrel.events",
    "JSON": "carrel.frozen",
    "new_id": "carrel.ids",
    "FactoryAdapter": "carrel.migration",
    "migrate_to_factory_pattern": "carrel.migration",
    "Tool": "carrel.tools",
    "tool": "carrel.tools",
}

__all__ = [  # noqa: PLE0604  (names of _HOME)
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'carrel' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
