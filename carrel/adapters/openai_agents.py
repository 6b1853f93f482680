"""Agents of the OpenAI Agents SDK as Carrel's.

    from carrel.adapters.openai_agents import agent_class

    Desk = agent_class(desk, name="desk", description="Answers at the order desk.")

The agent is run as it is, with those that it hands over to. Text and tool calls become events, hand-offs a word to the
user, tools with ``needs_approval`` questions. The SDK's tracing, which sends runs to a host of OpenAI's, is turned off.
docs/adapters.md says what is not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from carrel.adapters._declare import Declarations, Source, declare, extra
from carrel.adapters._dispatch import at_work, call, named
from carrel.adapters._questions import approve
from carrel.adapters._values import answer_of, conversation
from carrel.adapters._voice import Voice, voice_of
from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.errors import ToolError
from carrel.frozen import JSON, thaw
from carrel.tools import Tool

with extra("openai-agents", "agents"):
    import agents
    from agents.items import HandoffOutputItem, ToolApprovalItem, ToolCallItem, ToolCallOutputItem
    from agents.tool_context import ToolContext

__all__ = ["agent_class", "function_tools"]

AnyAgent = agents.Agent[Any]

_REFUSED = "The user did not allow this call."
_WAITS = "it waits for an answer"
_THOUGHTS = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})


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
    source: Source[AnyAgent] = Source(agent, agents.Agent)
    offered = named(declarations.get("tools", ()))

    async def run(ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        agents.set_tracing_disabled(True)
        config = run_config or agents.RunConfig(model_provider=_Provider(ctx.llm.model))
        options: dict[str, Any] = {
            "context": None if context is None else context(ctx, request),
            "max_turns": max_turns,
            "run_config": dataclasses.replace(config, tracing_disabled=True),
        }
        given = conversation(request) if input is None else input(request)
        async with voice_of(ctx, offered) as voice:
            with at_work(ctx):
                output = await _run(ctx, voice, source.get(), given, options)
        return answer_of(output) if answer is None else answer(output)

    return declare(run, name, description, declarations)


def function_tools(*tools: Tool) -> list[agents.Tool]:
    """Carrel's tools as the SDK's: in a run every call goes through the dispatcher, outside it is made directly. The
    class must declare them too (``tools=``).

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    return [
        agents.FunctionTool(
            name=function,
            description=tool.description,
            params_json_schema=thaw(tool.input_schema),
            on_invoke_tool=_body(tool),
            strict_json_schema=False,
        )
        for function, tool in named(tools).items()
    ]


class _Provider(agents.MultiProvider):
    """The SDK's own models; where an agent names none, the deployment's."""

    def __init__(self, default: str) -> None:
        super().__init__()
        self._default = default

    def get_model(self, model_name: str | None) -> agents.Model:
        return super().get_model(model_name or self._default or None)


async def _run(ctx: AgentContext, voice: Voice, agent: AnyAgent, given: Any, options: Mapping[str, Any]) -> Any:
    while True:
        result = agents.Runner.run_streamed(agent, given, **options)
        async for event in result.stream_events():
            if isinstance(event, agents.RawResponsesStreamEvent):
                await _hear(voice, event.data)
            elif isinstance(event, agents.RunItemStreamEvent):
                await _follow(voice, event.item)
        if not result.interruptions:
            return result.final_output
        state = result.to_state()
        for item in result.interruptions:
            await voice.returned(_id(item.raw_item), error=_WAITS, status="cancelled")
        for item in result.interruptions:
            await _decide(ctx, voice, state, item)
        given = state


async def _decide(ctx: AgentContext, voice: Voice, state: agents.RunState[Any], item: ToolApprovalItem) -> None:
    arguments = _arguments(_field(item.raw_item, "arguments"))
    said = await approve(ctx, _name(item), arguments)
    if said.approved:
        state.approve(item)
        # The SDK tells of a call when the model makes it, and not again when it is made at last.
        await voice.called(_id(item.raw_item), _name(item), arguments)
    else:
        state.reject(item, rejection_message=said.reason or _REFUSED)


async def _hear(voice: Voice, event: Any) -> None:
    if event.type in ("response.output_text.delta", "response.refusal.delta"):
        await voice.say(event.delta, "message", event.item_id)
    elif event.type in _THOUGHTS:
        await voice.say(event.delta, "thinking", event.item_id)
    elif event.type == "response.completed":
        await voice.pause()


async def _follow(voice: Voice, item: object) -> None:
    match item:
        case ToolCallItem():
            arguments = _arguments(_field(item.raw_item, "arguments"))
            await voice.called(_id(item.raw_item), item.tool_name or "tool", arguments)
        case ToolCallOutputItem():
            await voice.returned(_id(item.raw_item), item.output)
        case HandoffOutputItem():
            source, target = item.source_agent.name, item.target_agent.name
            await voice.think(f"{source} hands over to {target}", handoff={"from": source, "to": target})
        case _:
            pass


def _name(item: ToolApprovalItem) -> str:
    return item.tool_name or "tool"


def _id(raw: object) -> str:
    return str(_field(raw, "call_id") or _field(raw, "id") or "")


def _field(raw: object, name: str) -> Any:
    # The SDK's raw items are its classes where they come from the model, and plain dicts where it makes them.
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)


def _arguments(text: object) -> Any:
    if not isinstance(text, str):
        return text or {}
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {"…": text}


def _body(tool: Tool) -> Callable[[ToolContext[Any], str], Any]:
    async def body(_: ToolContext[Any], text: str) -> Any:
        arguments = _arguments(text)
        try:
            result = await call(tool, arguments if isinstance(arguments, dict) else {"…": arguments})
        except ToolError as error:
            # The model is told, and may do otherwise.
            return f"error: {error}"
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)

    return body
