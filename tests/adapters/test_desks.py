"""Agents of other libraries under the real host, without processes: events, questions, journal, the same answers."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import langsmith
import pytest
from agents.tracing import TracingProcessor, set_trace_processors, set_tracing_disabled

from carrel import Agent
from carrel.adapters import langgraph, openai_agents, pydantic_ai
from tests.adapters.patience import bench
from tests.support.model_server import ModelServer
from tests.unit.agent_instance.support import Stage

WHERE = "Where is order 7?"
REFUND = "Please refund order 8."
LIBRARIES = ("pydantic", "langgraph", "openai")


def desk(library: str) -> type[Agent]:
    """The example's agent, which needs nothing of the deployment here."""
    options: Any = {"name": "desk", "dependencies": ()}
    match library:
        case "pydantic":
            return pydantic_ai.agent_class("examples.adapters.pydantic_desk:agent", **options)
        case "langgraph":
            return langgraph.agent_class(fresh_graph(), **options)
        case _:
            return openai_agents.agent_class("examples.adapters.openai_desk:desk", **options)


def fresh_graph() -> Any:
    """The example's graph with a client that knows this test's address."""
    sys.modules.pop("examples.adapters.langgraph_desk", None)
    return importlib.import_module("examples.adapters.langgraph_desk").graph


def said(stage: Stage) -> str:
    """What a reader has in front of them, message after message."""
    texts: dict[str, str] = {}
    for event in stage.of("agent_message"):
        number = event.data["message_id"]
        texts[number] = event.data["text"] if "text" in event.data else texts.get(number, "") + event.data["delta"]
    return "\n".join(texts.values())


@pytest.mark.parametrize("library", LIBRARIES)
async def test_text_and_tool_calls_are_events_and_the_answer_is_the_result(library: str, model: ModelServer) -> None:
    stage = await bench(desk(library)).run("desk", message=WHERE)
    answer = "Here is what I found: order 7 (two lamps) is on its way, expected on Friday"
    assert stage.result == {"answer": answer}
    assert said(stage) == answer
    kinds = [kind for kind in stage.kinds if kind != "agent_message"]
    assert kinds == ["agent_started", "tool_executing", "tool_completed", "agent_completed"]
    assert stage.kinds.index("tool_completed") < stage.kinds.index("agent_message")
    (call,), (end,) = stage.of("tool_executing"), stage.of("tool_completed")
    assert (call.data["tool_name"], call.data["arguments"], call.data["reported"]) == (
        "find_order",
        {"number": 7},
        True,
    )
    assert (end.data["status"], end.data["tool_call_id"]) == ("ok", call.data["tool_call_id"])
    assert "two lamps" in end.data["result"]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_what_needs_approval_is_asked_and_the_answer_goes_back_into_it(library: str, model: ModelServer) -> None:
    first = await bench(desk(library), message=REFUND).run("desk")
    assert first.outcome is not None
    question = first.outcome.question
    assert question is not None
    assert "refund" in question.prompt.lower()
    yes, no = ("yes", "no") if library == "langgraph" else (True, {"approved": False, "reason": "not today"})
    second = await first.again(yes)
    assert second.result == {"answer": "Here is what I found: order 8 is refunded"}
    done = [event.data for event in second.of("tool_completed") if event.data["status"] == "ok"]
    assert [(event["tool_name"], event["result"]) for event in done] == [("refund_order", "order 8 is refunded")]
    denied = await first.again(no)
    assert denied.result["answer"].startswith("Here is what I found: ")
    assert ("not refunded: no" if library == "langgraph" else "not today") in denied.result["answer"]
    assert "is refunded" not in str([event.data for event in denied.of("tool_completed")])


async def test_a_handoff_is_told(model: ModelServer) -> None:
    stage = await bench(desk("openai")).run("desk", message=REFUND)
    assert [event.data["handoff"] for event in stage.of("agent_thinking")] == [{"from": "Order desk", "to": "Cashier"}]


async def test_the_sdks_tracing_is_off(model: ModelServer) -> None:
    """By default it would send every run to a host of OpenAI's."""

    class Recorder(TracingProcessor):
        def on_trace_start(self, trace: Any) -> None:
            seen.append(trace)

        def on_span_start(self, span: Any) -> None:
            seen.append(span)

        def on_trace_end(self, trace: Any) -> None: ...

        def on_span_end(self, span: Any) -> None: ...

        def shutdown(self) -> None: ...

        def force_flush(self) -> None: ...

    seen: list[Any] = []
    set_tracing_disabled(False)
    set_trace_processors([Recorder()])
    try:
        assert (await bench(desk("openai"), message=WHERE).run("desk")).result
    finally:
        set_trace_processors([])
    assert seen == []


async def test_langsmith_is_not_used(model: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a client of LangSmith's was made")

    monkeypatch.setattr(langsmith.Client, "__init__", refuse)
    assert (await bench(desk("langgraph"), message=WHERE).run("desk")).result
