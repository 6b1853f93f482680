"""What a scripted model may do, and its wire form at an OpenAI-compatible endpoint. No server, and no script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from carrel.testing import model_responses

__all__ = ["BrokenOffError", "CallTools", "Fail", "Hang", "Raw", "Rule", "Say", "Step", "answer", "events"]


@dataclass(frozen=True)
class Say:
    """Answer with text, in ``pieces``, one every ``delay_s`` seconds.

    ``cut``: break the connection off after so many pieces. ``usage``: whether tokens are counted, for who asks.
    ``finish``: the ``finish_reason``.
    """

    text: str
    pieces: int = 2
    delay_s: float = 0.0
    usage: bool = True
    cut: int | None = None
    finish: str = "stop"


@dataclass(frozen=True)
class CallTools:
    """Ask for tools: pairs of a name and arguments (an object, or text as it is, which need not be JSON)."""

    calls: tuple[tuple[str, Any], ...]
    text: str = ""

    def __init__(self, *calls: tuple[str, Any], text: str = "") -> None:
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "text", text)


@dataclass(frozen=True)
class Fail:
    """Refuse with an HTTP status."""

    status: int
    message: str = "scripted failure"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    """Say nothing, for as long as the other side waits."""


@dataclass(frozen=True)
class Raw:
    """Answer 200 with these bytes."""

    body: bytes
    content_type: str = "text/event-stream"


Step = Say | CallTools | Fail | Hang | Raw
Rule = Callable[[Mapping[str, Any]], Step]
"""Chooses a step by the request's body."""


class BrokenOffError(Exception):
    """The step wants the connection cut here."""


class _Send(Protocol):
    def __call__(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes: ...


def answer(path: str, body: Mapping[str, Any], step: Say | CallTools) -> dict[str, Any]:
    """The whole answer as one JSON object, for a request that is not streamed."""
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        return {"object": "list", "model": body["model"], "data": data, "usage": usage}
    if path.endswith("/responses"):
        return model_responses.response(body, step)
    return _completion(body, step)


async def events(path: str, body: Mapping[str, Any], step: Say | CallTools) -> AsyncIterator[bytes]:
    """The answer as server-sent events, in the step's pieces and times.

    Raises:
        BrokenOffError: The step cuts the connection here.
    """
    delay_s = step.delay_s if isinstance(step, Say) else 0.0
    if path.endswith("/responses"):
        async for event in model_responses.events(body, step, _pieces(step)):
            if delay_s and b"output_text.delta" in event:
                await asyncio.sleep(delay_s)
            yield event
        return
    async for event in _chunks(body, step, delay_s):
        yield event


async def _chunks(body: Mapping[str, Any], step: Say | CallTools, delay_s: float) -> AsyncIterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": ""})
    for number, piece in enumerate(_pieces(step)):
        if isinstance(step, Say) and step.cut is not None and number >= step.cut:
            raise BrokenOffError
        if delay_s:
            await asyncio.sleep(delay_s)
        yield chunk({"content": piece})
    for call in _tool_calls(step) if isinstance(step, CallTools) else ():
        for event in _call_chunks(chunk, call):
            yield event
    yield chunk({}, "tool_calls" if isinstance(step, CallTools) else step.finish)
    wanted = (body.get("stream_options") or {}).get("include_usage")
    if wanted and (isinstance(step, CallTools) or step.usage):
        yield _event({**head, "choices": [], "usage": _usage(body, step)})
    yield b"data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _call_chunks(chunk: _Send, call: Mapping[str, Any]) -> list[bytes]:
    # As the real ones do: the name first, the arguments in pieces that are no JSON by themselves.
    text = call["function"]["arguments"]
    first = {"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]}
    half = len(text) // 2
    rest = [
        {"tool_calls": [{"index": call["index"], "function": {"arguments": part}}]}
        for part in (text[:half], text[half:])
    ]
    return [chunk(first), *map(chunk, rest)]


def _usage(body: Mapping[str, Any], step: Say | CallTools) -> dict[str, int]:
    read = sum(len(str(message.get("content") or "").split()) for message in body.get("messages", ()))
    written = max(1, len(step.text.split()))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _tool_calls(step: CallTools) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": args if isinstance(args, str) else json.dumps(args)},
        }
        for index, (name, args) in enumerate(step.calls)
    ]


def _completion(body: Mapping[str, Any], step: Say | CallTools) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step.text or None}
    finish = "stop"
    if isinstance(step, CallTools):
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in _tool_calls(step)]
        finish = "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    return {**head, "choices": [choice], "usage": _usage(body, step)}


def _pieces(step: Say | CallTools) -> list[str]:
    if not step.text:
        return []
    count = max(1, min(step.pieces if isinstance(step, Say) else 1, len(step.text)))
    size = -(-len(step.text) // count)
    return [step.text[start : start + size] for start in range(0, len(step.text), size)]
