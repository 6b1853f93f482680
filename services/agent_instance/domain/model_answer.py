"""An endpoint's answer as it comes: server-sent events to JSON, and the pieces of a chat completion to one message.

Nothing here trusts the endpoint: sizes are bounded, and what is no answer is a typed error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from carrel.errors import ModelRefusedError, ModelUnavailableError

__all__ = ["ChatAnswer", "SseReader", "Usage", "usage_of"]

_MAX_LINE_BYTES: Final = 2 * 1024 * 1024
_MAX_TOOL_CALLS: Final = 128


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. ``estimated``: the endpoint did not count them, the host guessed from sizes."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False

    @property
    def total(self) -> int:
        """Both."""
        return self.input_tokens + self.output_tokens

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "total_tokens": self.total}
        return {**told, "estimated": True} if self.estimated else told


def usage_of(data: object) -> Usage | None:
    """The usage that an answer, or an event of one, states: of chat completions, embeddings or responses."""
    if not isinstance(data, dict):
        return None
    response = data.get("response")
    usage = data.get("usage") or (response.get("usage") if isinstance(response, dict) else None)
    if not isinstance(usage, dict):
        return None
    read = usage.get("prompt_tokens", usage.get("input_tokens"))
    written = usage.get("completion_tokens", usage.get("output_tokens", 0))
    if type(read) is not int or type(written) is not int or read < 0 or written < 0:
        return None
    return Usage(read, written)


class SseReader:
    """Takes bytes of a stream of server-sent events, gives the JSON of each ``data``. ``done`` after ``[DONE]``."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """The events that are whole by now.

        Raises:
            ModelRefusedError: A line without end, or data that is no JSON.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ModelRefusedError("the model's endpoint sent an event without an end")
        for line in lines:
            if not line.startswith(b"data:") or self.done:
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.done = True
            elif data:
                try:
                    yield orjson.loads(data)
                except orjson.JSONDecodeError:
                    raise ModelRefusedError(
                        "the model's endpoint sent what is no answer: an event that is not JSON",
                        advice="have the operator check that base_url is an OpenAI-compatible endpoint",
                    ) from None


class ChatAnswer:
    """Puts the pieces of a streamed chat completion together."""

    def __init__(self, model: str, max_bytes: int) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._finish = ""
        self._refusal: list[str] = []
        self._seen = False
        self.size = 0
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    def add(self, event: object) -> str:
        """Take one event; returns the piece of text in it.

        Raises:
            ModelUnavailableError: It says that the endpoint failed.
            ModelRefusedError: It is no piece of an answer, or the answer grows over its bound.
        """
        if not isinstance(event, dict):
            raise _no_answer("an event that is no object")
        if event.get("error"):
            raise ModelUnavailableError("the model's endpoint failed in the middle of its answer")
        self.usage = usage_of(event) or self.usage
        if isinstance(event.get("model"), str) and event["model"]:
            self._model = event["model"][:128]
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise _no_answer("a choice without a delta")
        self._seen = True
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"][:64]
        for call in delta.get("tool_calls") or ():
            self._add_call(call)
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])
            self._grow(delta["refusal"])
        piece = delta.get("content")
        if not isinstance(piece, str) or not piece:
            return ""
        self._grow(piece)
        self._text.append(piece)
        return piece

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The answer: message, finish_reason, usage, model.

        Raises:
            ModelRefusedError: There was none.
            ModelUnavailableError: It broke off before its end.
        """
        if not self._seen:
            raise _no_answer("no choices")
        if not self._finish:
            raise ModelUnavailableError("the model's answer broke off before its end")
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"] or f"call_{index}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for index, call in sorted(self._calls.items())
            ]
        return {
            "message": message,
            "finish_reason": self._finish,
            "usage": usage.to_dict(),
            "model": self._model,
        }

    def _add_call(self, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        index = call.get("index", len(self._calls)) if isinstance(call, dict) else None
        if type(index) is not int or not isinstance(function, Mapping | None) or not 0 <= index < _MAX_TOOL_CALLS:
            raise _no_answer("a tool call that makes no sense")
        known = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        parts = {"id": call.get("id"), **{name: (function or {}).get(name) for name in ("name", "arguments")}}
        for name, value in parts.items():
            if isinstance(value, str) and value:
                self._grow(value)
                # An id or a name comes whole, and some endpoints repeat it with every piece.
                known[name] = known[name] + value if name == "arguments" else value

    def _grow(self, piece: str) -> None:
        self.size += len(piece.encode("utf-8", "surrogatepass"))
        if self.size > self._max_bytes:
            raise ModelRefusedError(
                f"the model's answer is over {self._max_bytes} bytes",
                advice="ask for a shorter one (max_tokens)",
                limit="max_answer_bytes",
                limit_value=self._max_bytes,
                use=self.size,
            )


def _no_answer(what: str) -> ModelRefusedError:
    return ModelRefusedError(
        f"the model's endpoint sent what is no answer: {what}",
        advice="have the operator check that base_url is an OpenAI-compatible endpoint",
    )
