"""A chat agent that calls tools: a language model that can calculate, convert units and keep notes, with your consent.

An example of ``ctx.llm.converse``, a conversation's history, and a tool that asks its user first. It needs a model
(``CARREL_AGENT_INSTANCE_MODELS__BASE_URL``); a scripted one will do. Its tools work offline and need no package.

``agents`` is what the entry point ``carrel.agents`` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrel.agents import Agent

__all__ = ["agents"]


def agents() -> tuple[type[Agent], ...]:
    """The agent classes of this package."""
    from examples.assistant.agent import AssistantAgent

    return (AssistantAgent,)
