"""``ctx.llm`` against a scripted host: what is asked, what comes back, and the loop of model and tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from carrel import Agent, AgentContext, Message, Request, tool
from carrel.agent_messages import CallModel, CallTool, Cancel, CancelCall, ModelDelta, ModelReply, Refused, ToolReply
from carrel.errors import (
    InvalidContextError,
    InvalidRequestError,
    ModelBudgetError,
    ModelRefusedError,
    ModelUnavailableError,
    ProtocolError,
    ToolFailedError,
)
from carrel.function_names import function_names
from carrel.llm import Conversation, Usage

Hire = Callable[..., Any]


@tool
async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@tool(name="math.twice")
async def twice(a: int) -> int:
    """Double."""
    return 2 * a


def agent_of(body: Callable[..., Any], *tools: Any) -> type[Agent]:
    async def run(self: Agent, ctx: AgentContext, request: Request) -> Any:
        return await body(ctx, request)

    return type("TestAgent", (Agent,), {"name": "test", "tools": tools, "run": run})


def with_model(hire: Hire, body: Callable[..., Any], *tools: Any, **request: Any) -> Any:
    host = hire(agent_of(body, *tools))
    host.environment = {"CARREL_MODEL": "small"}
    host.start(**request)
    return host


def answer(text: str | None, *calls: tuple[str, str], **more: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ]
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    finish = "tool_calls" if calls else "stop"
    return {"message": message, "finish_reason": finish, "usage": usage, "model": "small", **more}


async def reply(host: Any, text: str | None, *calls: tuple[str, str], **more: Any) -> CallModel:
    asked: CallModel = await host.hear(CallModel)
    host.say(ModelReply(asked.call_id, answer(text, *calls, **more)))
    return asked


async def test_chat_asks_the_host_and_gives_the_answer(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        assert ctx.llm.available
        assert ctx.llm.model == "small"
        said = [{"role": "system", "content": "Be brief."}, *request.history, {"role": "user", "content": "now"}]
        got = await ctx.llm.chat(said, speak="message", temperature=0.2, model="large")
        assert got.usage == Usage(3, 2)
        assert got.usage.total_tokens == 5
        assert got.message == {"role": "assistant", "content": "Hello"}
        return {"text": got.text, "model": got.model, "finish": got.finish_reason, "replayed": got.replayed}

    host = with_model(hire, body, history=(Message("user", "before"), Message("assistant", "yes")))
    asked = await reply(host, "Hello", replayed=True)
    assert (asked.speak, asked.deltas, asked.handle) == ("message", False, 0)
    assert asked.request == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "before"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "now"},
        ],
        "temperature": 0.2,
        "model": "large",
    }
    assert await host.end() == {"text": "Hello", "model": "small", "finish": "stop", "replayed": True}


async def test_without_a_model_every_way_says_so(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        assert not ctx.llm.available
        with pytest.raises(ModelUnavailableError, match="no language model"):
            await ctx.llm.chat("hi")
        with pytest.raises(ModelUnavailableError):
            ctx.llm.stream("hi")
        with pytest.raises(ModelUnavailableError):
            await ctx.llm.converse("hi")
        return {}

    host = hire(agent_of(body))
    host.start()
    assert await host.end() == {}


async def test_a_stream_gives_pieces_and_then_the_whole(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        stream = ctx.llm.stream("hi")
        with pytest.raises(InvalidRequestError):
            _ = stream.reply
        pieces = [piece async for piece in stream]
        return {"pieces": pieces, "text": stream.reply.text}

    host = with_model(hire, body)
    asked = await host.hear(CallModel)
    assert asked.deltas
    for piece in ("one ", "two"):
        host.say(ModelDelta(asked.call_id, piece))
    host.say(ModelReply(asked.call_id, answer("one two")))
    assert await host.end() == {"pieces": ["one ", "two"], "text": "one two"}


async def test_leaving_a_stream_early_ends_the_call(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        async with ctx.llm.stream("hi") as stream:
            async for piece in stream:
                return {"first": piece}
        return {}

    host = with_model(hire, body)
    asked = await host.hear(CallModel)
    host.say(ModelDelta(asked.call_id, "one"))
    assert (await host.hear(CancelCall)).call_id == asked.call_id
    assert await host.end() == {"first": "one"}


async def test_a_failing_stream_raises_where_it_is_read(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        with pytest.raises(ModelUnavailableError, match="broke off"):
            async for _ in ctx.llm.stream("hi"):
                pass
        return {}

    host = with_model(hire, body)
    asked = await host.hear(CallModel)
    host.say(ModelDelta(asked.call_id, "half"))
    host.say(Refused(asked.call_id, ModelUnavailableError("it broke off").to_dict()))
    assert await host.end() == {}


async def test_refusals_are_typed_and_wrong_requests_never_leave(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        with pytest.raises(ModelBudgetError) as error:
            await ctx.llm.chat("hi")
        assert error.value.retry_after_s == 60
        with pytest.raises(ModelRefusedError, match="not a mapping"):
            await ctx.llm.chat([42])
        with pytest.raises(ModelRefusedError, match="set"):
            await ctx.llm.chat([{"role": "user", "content": {1, 2}}])
        with pytest.raises(ModelRefusedError, match="must be a list"):
            await ctx.llm.chat("hi", tools="add")
        with pytest.raises(InvalidRequestError, match="max_turns"):
            await ctx.llm.converse("hi", max_turns=0)
        with pytest.raises(ModelRefusedError, match="this context only"):
            await ctx.llm.converse("hi", tools=[{"type": "function"}])
        return {}

    host = with_model(hire, body)
    asked = await host.hear(CallModel)
    host.say(Refused(asked.call_id, ModelBudgetError("used up", retry_after_s=60.0).to_dict()))
    assert await host.end() == {}


async def test_an_answer_that_is_none_is_a_protocol_error(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await ctx.llm.chat("hi")
        return {}

    host = with_model(hire, body)
    for wrong in ({}, {"message": 5, "usage": {}}):
        asked = await host.hear(CallModel)
        host.say(ModelReply(asked.call_id, wrong))
    assert await host.end() == {}


async def test_tools_are_named_to_the_host_and_their_calls_given_back_by_their_own_names(hire: Hire) -> None:
    own = {"type": "function", "function": {"name": "mine", "parameters": {}}}

    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        got = await ctx.llm.chat("hi", tools=["add", twice, own])
        first, second, third = got.tool_calls
        assert (first.name, first.arguments) == ("math.twice", {"a": 2})
        assert (second.name, second.arguments) == ("mine", {})
        assert (third.name, third.arguments, third.text) == ("add", None, "[1")
        return {}

    host = with_model(hire, body, add, twice)
    asked = await reply(host, None, ("math_twice", '{"a": 2}'), ("mine", ""), ("add", "[1"))
    assert asked.request["tools"] == [
        {"type": "carrel_tool", "name": "add"},
        {"type": "carrel_tool", "name": "math.twice"},
        own,
    ]
    assert await host.end() == {}


async def test_converse_calls_tools_at_once_until_there_is_an_answer(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        got = await ctx.llm.converse("what is it?")
        assert isinstance(got, Conversation)
        assert got.usage == Usage(6, 4)
        assert got.turns == 2
        assert [message["role"] for message in got.messages] == [
            "user",
            "assistant",
            "tool",
            "tool",
            "tool",
            "assistant",
        ]
        return {"text": got.text}

    host = with_model(hire, body, add, twice)
    first = await reply(host, None, ("add", '{"a": 1, "b": 2}'), ("math_twice", '{"a": 4}'), ("add", "nonsense"))
    assert first.speak == "message"
    assert [item["name"] for item in first.request["tools"]] == ["add", "math.twice"]
    one, two = await host.hear(CallTool), await host.hear(CallTool)  # both before either is answered
    assert {one.name, two.name} == {"add", "math.twice"}
    host.say(ToolReply(two.call_id, {"value": 8}))
    host.say(Refused(one.call_id, ToolFailedError("it broke", advice="do without").to_dict()))
    second = await reply(host, "It is 8.")
    told = [(m["tool_call_id"], m["content"]) for m in second.request["messages"] if m["role"] == "tool"]
    assert told == [
        ("call_0", "error: it broke (do without)"),
        ("call_1", '{"value": 8}'),
        ("call_2", "error: the arguments are not a JSON object"),
    ]
    assert second.request["messages"][1]["tool_calls"][1]["function"]["name"] == "math_twice"
    assert await host.end() == {"text": "It is 8."}


async def test_a_tool_that_the_model_made_up_is_told_to_it(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        return {"text": (await ctx.llm.converse("hi")).text}

    host = with_model(hire, body, add)
    await reply(host, None, ("rm_rf", "{}"))
    second = await reply(host, "Sorry.")
    assert second.request["messages"][-1]["content"] == "error: there is no tool rm_rf; there are add"
    assert await host.end() == {"text": "Sorry."}


async def test_the_last_turn_has_no_tools_and_one_that_still_calls_them_is_refused(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        with pytest.raises(ModelRefusedError, match="after 2 turns"):
            await ctx.llm.converse("hi", max_turns=2)
        return {}

    host = with_model(hire, body, add)
    first = await reply(host, None, ("add", '{"a": 1, "b": 2}'))
    assert "tool_choice" not in first.request
    call = await host.hear(CallTool)
    host.say(ToolReply(call.call_id, 3))
    second = await reply(host, None, ("add", '{"a": 1, "b": 2}'))
    assert second.request["tool_choice"] == "none"
    assert await host.end() == {}


async def test_a_cancelled_run_ends_the_conversation_and_its_tool_calls(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        await ctx.llm.converse("hi")
        return {}

    host = with_model(hire, body, add)
    await reply(host, None, ("add", '{"a": 1, "b": 2}'), ("add", '{"a": 3, "b": 2}'))
    await host.hear(CallTool)
    await host.hear(CallTool)
    host.say(Cancel("enough"))
    assert (await host.failure())["code"] == "CANCELLED_RUN"


async def test_an_error_other_than_a_tools_ends_the_conversation(hire: Hire) -> None:
    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        with pytest.raises(InvalidContextError):
            await ctx.llm.converse("hi")
        return {}

    host = with_model(hire, body, add)
    await reply(host, None, ("add", '{"a": 1, "b": 2}'), ("add", '{"a": 3, "b": 2}'))
    call = await host.hear(CallTool)
    await host.hear(CallTool)
    host.say(Refused(call.call_id, InvalidContextError("closed").to_dict()))
    assert (await host.hear(CancelCall)).call_id != call.call_id
    assert await host.end() == {}


async def test_a_closed_child_asks_no_model(hire: Hire) -> None:
    from carrel.agent_messages import ChildOpened, CloseChild, OpenChild
    from tests.unit.carrel.conftest import RUN

    async def body(ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        async with ctx.child("part") as child:
            assert child.llm.available
        with pytest.raises(InvalidContextError):
            await child.llm.chat("hi")
        return {}

    host = with_model(hire, body)
    opened = await host.hear(OpenChild)
    host.say(ChildOpened(opened.call_id, 1, RUN.create_child_context("part").to_dict()))
    await host.hear(CloseChild)
    assert await host.end() == {}
    await asyncio.sleep(0)


def test_function_names_are_stable_valid_and_distinct() -> None:
    names = function_names(["a.b", "a_b", "a-b", "x" * 70, "x" * 80, "ä"])
    assert list(names) == ["a_b", "a_b_2", "a-b", "x" * 64, "x" * 62 + "_2", "_"]
    assert list(names.values()) == ["a.b", "a_b", "a-b", "x" * 70, "x" * 80, "ä"]
