"""Running a graph of LangGraph's: its events, its interrupts, its tools. Loads the library."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt, StreamMode

from carrel.adapters._dispatch import call, call_from_thread, named
from carrel.adapters._questions import ask
from carrel.adapters._values import answer_of
from carrel.adapters._voice import Voice
from carrel.agent_context import AgentContext
from carrel.errors import ToolError
from carrel.frozen import JSON, thaw
from carrel.tools import Tool

__all__ = ["Graph", "answer_of_state", "run", "tools"]

Graph = Pregel[Any, Any, Any, Any]

_MODES: Final[list[StreamMode]] = ["messages", "updates", "values"]


async def run(
    ctx: AgentContext, voice: Voice, graph: Graph, given: Any, config: Mapping[str, Any], context: object
) -> Any:
    """One run of the graph; its last state. It has a checkpointer already where its state is kept."""
    if graph.checkpointer is None:
        # An interrupt needs one; this lasts as long as the attempt.
        graph = graph.copy({"checkpointer": InMemorySaver()})
    return await _Turn(ctx, graph, voice, config, context).run(given)


def answer_of_state(state: Any) -> Mapping[str, JSON]:
    """The stage's result, when its author has not said how to make it."""
    if isinstance(state, Mapping) and state.get("structured_response") is not None:
        return answer_of(state["structured_response"])
    said = state.get("messages") if isinstance(state, Mapping) else None
    if isinstance(said, list) and said and isinstance(said[-1], BaseMessage):
        return {"answer": str(said[-1].text)}
    return answer_of(state)


def tools(*carrels: Tool) -> list[BaseTool]:
    """Carrel's tools as LangChain's."""
    return [_structured(function, tool) for function, tool in named(carrels).items()]


class _Turn:
    """One run of a graph, from its input to its last state."""

    def __init__(
        self, ctx: AgentContext, graph: Graph, voice: Voice, config: Mapping[str, Any], context: object
    ) -> None:
        self._ctx = ctx
        self._graph = graph
        self._voice = voice
        self._context = context
        configurable = {**config.get("configurable", {}), "thread_id": ctx.context.thread_id}
        callbacks = [*config.get("callbacks", ()), _Listener(voice)]
        self._config: Any = {**config, "configurable": configurable, "callbacks": callbacks}

    async def run(self, given: Any) -> Any:
        """The last state."""
        while True:
            state, interrupts = await self._until_stopped(given)
            await self._voice.pause()
            if not interrupts:
                return state
            answers = {item.id: await ask(self._ctx, item.value, _schema(item)) for item in interrupts}
            given = Command(resume={key: thaw(value) for key, value in answers.items()})

    async def _until_stopped(self, given: Any) -> tuple[Any, list[Interrupt[Any]]]:
        state: Any = None
        interrupts: dict[str, Interrupt[Any]] = {}
        stream = self._graph.astream(given, self._config, context=self._context, stream_mode=_MODES)
        async for mode, piece in stream:
            if mode == "values":
                state = piece
            elif mode == "messages":
                await _say(self._voice, piece[0])
            elif isinstance(piece, Mapping):
                interrupts |= {item.id: item for item in piece.get("__interrupt__", ())}
        return state, list(interrupts.values())


class _Listener(AsyncCallbackHandler):
    """Hears which tools the graph calls, from whatever thread."""

    run_inline = True

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._loop = asyncio.get_running_loop()

    async def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = str(kwargs.get("name") or serialized.get("name") or "tool")
        arguments = inputs if inputs is not None else {"input": input_str}
        await self._here(self._voice.called(str(run_id), name, arguments))

    async def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        result = output.content if isinstance(output, BaseMessage) else output
        error = str(result) if getattr(output, "status", "success") == "error" else None
        await self._here(self._voice.returned(str(run_id), result, error=error))

    async def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if isinstance(error, GraphBubbleUp):
            # It stopped to ask, and runs again with the answer.
            ended = self._voice.returned(str(run_id), error="it waits for an answer", status="cancelled")
        else:
            ended = self._voice.returned(str(run_id), error=f"{type(error).__name__}: {error}")
        await self._here(ended)

    async def _here(self, telling: Coroutine[Any, Any, None]) -> None:
        """Blocking nodes run in threads, with loops of their own."""
        if asyncio.get_running_loop() is self._loop:
            await telling
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(telling, self._loop))


async def _say(voice: Voice, message: object) -> None:
    if not isinstance(message, AIMessage):
        return
    part = message.id or ""
    for block in message.content_blocks:
        if block["type"] == "text":
            await voice.say(block["text"], "message", part)
        elif block["type"] == "reasoning":
            await voice.say(block.get("reasoning", ""), "thinking", part)


def _schema(item: Interrupt[Any]) -> Mapping[str, Any] | None:
    if isinstance(item.response_schema, Mapping):
        return item.response_schema
    choices = item.value.get("choices") if isinstance(item.value, Mapping) else None
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return {"type": "string", "enum": choices}
    return None


def _structured(function: str, tool: Tool) -> StructuredTool:
    async def body(**arguments: Any) -> JSON:
        try:
            return await call(tool, arguments)
        except ToolError as error:
            raise ToolException(f"error: {error}") from error

    def blocking(**arguments: Any) -> JSON:
        try:
            return call_from_thread(tool, arguments)
        except ToolError as error:
            raise ToolException(f"error: {error}") from error

    return StructuredTool.from_function(
        func=blocking,
        coroutine=body,
        name=function,
        description=tool.description or function,
        args_schema=thaw(tool.input_schema),
        infer_schema=False,
        # The model is told, and may do otherwise.
        handle_tool_error=True,
    )
