"""pydantic-ai's agents as Carrel's.

    from carrel.adapters.pydantic_ai import agent_class

    Support = agent_class("support_agent:agent", name="support", description="Answers customers.")

The agent is run as it is. Its text, thinking and tool calls become events, tools that require approval and deferred
calls become questions to the user, its models are reached through Carrel's proxy. docs/adapters.md says what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from carrel.adapters._declare import Declarations, Source, declare, need
from carrel.adapters._dispatch import at_work, named
from carrel.adapters._values import answer_of
from carrel.adapters._voice import voice_of
from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.frozen import JSON
from carrel.tools import Tool

if TYPE_CHECKING:
    from pydantic_ai.toolsets import FunctionToolset

    from carrel.adapters._pydantic_ai import AnyAgent

__all__ = ["agent_class", "toolset"]


def agent_class(
    agent: AnyAgent | str | Callable[[], AnyAgent],
    *,
    name: str,
    description: str = "",
    prompt: Callable[[Request], str] | None = None,
    deps: Callable[[AgentContext, Request], Any] | None = None,
    answer: Callable[[Any], Mapping[str, JSON]] | None = None,
    **declarations: Unpack[Declarations],
) -> type[Agent]:
    """An agent class that runs this agent of pydantic-ai's.

    Args:
        agent: The agent; ``"module:attribute"`` or a function that makes it, to be looked up in the worker. An agent
            whose model is made with it needs one of the last two, or ``defer_model_check=True``: there is no
            ``OPENAI_API_KEY`` yet where classes are loaded. One without a model uses the deployment's.
        name: The class's name in the registry.
        description: For people and planners.
        prompt: Makes the user prompt; the request's message by default.
        deps: Makes the agent's ``deps``.
        answer: Makes the result of the output; text becomes ``{"answer": …}``, an object itself, by default.
        declarations: What else an agent class declares. ``tools`` of Carrel's are offered to the agent as well; those
            that it has by ``toolset`` need not be named when the agent itself is given.

    Raises:
        InvalidConfigurationError: What is given is no agent, or a declaration is wrong.
    """
    need("pydantic-ai", "pydantic_ai")
    source: Source[AnyAgent] = Source(agent, "pydantic-ai", _kind)
    if not isinstance(agent, str) and not callable(agent):
        from carrel.adapters._pydantic_ai import carrels

        if there := carrels(agent):
            declarations.setdefault("tools", tuple(there))
    offered = declarations.get("tools", ())
    told_by_host = named(offered)

    async def run(ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        from carrel.adapters import _pydantic_ai

        found = source.get()
        async with voice_of(ctx, told_by_host) as voice:
            with at_work(ctx):
                said = request.message if prompt is None else prompt(request)
                given = None if deps is None else deps(ctx, request)
                output = await _pydantic_ai.run(ctx, voice, found, request, offered, user_prompt=said, deps=given)
        return answer_of(output) if answer is None else answer(output)

    return declare(run, name, description, declarations, "carrel.adapters._pydantic_ai")


def toolset(*tools: Tool) -> FunctionToolset[Any]:
    """Carrel's tools as a toolset: in a run every call goes through the dispatcher, outside it is made directly.

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    need("pydantic-ai", "pydantic_ai")
    from carrel.adapters import _pydantic_ai

    return _pydantic_ai.toolset(*tools)


def _kind() -> type[AnyAgent]:
    from pydantic_ai.agent import AbstractAgent

    return AbstractAgent
