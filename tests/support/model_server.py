"""The scripted model (``carrel.testing``) as a server for tests, and as a program:

    async with model_server(Say("Hello"), CallTools(("add", {"a": 1, "b": 2}))) as server:
        ... server.base_url, server.requests

Each request takes the next step of the script; when there is none left, ``otherwise``. As a program it answers a chat
by simple rules, so that agents that want a model can be tried without one:

    python -m tests.support.model_server --port 8081
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from carrel.testing import model_responses
from carrel.testing.model import ScriptedModel
from carrel.testing.model_wire import CallTools, Fail, Hang, Raw, Rule, Say, Step

__all__ = ["CallTools", "Fail", "Hang", "ModelServer", "Raw", "Say", "Step", "model_server"]

ModelServer = ScriptedModel


@asynccontextmanager
async def model_server(
    *script: Step,
    otherwise: Rule | None = None,
    key: str | None = None,
    port: int = 0,
    keep_alive: bool = True,
) -> AsyncIterator[ModelServer]:
    """The server on 127.0.0.1 for the length of the block. Without ``keep_alive``, for clients that outlive a loop."""
    server = ModelServer(*script, otherwise=otherwise or (lambda _: Say("ok")), key=key)
    async with server.serving(port, keep_alive=keep_alive):
        yield server


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
