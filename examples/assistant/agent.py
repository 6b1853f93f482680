"""The assistant: the thread's conversation and the new message to the model, its tool calls, its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from carrel import JSON, Agent, AgentContext, Message, Request
from carrel.errors import InvalidRequestError
from examples.assistant.calculator import calculate
from examples.assistant.notes import keep_note
from examples.assistant.units import convert_units

__all__ = ["AssistantAgent", "recent"]

_MAX_TURNS: Final = 6
_REMEMBERED: Final = 20
_REMEMBERED_CHARS: Final = 24_000

_INSTRUCTIONS: Final = """\
You are a helpful assistant. Answer in the user's language, in a few sentences.
Use calculate for every calculation and convert_units for every conversion: do not calculate yourself.
Use keep_note only when the user wants something noted; the user is asked before it is kept, and may say no."""


class AssistantAgent(Agent):
    """Chats, and uses its tools where they know better than the model."""

    name = "assistant"
    description = "Chats with the help of a language model; calculates, converts units, keeps notes."
    tools = (calculate, convert_units, keep_note)
    dependencies = ("llm",)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """The answer; its text has been told to the user as it came."""
        if not request.message.strip():
            raise InvalidRequestError("there is no message to answer", fields={"message": "is empty"})
        messages = [
            {"role": "system", "content": _INSTRUCTIONS},
            *recent(request.history),
            {"role": "user", "content": request.message},
        ]
        answer = await ctx.llm.converse(messages, max_turns=_MAX_TURNS)
        used = [
            call["function"]["name"] for message in answer.messages for call in message.get("tool_calls") or () if call
        ]
        return {"answer": answer.text, "tools_used": used, "tokens": answer.usage.total_tokens}


def recent(history: Sequence[Message]) -> list[Message]:
    """The newest messages of the conversation, as many as a model is to read again, oldest first."""
    kept: list[Message] = []
    chars = 0
    for message in reversed(history[-_REMEMBERED:]):
        chars += len(message.text)
        if chars > _REMEMBERED_CHARS:
            break
        kept.append(message)
    return kept[::-1]
