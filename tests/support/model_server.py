"""A small real HTTP server that speaks the protocol of OpenAI-compatible endpoints, scripted: no model behind it.

    async with model_server(Say("Hello"), CallTools(("add", {"a": 1, "b": 2}))) as server:
        ... server.base_url, server.requests

Each request takes the next step of the script; when there is none left, ``otherwise``. As a program it answers a chat
by simple rules, so that agents that want a model can be tried without one:

    python -m tests.support.model_server --port 8081
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support import model_responses

__all__ = ["CallTools", "Fail", "Hang", "ModelServer", "Raw", "Say", "model_server"]


@dataclass(frozen=True)
class Say:
    """Answer with text, in ``pieces``, one every ``delay_s``; ``cut`` the connection after so many pieces."""

    text: str
    pieces: int = 2
    delay_s: float = 0.0
    usage: bool = True
    cut: int | None = None
    finish: str = "stop"


@dataclass(frozen=True)
class CallTools:
    """Ask for tools: pairs of a name and arguments (an object, or text as it is)."""

    calls: tuple[tuple[str, Any], ...]
    text: str = ""

    def __init__(self, *calls: tuple[str, Any], text: str = "") -> None:
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "text", text)


@dataclass(frozen=True)
class Fail:
    """Refuse with a status."""

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


@dataclass(frozen=True)
class Seen:
    """One request."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class ModelServer:
    """The server. ``requests``: what it got; ``aborted``: how many the other side gave up; ``open``: under way now."""

    def __init__(
        self, *script: Step, otherwise: Rule | None = None, key: str | None = None, keep_alive: bool = True
    ) -> None:
        self._keep_alive = keep_alive
        self.script = list(script)
        self.otherwise: Rule = otherwise or (lambda _: Say("ok"))
        self.key = key
        self.requests: list[Seen] = []
        self.aborted = self.open = self.most_open = 0
        self.base_url = ""

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._counted)
        app.router.add_post("/v1/embeddings", self._counted)
        app.router.add_post("/v1/responses", self._counted)
        app.router.add_get("/v1/models", self._models)
        if not self._keep_alive:
            app.on_response_prepare.append(_close)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(Seen(request.path, body, dict(request.headers)))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.open -= 1

    async def _answer(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, f"Incorrect API key provided: {request.headers.get('Authorization', '')}", {})
        step = self.script.pop(0) if self.script else self.otherwise(body)
        if isinstance(step, Hang):
            await asyncio.Event().wait()
        if isinstance(step, Fail):
            return _error(step.status, step.message, step.headers)
        if isinstance(step, Raw):
            return web.Response(body=step.body, content_type=step.content_type)
        assert isinstance(step, Say | CallTools)
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
            usage = {"prompt_tokens": 5, "total_tokens": 5}
            return web.json_response({"object": "list", "model": body["model"], "data": data, "usage": usage})
        if request.path.endswith("/responses"):
            if not body.get("stream"):
                return web.json_response(model_responses.response(body, step))
            return await _stream_response(request, body, step)
        if not body.get("stream"):
            return web.json_response(_completion(body, step))
        return await _stream(request, body, step)


async def _close(_: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


def _error(status: int, message: str, headers: Mapping[str, str]) -> web.Response:
    error = {"message": message, "type": "scripted", "code": f"scripted_{status}", "param": None}
    return web.json_response({"error": error}, status=status, headers=dict(headers))


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


async def _stream_response(request: web.Request, body: Mapping[str, Any], step: Say | CallTools) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for event in model_responses.events(body, step, _pieces(step)):
        if isinstance(step, Say) and step.delay_s and b"output_text.delta" in event:
            await asyncio.sleep(step.delay_s)
        await response.write(event)
    await response.write_eof()
    return response


async def _stream(request: web.Request, body: Mapping[str, Any], step: Say | CallTools) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    async def send(delta: Mapping[str, Any], finish: str | None = None) -> None:
        event = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    await send({"role": "assistant", "content": ""})
    for number, piece in enumerate(_pieces(step)):
        if isinstance(step, Say) and step.cut is not None and number >= step.cut:
            assert request.transport is not None
            request.transport.abort()
            return response
        if isinstance(step, Say) and step.delay_s:
            await asyncio.sleep(step.delay_s)
        await send({"content": piece})
    if isinstance(step, CallTools):
        for call in _tool_calls(step):
            await _send_call(send, call)
    await send({}, "tool_calls" if isinstance(step, CallTools) else step.finish)
    wanted = (body.get("stream_options") or {}).get("include_usage")
    if wanted and (isinstance(step, CallTools) or step.usage):
        event = {**head, "choices": [], "usage": _usage(body, step)}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _send_call(send: Callable[[Mapping[str, Any]], Any], call: Mapping[str, Any]) -> None:
    # As the real ones do: the name first, the arguments in pieces that are no JSON by themselves.
    text = call["function"]["arguments"]
    await send({"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
    for part in (text[: len(text) // 2], text[len(text) // 2 :]):
        await send({"tool_calls": [{"index": call["index"], "function": {"arguments": part}}]})


def _pieces(step: Say | CallTools) -> list[str]:
    if not step.text:
        return []
    count = max(1, min(step.pieces if isinstance(step, Say) else 1, len(step.text)))
    size = -(-len(step.text) // count)
    return [step.text[start : start + size] for start in range(0, len(step.text), size)]


@asynccontextmanager
async def model_server(
    *script: Step,
    otherwise: Rule | None = None,
    key: str | None = None,
    port: int = 0,
    keep_alive: bool = True,
) -> AsyncIterator[ModelServer]:
    """The server on 127.0.0.1 for the length of the block. Without ``keep_alive``, for clients that outlive a loop."""
    server = ModelServer(*script, otherwise=otherwise, key=key, keep_alive=keep_alive)
    runner = web.AppRunner(server.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()


# As a program.

_SUM = re.compile(r"[\d.(][\d\s.()+*/%^-]*[\d)]")
_CONVERT = re.compile(r"(?P<value>-?[\d.]+)\s*(?P<source>[a-z°]+)\s+(?:in|to|into|as)\s+(?P<target>[a-z°]+)", re.I)


def by_rules(body: Mapping[str, Any]) -> Step:
    """Calls the tool that the user's words ask for, when it is offered, and puts its result into a sentence."""
    if "messages" not in body:
        body = model_responses.as_chat(body)
    messages = body["messages"]
    offered = {tool["function"]["name"] for tool in body.get("tools", ()) if tool.get("type") == "function"}
    handed_over = str(messages[-1].get("content")).startswith('{"assistant"')
    if messages[-1]["role"] == "tool" and not handed_over:
        results = [m["content"] for m in messages if m["role"] == "tool"]
        return Say(f"Here is what I found: {results[-1]}", pieces=8, delay_s=0.02)
    asked = str(next((m["content"] for m in reversed(messages) if m["role"] == "user"), ""))
    if (order := re.search(r"order (\d+)", asked, re.I)) and (call := _about_order(offered, asked)):
        return CallTools((call, {} if call.startswith("transfer_to_") else {"number": int(order[1])}))
    if "keep_note" in offered and (note := re.search(r"\b(?:note|remember)\b[:,]?\s*(.+)", asked, re.I | re.S)):
        return CallTools(("keep_note", {"title": note[1].strip()[:40], "text": note[1].strip()}))
    if "convert_units" in offered and (found := _CONVERT.search(asked)):
        arguments = {"value": float(found["value"]), "source": found["source"], "target": found["target"]}
        return CallTools(("convert_units", arguments))
    if "calculate" in offered and (found := _SUM.search(asked)) and re.search(r"[+*/%^-]", found[0]):
        return CallTools(("calculate", {"expression": found[0].strip()}))
    earlier = sum(m["role"] == "user" for m in messages) - 1
    known = f" You have told me {earlier} thing(s) before." if earlier else ""
    return Say(f"I am a scripted model and heard: {asked[:200]}.{known}", pieces=8, delay_s=0.02)


def _about_order(offered: set[str], asked: str) -> str:
    """The function for a question about an order; a hand-off where that is the way to it."""
    if not re.search("refund", asked, re.I):
        return "find_order" if "find_order" in offered else ""
    handoffs = sorted(name for name in offered if name.startswith("transfer_to_"))
    return "refund_order" if "refund_order" in offered else next(iter(handoffs), "")


async def _main(port: int) -> None:
    async with model_server(otherwise=by_rules, port=port) as server:
        print(f"a scripted model at {server.base_url} (any key, any model); Ctrl+C ends it", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=8081)
    try:
        asyncio.run(_main(parser.parse_args().port))
    except KeyboardInterrupt:
        sys.exit(0)
