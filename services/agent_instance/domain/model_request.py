"""A chat completion as an agent asks for it, and as the endpoint gets it: checked, bounded, tools described.

What an endpoint's own options mean is the endpoint's: they pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from carrel.errors import ModelRefusedError
from carrel.frozen import thaw
from carrel.function_names import function_names
from carrel.tools import Tool
from services.agent_instance.domain.model_endpoint import ModelPolicy

__all__ = ["TOOL_TYPE", "bounded", "chat_request", "estimate_tokens", "limit_output"]

# How an agent names a tool of its own in `tools`; anything else there is the author's own, passed as it is.
TOOL_TYPE: Final = "carrel_tool"
_HOSTS_OWN: Final = frozenset({"stream", "stream_options"})
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens")


def estimate_tokens(size: int) -> int:
    """Tokens that so many bytes of text may be: about four bytes each. For endpoints that do not count."""
    return (size + 3) // 4


def chat_request(
    request: Mapping[str, Any],
    policy: ModelPolicy,
    tools: Mapping[str, Tool],
    permitted: Callable[[Tool], bool],
) -> dict[str, Any]:
    """The body for ``chat/completions``, streamed.

    Args:
        tools: Those of the calling context.
        permitted: Whether the user may use a tool; others are left out of what the model is told.

    Raises:
        ModelRefusedError: The request makes no sense, asks for a model that may not be, or is too large.
    """
    body = {name: thaw(value) for name, value in request.items() if name not in _HOSTS_OWN}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise _wrong("messages", "must be a list of at least one message, each an object with role and content")
    if body.get("n", 1) != 1:
        raise _wrong("n", "must be 1: one answer per call")
    body["model"] = policy.choose(body.get("model"))
    described = _described(body.pop("tools", None), tools, permitted)
    if described:
        body["tools"] = described
    else:
        body.pop("tool_choice", None)
        body.pop("parallel_tool_calls", None)
    limit_output(body, policy)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    bounded(body, policy)
    return body


def limit_output(body: dict[str, Any], policy: ModelPolicy, tokens_left: int | None = None) -> None:
    """Hold the answer to the operator's bound, and to what is left of the budget.

    Raises:
        ModelRefusedError: The bound that was asked for is no positive number.
    """
    most = policy.max_output_tokens if tokens_left is None else max(1, min(policy.max_output_tokens, tokens_left))
    asked = [name for name in _OUTPUT_LIMITS if body.get(name) is not None]
    for name in asked:
        value = body[name]
        if type(value) is not int or value < 1:
            raise _wrong(name, "must be a whole number of tokens from 1")
        body[name] = min(value, most)
    if not asked:
        body[policy.output_limit_field] = most


def bounded(body: Mapping[str, Any], policy: ModelPolicy) -> int:
    """The request's size in bytes.

    Raises:
        ModelRefusedError: It is over the bound.
    """
    size = len(orjson.dumps(body))
    if size > policy.max_request_bytes:
        raise ModelRefusedError(
            f"the request to the model is {size} bytes; at most {policy.max_request_bytes} are allowed",
            advice="send fewer or shorter messages",
            limit="max_request_bytes",
            limit_value=policy.max_request_bytes,
            use=size,
        )
    return size


def _described(
    wanted: object, tools: Mapping[str, Tool], permitted: Callable[[Tool], bool]
) -> list[dict[str, Any]] | None:
    if wanted is None:
        return None
    if not isinstance(wanted, list) or not all(isinstance(item, dict) for item in wanted):
        raise _wrong("tools", "must be a list of objects")
    own = [item.get("name") for item in wanted if item.get("type") == TOOL_TYPE]
    names = {tool: function for function, tool in function_names(n for n in own if isinstance(n, str)).items()}
    described: list[dict[str, Any]] = []
    for item in wanted:
        if item.get("type") != TOOL_TYPE:
            described.append(item)
            continue
        tool = tools.get(str(item.get("name")))
        if tool is None:
            raise _wrong("tools", f"names {str(item.get('name'))[:64]!r}, which this context does not have")
        if permitted(tool):
            described.append(_function(names[tool.name], tool))
    return described


def _function(name: str, tool: Tool) -> dict[str, Any]:
    function = {"name": name, "description": tool.description[:1024], "parameters": thaw(tool.input_schema)}
    return {"type": "function", "function": function}


def _wrong(field: str, problem: str) -> ModelRefusedError:
    return ModelRefusedError(f"the request to the model: {field} {problem}", fields={field: problem})
