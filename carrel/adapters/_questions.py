"""What an agent of another library wants its user to approve, or to answer, asked as Carrel asks.

The run waits and holds nothing; the answer begins the agent anew, and the way to the same question is answered from the
journal. So each question is bound to what it is about: an answer never counts for other arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from carrel.adapters._values import shown, to_json
from carrel.agent_context import AgentContext
from carrel.frozen import JSON

__all__ = ["Approval", "approve", "ask"]

_APPROVAL: Final[Mapping[str, JSON]] = {
    "anyOf": [
        {"type": "boolean"},
        {
            "type": "object",
            "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 2048}},
            "required": ["approved"],
            "additionalProperties": False,
        },
    ]
}
_MAX_CHARS: Final = 4096
# Where a question's words are, in what libraries and their users give.
_WORDS: Final = ("question", "prompt", "message", "text", "description", "query")


@dataclass(frozen=True, slots=True)
class Approval:
    """What the user said of a call; ``reason`` is theirs, "" when they gave none."""

    approved: bool
    reason: str = ""


async def approve(ctx: AgentContext, tool_name: str, arguments: object) -> Approval:
    """Ask whether a tool of the library's own may be called with these arguments."""
    about = {"tool": tool_name, "arguments": to_json(arguments)}
    told, size = _text(about["arguments"]), len(json.dumps(about["arguments"], ensure_ascii=False))
    # Nobody is to allow what cannot be seen without having been told that there is more of it.
    part = f" (its arguments have {size} characters, and not all are shown)" if size > len(told) else ""
    prompt = f"Allow {tool_name[:64]}{part} with {told}"
    answer = await _bound(ctx, "approve", about, prompt, _APPROVAL)
    if isinstance(answer, Mapping):
        return Approval(answer.get("approved") is True, str(answer.get("reason") or ""))
    return Approval(answer is True)


async def ask(ctx: AgentContext, value: object, schema: Mapping[str, Any] | None = None) -> JSON:
    """Ask what the library's agent stopped for; ``value`` is a text, or an object that may hold one.

    Args:
        schema: JSON Schema of the answer; any JSON by default.
    """
    told = to_json(value)
    words = told if isinstance(told, str) else None
    if isinstance(told, dict):
        named = next((name for name in _WORDS if isinstance(told.get(name), str) and told[name].strip()), "")
        words = told.get(named)
        others = {name: item for name, item in told.items() if name not in (named, "choices")}
        if words is not None and others:
            words = f"{words[:_MAX_CHARS]}\n{_text(others)}"
    prompt = words if words is not None and words.strip() else _text(told)
    return await _bound(ctx, "ask", told, prompt[: 2 * _MAX_CHARS], schema or {})


async def _bound(ctx: AgentContext, what: str, about: object, prompt: str, schema: Mapping[str, JSON]) -> JSON:
    canonical = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    # A question's id comes from where it is asked: in a child named by what it is about, it can be no other's.
    async with ctx.child(f"{what}-{digest}") as child:
        return await child.ask(prompt, schema)


def _text(value: object) -> str:
    text = json.dumps(shown(value), ensure_ascii=False)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…"
