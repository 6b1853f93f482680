"""The assistant at work in a host, against a scripted model: tools, history, and a note that waits for its user."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from examples.assistant import agents
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.domain.validation import DependencyChecker
from tests.support.model_server import CallTools, Say, Step, by_rules
from tests.unit.agent_instance.model_support import ModelBench
from tests.unit.agent_instance.model_support import bench as model_bench
from tests.unit.agent_instance.support import Bench


async def there(_entry: AgentEntry) -> str:
    return ""


@asynccontextmanager
async def assistant(*script: Step, **options: Any) -> AsyncIterator[tuple[Bench, ModelBench]]:
    async with model_bench(*script) as models:
        models.server.otherwise = by_rules
        stages = Bench(*agents(), **options)
        stages.core._dependencies = DependencyChecker({"llm": there})
        stages.services = dataclasses.replace(stages.services, models=models.desk)
        yield stages, models


async def test_it_calculates_with_its_tool() -> None:
    async with assistant(message="What is 17 * 23 + 4?") as (stages, models):
        stage = await stages.run("assistant")
    assert stage.result["tools_used"] == ["calculate"]
    assert stage.result["answer"] == "Here is what I found: 395"
    assert [event.data["tool_name"] for event in stage.of("tool_executing")] == ["calculate"]
    assert "".join(event.data["delta"] for event in stage.of("agent_message")) == stage.result["answer"]
    assert models.server.requests[0].body["messages"][0]["role"] == "system"


async def test_a_tools_error_is_told_to_the_model() -> None:
    async with assistant(CallTools(("calculate", {"expression": "1/0"})), Say("I cannot divide by zero.")) as (
        stages,
        models,
    ):
        stage = await stages.run("assistant")
    assert stage.result["answer"] == "I cannot divide by zero."
    assert models.server.requests[1].body["messages"][-1]["content"].startswith("error: it divides by zero")


async def test_a_note_waits_for_its_user_and_is_kept_when_they_agree() -> None:
    async with assistant(message="Please note: water the plants") as (stages, models):
        first = await stages.run("assistant")
        assert first.question.tool_name == "keep_note"
        assert first.uplink.stored == {}
        again = await first.again({"approved": True})
        assert again.result["tools_used"] == ["keep_note"]
        (name,) = again.uplink.stored
        assert name.startswith("water-the-plants-")
        assert again.uplink.stored[name].decode() == "# water the plants\n\nwater the plants\n"
        # The model's wish to call the tool came from the journal: it was asked once for that, and once after.
        assert len(models.server.requests) == 2


async def test_a_note_that_its_user_does_not_want_is_not_kept() -> None:
    async with assistant(message="Please note: water the plants") as (stages, models):
        first = await stages.run("assistant")
        again = await first.again({"approved": False})
        assert again.uplink.stored == {}
        assert models.server.requests[1].body["messages"][-1]["content"].startswith("error: ")
        assert again.result["answer"]


async def test_an_empty_message_asks_no_model() -> None:
    async with assistant(message="  ") as (stages, models):
        stage = await stages.run("assistant")
    assert stage.error.code == "INVALID_REQUEST"
    assert models.server.requests == []
