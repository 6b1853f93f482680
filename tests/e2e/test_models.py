"""Models through the whole stack: agents in worker processes, a scripted model as a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from carrel.cli.supervisor import tied_to_us
from carrel.client import Event
from tests.e2e.checks import check_run, until_end
from tests.support.stack import ROOT, RunningStack, clean_environment, run_carrel, running_stack

KEY = "sk-operators-own-0123456789"
PREFIX = "CARREL_AGENT_INSTANCE_MODELS__"
AGENTS = ["entry-points", "examples.assistant:agents", str(Path(__file__).with_name("model_agents.py"))]


@pytest.fixture(scope="module")
def scripted_model() -> Iterator[str]:
    """The base URL of a scripted model."""
    command = [sys.executable, "-m", "tests.support.model_server", "--port", "0"]
    process = subprocess.Popen(
        tied_to_us(command), cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].split(" ")[0]
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def talking_stack(scripted_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    environment = {
        f"{PREFIX}BASE_URL": scripted_model,
        f"{PREFIX}DEFAULT": "scripted",
        f"{PREFIX}API_KEY": KEY,
        "CARREL_EXECUTION_MODEL_TOKENS_PER_USER": "500",
    }
    with running_stack(tmp_path_factory.mktemp("models"), agents=AGENTS, environment=environment) as running:
        yield running


async def finished(stack: RunningStack, user: str, message: str, *agents: str, thread_id: str = "") -> list[Event]:
    async with stack.client(user) as client:
        run = await client.execute(message, pipeline=agents, thread_id=thread_id)
        events = check_run(await until_end(client, run.run_id), run.run_id)
    assert events[-1].data["status"] == "SUCCEEDED", events[-1].data
    return events


async def test_the_assistant_answers_with_its_tools(talking_stack: RunningStack) -> None:
    events = await finished(talking_stack, "ann", "What is 17 * 23 + 4?", "assistant")
    result = events[-1].data["result"]
    assert result["answer"] == "Here is what I found: 395"
    kinds = [event.event_type for event in events]
    assert kinds.index("tool_completed") < kinds.index("agent_message") < kinds.index("agent_completed")
    said = "".join(event.data["delta"] for event in events if event.event_type == "agent_message")
    assert said == result["answer"]


def test_a_streamed_answer_is_one_line_in_a_pipe_and_its_pieces_in_json(talking_stack: RunningStack) -> None:
    words = ("run", "What is 17 * 23 + 4?", "--agent", "assistant", "--state", str(talking_stack.state.root))
    for_a_person = run_carrel(*words, cwd=talking_stack.folder)
    for_a_program = run_carrel(*words, "--json", cwd=talking_stack.folder)
    assert (for_a_person.returncode, for_a_program.returncode) == (0, 0), for_a_person.stderr + for_a_program.stderr
    rows = [json.loads(line) for line in for_a_program.stdout.splitlines()]
    pieces = [row["data"]["delta"] for row in rows if row.get("event_type") == "agent_message"]
    assert len(pieces) > 1
    lines = [line[9:] for line in for_a_person.stdout.splitlines()]
    assert lines.count("".join(pieces)) == 1, for_a_person.stdout
    assert not [line for line in lines if line in pieces]


async def test_the_assistant_knows_what_was_said_before(talking_stack: RunningStack) -> None:
    first = await finished(talking_stack, "ben", "hello", "assistant")
    second = await finished(talking_stack, "ben", "hello again", "assistant", thread_id=first[0].thread_id)
    assert "told me 1 thing(s) before" in second[-1].data["result"]["answer"]


async def test_a_note_waits_for_its_user_and_is_kept_when_they_agree(talking_stack: RunningStack) -> None:
    async with talking_stack.client("gil") as client, asyncio.timeout(40):
        run = await client.execute("Please note: water the plants", pipeline=["assistant"])
        async for event in client.events():
            if event.event_type == "input_required":
                assert event.data["arguments"]["text"] == "water the plants"
                await client.provide_input(run.run_id, event.data["input_id"], {"approved": True})
                break
        events = await until_end(client, run.run_id)
    result = events[-1].data["result"]
    assert result["tools_used"] == ["keep_note"]
    assert "water-the-plants-" in result["answer"]
    said = "".join(event.data.get("text") or event.data["delta"] for event in _messages(events))
    assert said == result["answer"]  # after the answer, once


async def test_a_users_tokens_end_and_nobody_elses(talking_stack: RunningStack) -> None:
    end: Mapping[str, Any] = {}
    async with talking_stack.client("eve") as client:
        for _ in range(20):
            run = await client.execute("hello", pipeline=["assistant"])
            end = (await until_end(client, run.run_id))[-1].data
            if end["status"] != "SUCCEEDED":
                break
    assert end["error"]["code"] == "MODEL_BUDGET", end
    assert end["error"]["details"]["limit"] == "model_tokens"
    assert end["error"]["retry_after_s"] > 0
    await finished(talking_stack, "fay", "hello", "assistant")


def _messages(events: list[Event]) -> list[Event]:
    return [event for event in events if event.event_type == "agent_message"]


async def test_an_unmodified_sdk_in_a_worker_needs_no_key_and_finds_none(talking_stack: RunningStack) -> None:
    result = (await finished(talking_stack, "cas", "hello", "sdk"))[-1].data["result"]
    assert result["answer"].startswith("I am a scripted model and heard: hello")
    own = result["environment"]
    assert set(own) == {"OPENAI_BASE_URL", "OPENAI_API_KEY", "CARREL_MODEL"}
    assert KEY not in result["everything"]
    assert KEY not in talking_stack.log()
    # The key ended with the agent's turn.
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {own['OPENAI_API_KEY']}"}
        async with http.get(f"{own['OPENAI_BASE_URL']}/models", headers=headers) as answer:
            assert answer.status == 401


async def test_the_supervisor_says_that_rules_plan_when_the_model_makes_no_plan(talking_stack: RunningStack) -> None:
    events = await finished(talking_stack, "dot", "Profile the data")
    thoughts = [event.data["text"] for event in events if event.event_type == "agent_thinking"]
    assert any(text.startswith("Planning by rules: the model's answer is no plan") for text in thoughts)


def test_without_a_model_the_assistant_is_refused_with_what_to_set(tmp_path: Path) -> None:
    with running_stack(tmp_path, agents=["examples.assistant:agents"]) as stack:
        done = run_carrel("run", "hello", "--agent", "assistant", "--state", str(stack.state.root), cwd=tmp_path)
    assert done.returncode != 0
    assert "MODELS__BASE_URL" in done.stdout + done.stderr
