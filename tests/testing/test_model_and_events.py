"""The scripted model, as ``ctx.llm`` and as a library meets it, and assertions over events that say what was there."""

from __future__ import annotations

import base64

import httpx
import openai
import pytest

from carrel.client import Event
from carrel.errors import ModelRefusedError, ModelUnavailableError
from carrel.testing import CallTools, Events, Fail, Hang, Say, ScriptedModel, assert_no_secret, in_memory_chain
from tests.testing.desk_agents import Chat

SECRET = "correct-horse/battery"


def event(kind: str, agent: str = "a", **data: object) -> Event:
    return Event(1, "ev", kind, "alice", "thread", "run", "req", agent_name=agent, data=data)


STORY = Events(
    [
        event("agent_started"),
        event("agent_message", message_id="m", delta="It is "),
        event("agent_message", message_id="m", delta="42."),
        event("tool_completed", tool_name="add", result=42),
        event("agent_completed", result={"n": 42}),
    ]
)


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (Fail(429), ModelUnavailableError, "answers 429"),
        (Fail(400, "no such tool"), ModelRefusedError, "refuses the request"),
        (Say("one two three", pieces=3, cut=1), ModelUnavailableError, "broke off"),
    ],
)
async def test_failures_of_the_model_are_the_errors_of_the_real_way(step: Fail, kind: type, words: str) -> None:
    async with in_memory_chain(Chat, model=ScriptedModel(step)) as chain:
        run = await chain.run("hello")

    assert isinstance(run.error, kind)
    assert words in str(run.error)


async def test_a_model_that_is_asked_too_often_fails_and_says_so() -> None:
    model = ScriptedModel(CallTools(("add", {"a": 1, "b": 1})))
    async with in_memory_chain(Chat, model=model) as chain:
        run = await chain.run("hello")

    assert run.error is not None
    assert "no step for request 2" in str(dict(run.error.details))


async def test_a_model_that_hangs_is_given_up_with_its_run() -> None:
    model = ScriptedModel(Hang())
    async with in_memory_chain(Chat, model=model) as chain:
        run = await chain.start("hello")
        await run.told("agent_started")
        await run.cancel()

    assert model.open == 0


async def test_a_library_is_answered_over_http_streamed_and_not() -> None:
    script = ("plain", "streamed", "responded", CallTools(("add", {"a": 1})))
    model = ScriptedModel(*script, key="sk-test")
    async with model.serving() as base_url:
        assert model.environment == {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-test"}
        async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-test", max_retries=0) as client:
            plain = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            response = await client.responses.create(model="m", input="hi")
            called = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "add"}])
        async with httpx.AsyncClient() as stranger:
            assert (await stranger.post(f"{base_url}/chat/completions", json={})).status_code == 401

    assert plain.choices[0].message.content == "plain"
    assert "".join(pieces) == "streamed"
    assert len([piece for piece in pieces if piece]) == 2
    assert response.output_text == "responded"
    assert called.choices[0].finish_reason == "tool_calls"
    assert [seen.path for seen in model.requests[:3]] == [
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/responses",
    ]
    model.assert_finished()


def test_a_script_that_was_not_used_up_is_told() -> None:
    with pytest.raises(AssertionError, match="never asked for 1 step"):
        ScriptedModel("unheard").assert_finished()


def test_events_are_found_by_kind_agent_and_data() -> None:
    assert len(STORY.of("agent_message")) == 2
    assert STORY.one("tool_completed", tool_name="add").data["result"] == 42
    assert not STORY.of("tool_completed", tool_name="sub")
    assert not STORY.of("tool_completed", agent="b")
    assert STORY.text == "It is 42."
    assert STORY[1:3].kinds == ["agent_message", "agent_message"]
    STORY.assert_order("agent_started", "tool_completed", "agent_completed")
    STORY.assert_none("agent_error")


def test_what_was_there_instead_is_shown() -> None:
    with pytest.raises(AssertionError, match="no tool_executing after agent_started") as missing:
        STORY.assert_order("agent_started", "tool_executing")
    with pytest.raises(AssertionError, match="2 events are agent_message, not one"):
        STORY.one("agent_message")
    with pytest.raises(AssertionError, match="event 2 is agent_message, not tool_executing") as other:
        STORY.assert_kinds("agent_started", "tool_executing")
    with pytest.raises(AssertionError, match="event 1 is agent_started, not the end"):
        STORY.assert_kinds()
    with pytest.raises(AssertionError, match="there should be no tool_completed"):
        STORY.assert_none("tool_completed")

    assert "→   1 agent_started      a            {}" in str(missing.value)
    assert "→   2 agent_message " in str(other.value)
    assert 'agent_completed    a            {"result": {"n": 42}}' in str(missing.value)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"text": f"use {SECRET} now"}, "event 1.data.text, in the plain"),
        ({"deep": [{"url": "x?k=correct-horse%2Fbattery"}]}, r"event 1.data.deep\[0\].url, within a URL"),
        ({"blob": base64.b64encode(f"ab{SECRET}yz".encode()).decode()}, "data.blob, as base64"),
        ({"blob": SECRET.encode().hex()}, "data.blob, as hex"),
        ({SECRET: 1}, "a name in event 1.data, in the plain"),
    ],
)
def test_a_secret_is_found_and_not_repeated(data: dict[str, object], where: str) -> None:
    with pytest.raises(AssertionError, match=f"secret 2 of 2 is in .*{where}") as found:
        Events([event("agent_thinking", "a", **data)]).assert_no_secret("another", SECRET)

    assert SECRET not in str(found.value)
    STORY.assert_no_secret(SECRET)


def test_a_check_for_no_secret_is_none() -> None:
    with pytest.raises(ValueError, match="give the secrets"):
        assert_no_secret({})
    with pytest.raises(ValueError, match="give the secrets"):
        assert_no_secret({}, "ab")
