"""Running agents of the OpenAI Agents SDK: their events, hand-offs, approvals, tools. Loads the library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import agents
from agents.items import HandoffOutputItem, ToolApprovalItem, ToolCallItem, ToolCallOutputItem
from agents.tool_context import ToolContext

from carrel.adapters._dispatch import call, named
from carrel.adapters._questions import approve
from carrel.adapters._voice import Voice
from carrel.agent_context import AgentContext
from carrel.errors import ToolError
from carrel.frozen import thaw
from carrel.tools import Tool

__all__ = ["AnyAgent", "function_tools", "run"]

AnyAgent = agents.Agent[Any]

_REFUSED = "The user did not allow this call."
_WAITS = "it waits for an answer"
_THOUGHTS = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})


def function_tools(*tools: Tool) -> list[agents.Tool]:
    """Carrel's tools as the SDK's."""
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


async def run(
    ctx: AgentContext, voice: Voice, agent: AnyAgent, given: Any, config: agents.RunConfig | None, **options: Any
) -> Any:
    """One run of the agent and of those that it hands over to; the final output. ``options``: the runner's."""
    agents.set_tracing_disabled(True)
    config = config or agents.RunConfig(model_provider=_Provider(ctx.llm.model))
    options["run_config"] = dataclasses.replace(config, tracing_disabled=True)
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
