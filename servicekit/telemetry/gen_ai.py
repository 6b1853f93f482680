"""The names that OpenTelemetry gives to the work of agents, tools and language models (``gen_ai.*``), all in one place.

They are still in development there and may change; then they change here. Never a message, an argument or an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from servicekit.telemetry.tracing import Attribute

__all__ = ["agent_turn", "model_call", "token_usage", "tool_call"]

_OPERATION: Final = "gen_ai.operation.name"
_SYSTEM: Final = "gen_ai.provider.name"


def agent_turn(agent_name: str) -> tuple[str, dict[str, Attribute]]:
    """The span of an agent at work: its name and attributes."""
    return f"invoke_agent {agent_name}", {_OPERATION: "invoke_agent", "gen_ai.agent.name": agent_name}


def tool_call(tool_name: str, call_id: str, agent_name: str) -> tuple[str, dict[str, Attribute]]:
    """The span of a tool's body."""
    return f"execute_tool {tool_name}", {
        _OPERATION: "execute_tool",
        "gen_ai.tool.name": tool_name,
        "gen_ai.tool.call.id": call_id,
        "gen_ai.agent.name": agent_name,
    }


def model_call(model: str, agent_name: str) -> tuple[str, dict[str, Attribute]]:
    """The span of a call of a language model, over an endpoint that speaks as OpenAI's does."""
    return f"chat {model}", {
        _OPERATION: "chat",
        _SYSTEM: "openai",
        "gen_ai.request.model": model,
        "gen_ai.agent.name": agent_name,
    }


def token_usage(input_tokens: int, output_tokens: int) -> Mapping[str, Attribute]:
    """What a call of a model has used."""
    return {"gen_ai.usage.input_tokens": input_tokens, "gen_ai.usage.output_tokens": output_tokens}
