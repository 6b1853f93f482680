"""The Responses API of the scripted model server: what it reads of a request, and what it answers, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

__all__ = ["Answer", "as_chat", "events", "response"]


class Answer(Protocol):
    """What is said: text, and calls of functions as ``calls``, if any."""

    @property
    def text(self) -> str: ...


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a chat completion's, for rules that know those only."""
    messages: list[dict[str, Any]] = []
    given = body.get("input") or ()
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        kind = item.get("type", "message")
        if kind == "message":
            content = item["content"]
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            messages.append({"role": item["role"], "content": text})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    tools = [{"type": "function", "function": tool} for tool in body.get("tools") or () if tool["type"] == "function"]
    return {**body, "messages": messages, "tools": tools}


def response(body: Mapping[str, Any], step: Answer) -> dict[str, Any]:
    """The whole answer."""
    usage = {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {**_head(body), "status": "completed", "output": _output(body, step), "usage": usage}


async def events(body: Mapping[str, Any], step: Answer, pieces: list[str]) -> AsyncIterator[bytes]:
    """The answer as server-sent events, its text in these pieces."""
    number = -1

    def event(kind: str, **data: Any) -> bytes:
        nonlocal number
        number += 1
        told = {"type": kind, "sequence_number": number, **data}
        return f"event: {kind}\ndata: {json.dumps(told)}\n\n".encode()

    begun = {**_head(body), "status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    for index, item in enumerate(_output(body, step)):
        where = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": []}
            yield event("response.output_item.added", output_index=index, item={**item, "content": []})
            yield event("response.content_part.added", **where, content_index=0, part=part)
            for piece in pieces:
                yield event("response.output_text.delta", **where, content_index=0, delta=piece, logprobs=[])
            yield event("response.output_text.done", **where, content_index=0, text=step.text, logprobs=[])
            yield event("response.content_part.done", **where, content_index=0, part=item["content"][0])
        else:
            yield event("response.output_item.added", output_index=index, item={**item, "arguments": ""})
            yield event("response.function_call_arguments.delta", **where, delta=item["arguments"])
            yield event("response.function_call_arguments.done", **where, arguments=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=response(body, step))


def _head(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _output(body: Mapping[str, Any], step: Answer) -> list[dict[str, Any]]:
    content = [{"type": "output_text", "text": step.text, "annotations": []}]
    output: list[dict[str, Any]] = []
    calls = getattr(step, "calls", ())
    # An id of its own for each call of a conversation, the same when the same is asked again.
    turn = len(body["input"]) if isinstance(body.get("input"), list) else 0
    if step.text or not calls:
        output.append(
            {"type": "message", "id": f"msg_{turn}", "role": "assistant", "status": "completed", "content": content}
        )
    for number, (name, args) in enumerate(calls):
        text = args if isinstance(args, str) else json.dumps(args)
        item = {"type": "function_call", "id": f"fc_{turn}_{number}", "call_id": f"call_{turn}_{number}", "name": name}
        output.append({**item, "arguments": text, "status": "completed"})
    return output
