"""Running an agent of pydantic-ai's: its events, its questions, its tools. Loads the library."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any, Final

from pydantic_ai import Tool as PydanticTool
from pydantic_ai import messages
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, RunContext, ToolDenied
from pydantic_ai.toolsets import FunctionToolset

from carrel.adapters._dispatch import call, named
from carrel.adapters._questions import approve, ask
from carrel.adapters._values import conversation
from carrel.adapters._voice import Voice
from carrel.agent_context import AgentContext
from carrel.agents import Request
from carrel.errors import ToolError
from carrel.frozen import JSON, thaw
from carrel.tools import Tool

__all__ = ["AnyAgent", "carrels", "history", "run", "toolset"]

AnyAgent = AbstractAgent[Any, Any]

_REFUSED: Final = "The user did not allow this call."


async def run(
    ctx: AgentContext, voice: Voice, agent: AnyAgent, request: Request, offered: Sequence[Tool], **options: Any
) -> Any:
    """One run of the agent; its output.

    Args:
        offered: Carrel's tools that it gets, unless it has them.
        options: ``user_prompt`` and ``deps``.
    """
    there = carrels(agent)
    missing = [tool for tool in offered if tool not in there]

    async def hear(_: RunContext[Any], events: AsyncIterable[messages.AgentStreamEvent]) -> None:
        async for event in events:
            await _hear(voice, event)

    async def resolve(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        await voice.pause()
        return await _resolve(ctx, requests)

    result = await agent.run(
        message_history=history(request),
        model=_model(agent, ctx),
        toolsets=[toolset(*missing)] if missing else None,
        capabilities=[HandleDeferredToolCalls(resolve)],
        event_stream_handler=hear,
        **options,
    )
    return result.output


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


def carrels(agent: AnyAgent) -> list[Tool]:
    """Carrel's tools that the agent has by itself."""
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


def history(request: Request) -> list[messages.ModelMessage]:
    """What the thread has said before this request."""
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
