"""Agents of the OpenAI Agents SDK as Carrel's.

    from carrel.adapters.openai_agents import agent_class

    Desk = agent_class("my_desks:desk", name="desk", description="Answers at the order desk.")

The agent is run as it is, with those that it hands over to. Text and tool calls become events, hand-offs a word to the
user, tools with ``needs_approval`` questions. The SDK's tracing, which sends runs to a host of OpenAI's, is turned off.
docs/adapters.md says what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from carrel.adapters._declare import Declarations, Source, declare, need
from carrel.adapters._dispatch import at_work, named
from carrel.adapters._values import answer_of, conversation
from carrel.adapters._voice import voice_of
from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.frozen import JSON
from carrel.tools import Tool

if TYPE_CHECKING:
    import agents

    from carrel.adapters._openai_agents import AnyAgent

__all__ = ["agent_class", "function_tools"]


def agent_class(  # noqa: PLR0913  (by keyword, each of them)
    agent: AnyAgent | str | Callable[[], AnyAgent],
    *,
    name: str,
    description: str = "",
    input: Callable[[Request], Any] | None = None,  # noqa: A002  (the SDK's own word for it)
    context: Callable[[AgentContext, Request], Any] | None = None,
    answer: Callable[[Any], Mapping[str, JSON]] | None = None,
    max_turns: int = 10,
    run_config: agents.RunConfig | None = None,
    **declarations: Unpack[Declarations],
) -> type[Agent]:
    """An agent class that runs this agent of the SDK's, and those that it hands over to.

    Args:
        agent: The agent; ``"module:attribute"`` or a function that makes it, to be looked up in the worker. One without
            a model uses the deployment's.
        name: The class's name in the registry.
        description: For people and planners.
        input: Makes the run's input; the thread's conversation by default.
        context: Makes the run's context object.
        answer: Makes the result of the final output; text becomes ``{"answer": …}``, an object itself, by default.
        max_turns: How often models may be asked, all agents together.
        run_config: The run's; its tracing is turned off.
        declarations: What else an agent class declares; ``tools`` must name those of Carrel's that the agents have.

    Raises:
        InvalidConfigurationError: What is given is no agent, or a declaration is wrong.
    """
    need("openai-agents", "agents")
    source: Source[AnyAgent] = Source(agent, "the OpenAI Agents SDK", _kind)
    offered = named(declarations.get("tools", ()))

    async def run(ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        from carrel.adapters import _openai_agents

        found = source.get()
        given = conversation(request) if input is None else input(request)
        about = None if context is None else context(ctx, request)
        async with voice_of(ctx, offered) as voice:
            with at_work(ctx):
                output = await _openai_agents.run(
                    ctx, voice, found, given, run_config, context=about, max_turns=max_turns
                )
        return answer_of(output) if answer is None else answer(output)

    return declare(run, name, description, declarations, "carrel.adapters._openai_agents")


def function_tools(*tools: Tool) -> list[agents.Tool]:
    """Carrel's tools as the SDK's: in a run every call goes through the dispatcher, outside it is made directly. The
    class must declare them too (``tools=``).

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    need("openai-agents", "agents")
    from carrel.adapters import _openai_agents

    return _openai_agents.function_tools(*tools)


def _kind() -> type[AnyAgent]:
    from agents import Agent as SdkAgent

    return SdkAgent
