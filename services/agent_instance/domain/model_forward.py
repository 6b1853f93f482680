"""A request of code that speaks HTTP, passed on to the endpoint: bounded, counted and audited like any model call.

What passes is the endpoint's own answer, byte for byte, so that unmodified clients understand it. An answer that has
come to its end is journaled, and a repeated attempt's same request gets it again, unpaid; what broke off, what says an
error and what is too large to keep is asked again. So are embeddings: bulk, the same each time, that would take the
journal's room from calls that must not be made twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from carrel.errors import ModelRefusedError
from services.agent_instance.domain.calls import hash_arguments
from services.agent_instance.domain.model_answer import SseReader, usage_of
from services.agent_instance.domain.model_calls import Meter, TurnModels
from services.agent_instance.domain.model_endpoint import EndpointAnswer, ModelPolicy
from services.agent_instance.domain.model_references import refuse_references
from services.agent_instance.domain.model_request import bounded, limit_output
from services.agent_instance.domain.receipts import durable
from services.agent_instance.domain.tool_reports import MAX_JOURNALED_BYTES
from services.agent_instance.models import JournalItem

__all__ = ["FORWARDED", "Forwarded", "forward"]

FORWARDED: Final = ("chat/completions", "embeddings", "responses")
_PARTING_S: Final = 0.2
_STREAM: Final = "text/event-stream"
_FAILED: Final = ("error", "response.failed")
_WHOLE: Final = ("response.completed", "response.incomplete")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An answer that has begun; ``streamed``: server-sent events."""

    content_type: str
    streamed: bool
    chunks: AsyncIterator[bytes]


class _Record:
    """One call's place in the journal: the answer of an earlier attempt, or what this one's becomes.

    Its arguments are the path and the request, so that it is never taken for a call of ``ctx.llm``.
    """

    def __init__(self, turn: TurnModels, model: str, path: str, digest: str) -> None:
        self._host = turn.host
        self._model = model
        self._digest = hash_arguments({"path": path, "request": digest})
        self._keeps = path != "embeddings"
        self._id, self.earlier = self._host.ledger.recall("model", model, self._digest)

    async def kept(self, answer: Forwarded, meter: Meter, call: AsyncExitStack) -> AsyncIterator[bytes]:
        """The chunks as they are; the whole is journaled.

        What says that the answer is whole is held back until the entry is durable: its reader may act on it. ``call``,
        the model's time and the user's place among his calls, ends before that.
        """
        data: bytearray | None = bytearray() if self._keeps else None
        held: list[bytes] = []
        async for chunk in answer.chunks:
            if data is not None:
                data += chunk
                # As text in JSON it is larger, but not by much: it is JSON already.
                data = data if len(data) <= MAX_JOURNALED_BYTES // 2 else None
            if data is not None and (meter.said_end or not answer.streamed):
                held.append(chunk)
                continue
            for earlier in held:
                yield earlier
            held.clear()
            yield chunk
        if data is not None and not meter.said_error:
            told = {"content_type": answer.content_type, "streamed": answer.streamed}
            result = orjson.dumps({**told, "text": data.decode("utf-8", "replace")})
            await self._store(result, call)
        for chunk in held:
            yield chunk

    async def _store(self, result: bytes, call: AsyncExitStack) -> None:
        host = self._host
        with host.clock.stopped():
            receipt = await host.uplink.journal(
                host.ledger.entry(self._id, "model", self._model, self._digest, result, None)
            )
            await call.aclose()
            await durable(receipt)


def _again(earlier: JournalItem) -> Forwarded:
    told = orjson.loads(earlier.result)

    async def chunks() -> AsyncIterator[bytes]:
        yield told["text"].encode()

    return Forwarded(told["content_type"], told["streamed"], chunks())


@asynccontextmanager
async def forward(turn: TurnModels, path: str, request: dict[str, Any]) -> AsyncIterator[Forwarded]:
    """Send a request on. A model that may not be asked becomes the deployment's own.

    Raises:
        ModelError: As for ``ctx.llm``; also while the answer is read.
    """
    policy = turn.desk.policy
    digest = hash_arguments(request)
    body, wants_usage = _body(path, request, policy)
    model = str(body["model"])
    record = _Record(turn, model, path, digest)
    if record.earlier is not None:
        yield _again(record.earlier)
        return
    async with AsyncExitStack() as call:
        meter = await call.enter_async_context(turn.metered(model, digest, turn.caller().context))
        if path == "chat/completions":
            limit_output(body, policy, turn.budget.left)
        elif path == "responses" and turn.budget.left is not None:
            body["max_output_tokens"] = max(1, min(body["max_output_tokens"], turn.budget.left))
        meter.input_bytes = bounded(body, policy)
        answer = await call.enter_async_context(turn.desk.endpoint.open(path, body))
        meter.sent = True
        streamed = answer.content_type == _STREAM
        chunks = _events(answer, meter, policy, all_events=wants_usage) if streamed else _whole(answer, meter, policy)
        passed = Forwarded(answer.content_type or "application/json", streamed, chunks)
        yield replace(passed, chunks=record.kept(passed, meter, call))


def _body(path: str, request: dict[str, Any], policy: ModelPolicy) -> tuple[dict[str, Any], bool]:
    refuse_references(path, request)
    body = dict(request)
    wanted = body.get("model")
    body["model"] = wanted if isinstance(wanted, str) and policy.permits(wanted) else policy.default
    if path == "responses":
        body["store"] = False
        asked = body.get("max_output_tokens")
        most = policy.max_output_tokens
        body["max_output_tokens"] = min(asked, most) if type(asked) is int and asked > 0 else most
    if path != "chat/completions":
        return body, True
    if body.get("n", 1) != 1:
        raise ModelRefusedError("n must be 1: one answer per request")
    body.pop("store", None)
    if not body.get("stream"):
        body.pop("stream_options", None)
        return body, True
    options = body.get("stream_options")
    options = dict(options) if isinstance(options, dict) else {}
    wants_usage = bool(options.get("include_usage"))
    body["stream_options"] = {**options, "include_usage": True}
    return body, wants_usage


async def _whole(answer: EndpointAnswer, meter: Meter, policy: ModelPolicy) -> AsyncIterator[bytes]:
    data = bytearray()
    async for chunk in answer.chunks():
        data += chunk
        meter.output_bytes = len(data)
        _hold(len(data), policy)
    try:
        meter.usage = usage_of(orjson.loads(data))
    except orjson.JSONDecodeError:
        raise ModelRefusedError("the model's endpoint sent what is no answer: not JSON") from None
    yield bytes(data)


async def _events(
    answer: EndpointAnswer, meter: Meter, policy: ModelPolicy, *, all_events: bool
) -> AsyncIterator[bytes]:
    """The stream as it is, but for the event that tells the usage when the client has not asked for that."""
    reader, size, rest = SseReader(), 0, b""
    async for chunk in _ending(answer.chunks(), reader):
        size += len(chunk)
        _hold(size, policy)
        for event in reader.feed(chunk):
            meter.usage = usage_of(event) or meter.usage
            meter.output_bytes += _text_bytes(event)
            meter.said_error |= _says_error(event)
            meter.said_end |= _says_end(event)
        meter.said_end |= reader.done
        if all_events:
            yield chunk
        else:
            *blocks, rest = (rest + chunk).split(b"\n\n")
            if kept := b"".join(block + b"\n\n" for block in blocks if not _tells_usage_only(block)):
                yield kept
    if rest:
        yield rest


async def _ending(chunks: AsyncIterator[bytes], reader: SseReader) -> AsyncIterator[bytes]:
    """The chunks; after the last event only what comes at once: its reader's end must not wait for a hang-up."""
    while True:
        try:
            async with asyncio.timeout(_PARTING_S if reader.done else None):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if reader.done:
                return
            raise
        yield chunk


def _tells_usage_only(block: bytes) -> bool:
    if not block.startswith(b"data:") or b'"usage"' not in block:
        return False
    try:
        event = orjson.loads(block[5:])
    except orjson.JSONDecodeError:
        return False
    return isinstance(event, dict) and bool(event.get("usage")) and event.get("choices") == []


def _says_error(event: object) -> bool:
    return isinstance(event, dict) and bool(event.get("error") or event.get("type") in _FAILED)


def _says_end(event: object) -> bool:
    """Whether the answer is whole with this: a finish_reason of a chat completion, or a response's last event."""
    if not isinstance(event, dict):
        return False
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return event.get("type") in _WHOLE or bool(isinstance(first, dict) and first.get("finish_reason"))


def _text_bytes(event: object) -> int:
    if not isinstance(event, dict):
        return 0
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else event.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else delta
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0


def _hold(size: int, policy: ModelPolicy) -> None:
    if size > policy.max_proxied_bytes:
        raise ModelRefusedError(
            f"the model's answer is over {policy.max_proxied_bytes} bytes",
            advice="ask for a shorter one",
            limit="max_proxied_bytes",
            limit_value=policy.max_proxied_bytes,
            use=size,
        )
