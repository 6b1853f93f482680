"""``ctx.llm``: language models for agents, through the host, which holds the key, counts tokens and tells the user.

    reply = await ctx.llm.chat([{"role": "user", "content": request.message}], speak="message")

Messages, options and tools are those of an OpenAI chat completion. Not a client of any endpoint: every call is a
message to the host. A worker needs no key for it, and a repeated attempt gets the answers it had, without asking again.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from carrel.agent_calls import HostCalls
from carrel.agent_messages import CallModel, ModelReply
from carrel.agents import Message
from carrel.errors import InvalidRequestError, ModelRefusedError, ModelUnavailableError, ProtocolError, ToolError
from carrel.frozen import JSON, FrozenDict, freeze_map, thaw
from carrel.function_names import function_names
from carrel.tools import Tool

if TYPE_CHECKING:
    from carrel.agent_context import AgentContext

__all__ = ["MODEL_VARIABLE", "ChatReply", "ChatStream", "Conversation", "Llm", "Speak", "ToolRequest", "Usage"]

MODEL_VARIABLE: Final = "CARREL_MODEL"
"""What the host names the default model by in ``Start.environment``; absent when there is no model."""

Speak = Literal["message", "thinking"]
# Mappings and ``Message``s; a list that mixes them is a list of ``object`` to a type checker. Checked when it is sent.
Messages = str | Sequence[Any]
ToolChoice = Sequence[str | Tool | Mapping[str, Any]]

_TOOL_TYPE: Final = "carrel_tool"
_MAX_TOOL_TEXT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call, or of several. ``estimated``: the endpoint did not count them all."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Both."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool that the model wants called. ``arguments`` is None when they are no JSON object; ``text`` has them raw."""

    id: str
    name: str
    arguments: Mapping[str, JSON] | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The model's answer.

    Attributes:
        text: Its text; "" when it only calls tools.
        tool_calls: The tools it wants called; names are the agent's own.
        finish_reason: ``stop``, ``length``, ``tool_calls``, ``content_filter``.
        message: The whole, as it goes into the next call's messages.
        replayed: It comes from the journal of an earlier attempt.
    """

    text: str
    tool_calls: tuple[ToolRequest, ...] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    message: Mapping[str, JSON] = field(default_factory=FrozenDict)
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """What ``converse`` gives: the final ``text``, every message (the given ones first), and the use of all calls."""

    text: str
    messages: tuple[Mapping[str, JSON], ...]
    usage: Usage
    turns: int
    reply: ChatReply


class ChatStream:
    """A model's text as it comes: ``async for piece in stream``; then ``stream.reply`` is the whole answer.

    Leaving the loop early ends the call; ``async with`` around it does so at once.
    """

    def __init__(self, ask: Callable[[asyncio.Queue[str | None]], Coroutine[Any, Any, ChatReply]]) -> None:
        self._ask = ask
        self._reply: ChatReply | None = None
        self._pieces = self._read()

    @property
    def reply(self) -> ChatReply:
        """The whole answer.

        Raises:
            InvalidRequestError: The stream has not been read to its end.
        """
        if self._reply is None:
            raise InvalidRequestError("the model's answer has not been read to its end", advice="read the stream first")
        return self._reply

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the call, if it has not ended. Idempotent."""
        await self._pieces.aclose()

    async def _read(self) -> AsyncGenerator[str, None]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()  # the host bounds an answer, and with it this queue
        asking = asyncio.create_task(self._ask(pieces), name="stream of a model")
        asking.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            self._reply = await asking
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking})


class Llm:
    """``ctx.llm``. Made by the context; ``available`` says whether this deployment has a model, ``model`` which.

    Every method raises ``ModelError``: ``ModelUnavailableError`` (away, or none), ``ModelRefusedError`` (the request
    makes no sense to the endpoint), ``ModelBudgetError`` (the user's tokens are used up), ``ModelBusyError``.
    """

    def __init__(self, context: AgentContext, calls: HostCalls, model: str) -> None:
        self._context = context
        self._calls = calls
        self.model = model

    @property
    def available(self) -> bool:
        """Whether a model is configured; not whether it answers."""
        return bool(self.model)

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        tools: ToolChoice | None = None,
        speak: Speak | None = None,
        **options: Any,
    ) -> ChatReply:
        """Ask the model once and return its answer.

        Args:
            messages: As for a chat completion; messages of ``request.history`` may be among them, and a text is one
                message of the user.
            model: None for the deployment's own.
            tools: Names of tools of this context, ``Tool`` objects of it, or functions as OpenAI describes them. The
                model may ask for them; calling them is up to the caller (``converse`` does it).
            speak: Tell the user the text as it comes: as ``agent_message``, or as ``agent_thinking``.
            options: Any option of the endpoint: ``temperature``, ``max_tokens``, ``response_format`` …
        """
        call, names = self._prepare(messages, model, tools, speak, options)
        return await self._ask(call, names, None)

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        tools: ToolChoice | None = None,
        speak: Speak | None = None,
        **options: Any,
    ) -> ChatStream:
        """As ``chat``, giving the text as it comes: ``async for piece in ctx.llm.stream(…)``."""
        call, names = self._prepare(messages, model, tools, speak, options)
        return ChatStream(functools.partial(self._ask, replace(call, deltas=True), names))

    async def converse(
        self,
        messages: Messages,
        *,
        tools: ToolChoice | None = None,
        max_turns: int = 8,
        model: str | None = None,
        speak: Speak | None = "message",
        **options: Any,
    ) -> Conversation:
        """Let the model call tools until it has an answer; returns that, and the messages on the way.

        Every tool call is ``ctx.call_tool``: checked, audited, shown to the user, approved where that is asked for.
        Calls of one turn run at once. A tool's error is told to the model, which may do otherwise.

        Args:
            tools: As for ``chat``, this context's only; all of them by default.
            max_turns: How often the model may be asked; the last time it is told to answer without tools.

        Raises:
            ModelRefusedError: It still calls tools then, or a tool is none of this context's.
        """
        if max_turns < 1:
            raise InvalidRequestError("max_turns must be at least 1", fields={"max_turns": "must be at least 1"})
        chosen: ToolChoice = self._context.tools if tools is None else tools
        if not all(isinstance(tool, str | Tool) for tool in chosen):
            raise ModelRefusedError(
                "converse calls tools of this context only", advice="use chat for functions of your own"
            )
        said = _messages(messages)
        usage = Usage()
        for turn in range(1, max_turns + 1):
            last = {"tool_choice": "none"} if turn == max_turns and turn > 1 and chosen else {}
            reply = await self.chat(said, tools=chosen, model=model, speak=speak, **{**options, **last})
            usage += reply.usage
            said.append(thaw(reply.message))
            if not reply.tool_calls:
                return Conversation(reply.text, tuple(said), usage, turn, reply)
            if turn < max_turns:
                said += await self._call_all(reply.tool_calls)
        raise ModelRefusedError(f"the model still calls tools after {max_turns} turns", advice="raise max_turns")

    async def _call_all(self, requests: Sequence[ToolRequest]) -> list[dict[str, Any]]:
        tasks = [asyncio.create_task(self._call_one(request), name=f"tool {request.name}") for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _call_one(self, request: ToolRequest) -> dict[str, Any]:
        if request.arguments is None:
            text = "error: the arguments are not a JSON object"
        elif request.name not in self._context.tools:
            text = f"error: there is no tool {request.name[:64]}; there are {', '.join(self._context.tools) or 'none'}"
        else:
            try:
                text = _tool_text(await self._context.call_tool(request.name, **request.arguments))
            except ToolError as error:
                text = f"error: {error}"
        return {"role": "tool", "tool_call_id": request.id, "content": text}

    def _prepare(
        self,
        messages: Messages,
        model: str | None,
        tools: ToolChoice | None,
        speak: Speak | None,
        options: Mapping[str, Any],
    ) -> tuple[CallModel, Mapping[str, str]]:
        self._context._check_open()  # noqa: SLF001  (one class in two parts)
        if not self.available:
            raise ModelUnavailableError(
                "this deployment has no language model",
                advice="have the operator set CARREL_AGENT_INSTANCE_MODELS__BASE_URL; ctx.llm.available says if it is",
            )
        request: dict[str, Any] = {**options, "messages": _messages(messages)}
        if model is not None:
            request["model"] = model
        described, names = _tools(tools or ())
        if described:
            request["tools"] = described
        try:
            frozen = freeze_map(request, "request")
        except InvalidRequestError as error:
            raise ModelRefusedError(f"the request to the model: {error.message}", fields=dict(error.fields)) from None
        return CallModel(self._calls.next_id(), self._context.handle, frozen, speak or ""), names

    async def _ask(
        self, call: CallModel, names: Mapping[str, str], pieces: asyncio.Queue[str | None] | None
    ) -> ChatReply:
        if pieces is not None:
            self._calls.listen(call.call_id, pieces.put_nowait)
        return _reply((await self._calls.ask(call, ModelReply)).answer, names)


def _messages(messages: Messages) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    found: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, Message):
            found.append({"role": message.role, "content": message.text})
        elif isinstance(message, Mapping):
            found.append(thaw(message))
        else:
            raise ModelRefusedError(
                f"a message to the model is {type(message).__name__}, not a mapping",
                advice='write {"role": "user", "content": …}, or pass messages of request.history',
            )
    return found


def _tools(tools: ToolChoice) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """How the host is asked for these tools, and the agent's name for each function that the model may then call."""
    if isinstance(tools, str):
        raise ModelRefusedError("tools must be a list", advice=f"write tools=[{tools!r}]")
    described: list[dict[str, Any]] = []
    own: list[str] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            described.append(thaw(tool))
        else:
            name = tool.name if isinstance(tool, Tool) else tool
            own.append(name)
            described.append({"type": _TOOL_TYPE, "name": name})
    return described, function_names(own)


def _reply(answer: Mapping[str, Any], names: Mapping[str, str]) -> ChatReply:
    try:
        message, usage = answer["message"], answer["usage"]
        # What goes back to the model keeps its names; what the agent reads has its own.
        return ChatReply(
            text=message.get("content") or "",
            tool_calls=tuple(_tool_request(call, names) for call in message.get("tool_calls", ())),
            finish_reason=answer["finish_reason"],
            usage=Usage(usage["input_tokens"], usage["output_tokens"], usage.get("estimated", False)),
            model=answer["model"],
            message=freeze_map(message, "message"),
            replayed=answer.get("replayed", False),
        )
    except (KeyError, TypeError, AttributeError):
        raise ProtocolError("the host gave what is no answer of a model") from None


def _tool_request(call: Mapping[str, Any], names: Mapping[str, str]) -> ToolRequest:
    name, text = call["function"]["name"], call["function"]["arguments"]
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = None
    return ToolRequest(call["id"], names.get(name, name), arguments if isinstance(arguments, dict) else None, text)


def _tool_text(result: JSON) -> str:
    text = result if isinstance(result, str) else json.dumps(thaw(result), ensure_ascii=False)
    return text if len(text) <= _MAX_TOOL_TEXT else text[:_MAX_TOOL_TEXT] + "… (shortened)"
