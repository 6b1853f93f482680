"""pydantic-ai's agents as Carrel's.

    from carrel.adapters.pydantic_ai import agent_class

    Support = agent_class("support_agent:agent", name="support", description="Answers customers.")

The agent is run as it is. Its text, thinking and tool calls become events, tools that require approval and deferred
calls become questions to the user, its models are reached through Carrel's proxy. docs/adapters.md says what is not.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any, Final, TypeVar, Unpack

from carrel.adapters._declare import Declarations, Source, declare, extra
from carrel.adapters._dispatch import at_work, call, named
from carrel.adapters._questions import approve, ask
from carrel.adapters._values import answer_of, conversation
from carrel.adapters._voice import Voice, voice_of
from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.errors import ToolError
from carrel.frozen import JSON, thaw
from carrel.tools import Tool

with extra("pydantic-ai", "pydantic_ai"):
    from pydantic_ai import Tool as PydanticTool
    from pydantic_ai import messages
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.capabilities import HandleDeferredToolCalls
    from pydantic_ai.exceptions import ToolFailed
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, RunContext, ToolDenied
    from pydantic_ai.toolsets import FunctionToolset

__all__ = ["agent_class", "toolset"]

DepsT = TypeVar("DepsT")
AnyAgent = AbstractAgent[Any, Any]

_REFUSED: Final = "The user did not allow this call."


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
    source: Source[AnyAgent] = Source(agent, AbstractAgent)
    if isinstance(agent, AbstractAgent) and (there := _carrels(agent)):
        declarations.setdefault("tools", tuple(there))
    offered = declarations.get("tools", ())

    async def run(ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        found = source.get()
        missing = [tool for tool in offered if tool not in _carrels(found)]
        async with voice_of(ctx, named(offered)) as voice:

            async def hear(_: RunContext[Any], events: AsyncIterable[messages.AgentStreamEvent]) -> None:
                async for event in events:
                    await _hear(voice, event)

            async def resolve(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
                await voice.pause()
                return await _resolve(ctx, requests)

            with at_work(ctx):
                result = await found.run(
                    request.message if prompt is None else prompt(request),
                    message_history=_history(request),
                    model=_model(found, ctx),
                    deps=None if deps is None else deps(ctx, request),
                    toolsets=[toolset(*missing)] if missing else None,
                    capabilities=[HandleDeferredToolCalls(resolve)],
                    event_stream_handler=hear,
                )
        return answer_of(result.output) if answer is None else answer(result.output)

    return declare(run, name, description, declarations)


class _Toolset(FunctionToolset[Any]):
    """The tools that it was made of, beside what pydantic-ai makes of them."""

    carrels: tuple[Tool, ...] = ()


def toolset(*tools: Tool) -> FunctionToolset[Any]:
    """Carrel's tools as a toolset: in a run every call goes through the dispatcher, outside it is made directly.

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    made = []
    for function, tool in named(tools).items():
        schema = thaw(tool.input_schema)
        made.append(PydanticTool[Any].from_schema(_body(tool), function, tool.description or None, schema))
    found = _Toolset(made)
    found.carrels = tools
    return found


def _carrels(agent: AnyAgent) -> list[Tool]:
    return [tool for item in agent.toolsets if isinstance(item, _Toolset) for tool in item.carrels]


def _body(tool: Tool) -> Callable[..., Any]:
    async def body(**arguments: Any) -> JSON:
        try:
            return await call(tool, arguments)
        except ToolError as error:
            # The model is told, and may do otherwise.
            raise ToolFailed(f"error: {error}") from error

    return body


def _model(agent: AnyAgent, ctx: AgentContext) -> OpenAIChatModel | None:
    return OpenAIChatModel(ctx.llm.model) if agent.model is None and ctx.llm.available else None


def _history(request: Request) -> list[messages.ModelMessage]:
    found: list[messages.ModelMessage] = []
    for item in conversation(request)[:-1]:
        if item["role"] == "user":
            found.append(messages.ModelRequest(parts=[messages.UserPromptPart(item["content"])]))
        else:
            found.append(messages.ModelResponse(parts=[messages.TextPart(item["content"])]))
    return found


async def _hear(voice: Voice, event: object) -> None:
    match event:
        case messages.PartStartEvent(part=messages.TextPart(content=text)):
            await voice.pause()
            await voice.say(text)
        case messages.PartDeltaEvent(delta=messages.TextPartDelta(content_delta=text)):
            await voice.say(text)
        case messages.PartStartEvent(part=messages.ThinkingPart(content=text)):
            await voice.say(text, "thinking")
        case messages.PartDeltaEvent(delta=messages.ThinkingPartDelta(content_delta=str(text))):
            await voice.say(text, "thinking")
        case messages.FunctionToolCallEvent(part=part, args_valid=bool()):
            await voice.called(part.tool_call_id, part.tool_name, _arguments(part))
        case messages.FunctionToolResultEvent(part=part):
            error = None if part.outcome == "success" else str(part.content)
            await voice.returned(part.tool_call_id, part.content, error=error)
        case _:
            pass


async def _resolve(ctx: AgentContext, requests: DeferredToolRequests) -> DeferredToolResults:
    """Ask the user, one thing after the other."""
    results = DeferredToolResults()
    for part in requests.approvals:
        said = await approve(ctx, part.tool_name, _arguments(part))
        results.approvals[part.tool_call_id] = said.approved or ToolDenied(said.reason or _REFUSED)
    for part in requests.calls:
        about = _arguments(part)
        results.calls[part.tool_call_id] = await ask(
            ctx, about if isinstance(about, dict) and about else part.tool_name
        )
    return results


def _arguments(part: messages.ToolCallPart) -> Any:
    if not isinstance(part.args, str):
        return part.args or {}
    try:
        return json.loads(part.args or "{}")
    except ValueError:
        return {"…": part.args}
