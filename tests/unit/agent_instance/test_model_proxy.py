"""The local proxy: unmodified SDKs reach the model under a key of the turn's, counted, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from services.agent_instance.models import AuditOutcome, BudgetGrant, BudgetUse
from services.agent_instance.proxy import ModelProxy
from tests.conftest import Eventually
from tests.support.model_server import CallTools, Fail, Hang, Raw, Say, Step
from tests.unit.agent_instance.model_support import KEY, ModelBench, Turn, bench


@asynccontextmanager
async def proxied(*script: Step, **options: Any) -> AsyncIterator[ModelBench]:
    size = (options.get("policy") or {}).get("max_request_bytes", 1024 * 1024)
    async with ModelProxy(max_request_bytes=size) as proxy, bench(*script, door=proxy, **options) as b:
        yield b
        for turn in b.turns:
            await turn.models.aclose()
        assert proxy.guests == 0


def variables(turn: Turn) -> tuple[str, str]:
    found = turn.models.environment()
    assert found["CARREL_MODEL"] == "small"
    return found["OPENAI_BASE_URL"], found["OPENAI_API_KEY"]


@asynccontextmanager
async def client(turn: Turn, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url, key = variables(turn)
    sdk = openai.AsyncOpenAI(base_url=base_url, api_key=key, **{"max_retries": 0, **options})
    try:
        yield sdk
    finally:
        await sdk.close()


HELLO: Any = [{"role": "user", "content": "hello there"}]


async def test_an_unmodified_sdk_works_and_is_counted_and_audited() -> None:
    async with proxied(Say("General Kenobi")) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=100_000)
        assert answer.choices[0].message.content == "General Kenobi"
        (seen,) = b.server.requests
        assert seen.body["model"] == "small"  # rewritten: it may not be asked
        assert seen.body["max_tokens"] == 4096
        assert seen.headers["Authorization"] == f"Bearer {KEY}"
        assert turn.uplink.used == [BudgetUse("small", 2, 2)]
        (record,) = turn.uplink.audited
        assert (record.action, record.target, record.outcome) == ("model.call", "small", AuditOutcome.SUCCEEDED)
        assert [(entry.kind, entry.name) for entry in turn.uplink.journaled] == [("model", "small")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_attempt_gets_the_answers_it_had_byte_for_byte(stream: bool) -> None:
    async def ask(turn: Turn, text: str) -> bytes:
        base_url, key = variables(turn)
        body = {"model": "small", "messages": [{"role": "user", "content": text}], "stream": stream}
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post(f"{base_url}/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200
            assert answer.content_type == ("text/event-stream" if stream else "application/json")
            return await answer.read()

    async with proxied(Say("naïve one"), Say("two"), Say("new", pieces=1)) as b, aiohttp.ClientSession() as http:
        first = b.turn()
        said = [await ask(first, "same"), await ask(first, "same")]
        again = b.turn(journal=first.uplink.journaled, attempt=2)
        assert [await ask(again, "same"), await ask(again, "same")] == said
        assert len(b.server.requests) == 2
        assert (again.uplink.used, again.uplink.journaled, again.uplink.audited) == ([], [], [])
        assert b"new" in await ask(again, "another")
        # A call of ctx.llm with the same words is another call.
        assert (await (await again.ask("same")).answer())["message"]["content"] == "ok"


async def test_what_broke_off_or_failed_or_is_bulk_is_asked_again() -> None:
    async def read(sdk: openai.AsyncOpenAI, stream: bool) -> None:
        answer: Any = await sdk.chat.completions.create(model="small", messages=HELLO, stream=stream)
        async for _ in answer:
            pass

    failed = b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n'
    script = (Say("half an answer", pieces=4, cut=2), Fail(400), Raw(failed), Say("vector"))
    async with proxied(*script) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            for stream in (True, False, True):
                with pytest.raises(openai.OpenAIError):
                    await read(sdk, stream)
            await sdk.embeddings.create(model="small", input="words", encoding_format="float")
        assert turn.uplink.journaled == []


@pytest.mark.parametrize("asks", [False, True])
async def test_streams_pass_and_the_usage_only_when_it_was_asked_for(asks: bool) -> None:
    async with proxied(Say("one two three", pieces=3)) as b:
        turn = b.turn()
        options: Any = {"stream_options": {"include_usage": True}} if asks else {}
        async with client(turn) as sdk:
            stream = await sdk.chat.completions.create(model="large", messages=HELLO, stream=True, **options)
            chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
        assert any(not chunk.choices for chunk in chunks) is asks
        assert b.server.requests[0].body["model"] == "large"
        assert turn.uplink.used == [BudgetUse("large", 2, 3)]


async def test_tool_calls_pass() -> None:
    async with proxied(CallTools(("add", {"a": 1}))) as b:
        tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        async with client(b.turn()) as sdk:
            answer = await sdk.chat.completions.create(model="small", messages=HELLO, tools=tools)
        assert answer.choices[0].message.tool_calls is not None
        assert answer.choices[0].finish_reason == "tool_calls"


async def test_embeddings_and_responses_pass_and_are_counted() -> None:
    async with proxied(Say("x"), Say("an answer")) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            vectors = await sdk.embeddings.create(model="small", input="words", encoding_format="float")
            response = await sdk.responses.create(model="small", input="words")
            assert vectors.data[0].embedding == [0.25, 0.5]
            assert response.output_text == "an answer"
            assert b.server.requests[1].body["store"] is False
            assert turn.uplink.used == [BudgetUse("small", 5, 0), BudgetUse("small", 7, 3)]


FILE = {"type": "input_file", "file_id": "file-1"}
SCHEMA = {"type": "object", "properties": {"file_id": {"type": "string"}}, "default": {"file_id": "none"}}
CITED = {"type": "output_text", "text": "as", "annotations": [{"type": "file_citation", "file_id": "file-1"}]}


@pytest.mark.parametrize(
    ("named", "body"),
    [
        ("previous_response_id", {"input": "words", "previous_response_id": "resp_1"}),
        ("conversation", {"input": "words", "conversation": {"id": "conv_1"}}),
        ("item_reference", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("item_reference", {"input": [{"role": "user", "content": "words"}, {"id": "msg_1", "type": None}]}),
        ("image_generation_call", {"input": [{"type": "image_generation_call", "id": "ig_1"}]}),
        ("audio.id", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, {"role": "user"}]}),
        ("file_id", {"input": [{"role": "user", "content": [FILE]}]}),
        ("file_id", {"input": [{"type": "function_call_output", "call_id": "c", "output": [FILE]}]}),
        ("file_id", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}),
        ("vector_store_ids", {"input": "words", "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
        ("container", {"input": "words", "tools": [{"type": "code_interpreter", "container": "cntr_1"}]}),
        ("file_ids", {"input": "words", "tools": [{"type": "code_interpreter", "container": {"file_ids": ["f"]}}]}),
    ],
)
async def test_what_the_endpoint_keeps_is_not_to_be_named(named: str, body: dict[str, Any]) -> None:
    path = "chat/completions" if "messages" in body else "responses"
    async with proxied() as b, aiohttp.ClientSession() as http:
        base_url, key = variables(b.turn())
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post(f"{base_url}/{path}", json={"model": "small", **body}, headers=headers) as answer:
            assert answer.status == 400
            assert f"{named} cannot be used here" in await answer.text()
        assert not b.server.requests


async def test_what_only_looks_like_something_kept_passes() -> None:
    items: Any = [
        {"role": "user", "content": "words"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [CITED]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "load", "arguments": '{"file_id":"mine"}'},
        {"type": "function_call_output", "call_id": "c", "output": '{"file_id":"mine"}'},
    ]
    tools: Any = [
        {"type": "function", "name": "load", "strict": False, "parameters": SCHEMA},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "web_search"},
    ]
    async with proxied(Say("an answer")) as b, client(b.turn()) as sdk:
        answer = await sdk.responses.create(model="small", input=items, tools=tools)
        assert answer.output_text == "an answer"
        assert b.server.requests[0].body["input"] == items


async def test_models_are_those_that_may_be_asked() -> None:
    async with proxied() as b, client(b.turn()) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["small", "large"]
        assert (await sdk.models.retrieve("large")).id == "large"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("gpt-4o")


async def test_the_key_is_the_turns_own_and_ends_with_it() -> None:
    async with proxied(Say("a"), Say("b")) as b:
        alice, bob = b.turn(user="alice"), b.turn(user="bob")
        assert variables(alice) == variables(alice)
        assert variables(alice)[1] != variables(bob)[1]
        async with client(alice) as sdk, client(bob) as other:
            await sdk.chat.completions.create(model="small", messages=HELLO)
            assert (len(alice.uplink.used), len(bob.uplink.used)) == (1, 0)
            await alice.models.aclose()
            with pytest.raises(openai.AuthenticationError, match="names no run"):
                await sdk.chat.completions.create(model="small", messages=HELLO)
            await other.chat.completions.create(model="small", messages=HELLO)
        assert len(bob.uplink.used) == 1


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer x",
        "Bearer carrel-run.",
        "Bearer carrel-run..",
        "Bearer carrel-run.{name}",
        "Bearer carrel-run.{name}.",
        "Bearer carrel-run.{name}.{secret}x",
        "Bearer other.{name}.{secret}",
        "Basic carrel-run.{name}.{secret}",
        f"Bearer {KEY}",
        "Bearer carrel-run.é.ü",
    ],
)
async def test_any_other_key_opens_nothing(header: str | None) -> None:
    async with proxied(Say("never")) as b, aiohttp.ClientSession() as http:
        base_url, key = variables(b.turn())
        _, name, secret = key.split(".")
        headers = {} if header is None else {"Authorization": header.format(name=name, secret=secret)}
        for method, path in (("POST", "chat/completions"), ("GET", "models")):
            async with http.request(method, f"{base_url}/{path}", headers=headers, json={"messages": HELLO}) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_api_key"
        assert b.server.requests == []


async def test_errors_come_in_openais_shape() -> None:
    script = (Fail(400, "no such thing"), Fail(500), Fail(401, "bad sk-xyz"), Raw(b"<html>", "text/html"))
    async with proxied(*script) as b, client(b.turn()) as sdk:

        async def ask(**options: Any) -> None:
            await sdk.chat.completions.create(model="small", messages=HELLO, **options)

        with pytest.raises(openai.BadRequestError, match="no such thing") as refused:
            await ask()
        assert refused.value.code == "scripted_400"
        with pytest.raises(openai.InternalServerError) as away:
            await ask()
        assert away.value.status_code == 503
        with pytest.raises(openai.InternalServerError) as wrong_key:
            await ask()
        assert wrong_key.value.status_code == 502
        assert "sk-xyz" not in str(wrong_key.value)
        with pytest.raises(openai.APIStatusError, match="no answer"):
            await ask()
        with pytest.raises(openai.BadRequestError, match="n must be 1"):
            await ask(n=2)


async def test_a_cut_answer_is_an_error_of_the_stream() -> None:
    async with proxied(Say("half an answer", pieces=4, cut=2)) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            with pytest.raises(openai.OpenAIError):
                async for _ in await sdk.chat.completions.create(model="small", messages=HELLO, stream=True):
                    pass
        assert turn.uplink.audited[0].outcome is AuditOutcome.FAILED
        assert turn.uplink.used[0].output_tokens > 0


async def test_a_used_up_budget_is_a_429_that_sdks_do_not_repeat() -> None:
    async with proxied(Say("never")) as b:
        turn = b.turn(grant=BudgetGrant(0, 1, renews_at=4e9))
        async with client(turn, max_retries=2) as sdk:
            with pytest.raises(openai.RateLimitError) as error:
                await sdk.chat.completions.create(model="small", messages=HELLO)
        assert error.value.code == "insufficient_quota"
        assert b.server.requests == []
        assert [record.outcome for record in turn.uplink.audited] == [AuditOutcome.DENIED]


async def test_calls_of_both_ways_share_one_bound(eventually: Eventually) -> None:
    async with proxied(Say("a", delay_s=0.1), Say("b", delay_s=0.1), policy={"concurrency_per_user": 1}) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            direct = await turn.ask("x")
            await sdk.chat.completions.create(model="small", messages=HELLO)
            await direct.answer()
        assert b.server.most_open == 1


async def test_requests_are_bounded_and_must_be_objects() -> None:
    async with proxied(policy={"max_request_bytes": 2000}) as b, aiohttp.ClientSession() as http:
        base_url, key = variables(b.turn())
        url, headers = f"{base_url}/chat/completions", {"Authorization": f"Bearer {key}"}
        for data, status in ((b"x" * 3000, 413), (b"[1]", 400), (b"{", 400)):
            async with http.post(url, data=data, headers=headers) as answer:
                assert answer.status == status
                assert "error" in await answer.json()
        async with http.post(f"{base_url}/files", data=b"{}", headers=headers) as answer:
            assert answer.status == 404
        assert b.server.requests == []


async def test_an_answer_over_its_bound_is_cut() -> None:
    async with proxied(Say("x" * 9000), policy={"max_proxied_bytes": 4000}) as b, client(b.turn()) as sdk:
        with pytest.raises(openai.BadRequestError, match="over 4000 bytes"):
            await sdk.chat.completions.create(model="small", messages=HELLO)


async def test_a_client_that_leaves_ends_the_request(eventually: Eventually) -> None:
    async with proxied(Hang()) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            asking = asyncio.create_task(sdk.chat.completions.create(model="small", messages=HELLO))
            await eventually(lambda: b.server.open == 1)
            assert turn.clock.idle_s == 0
            asking.cancel()
            await asyncio.wait({asking})
            await eventually(lambda: b.server.aborted == 1)
        await eventually(lambda: b.desk.gates.running == 0)
        assert [record.error_code for record in turn.uplink.audited] == ["CANCELLED_RUN"]


async def test_the_end_of_the_turn_ends_what_is_under_way(eventually: Eventually) -> None:
    async with proxied(Hang()) as b:
        turn = b.turn()
        async with client(turn) as sdk:
            asking = asyncio.create_task(sdk.chat.completions.create(model="small", messages=HELLO))
            await eventually(lambda: b.server.open == 1)
            await turn.models.aclose()
            await eventually(lambda: b.server.aborted == 1)
            with pytest.raises(openai.OpenAIError):
                await asking
