"""The supervisor with a language model: its plan is checked, said, and replaced by rules when it is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carrel.errors import InvalidRequestError, ModelBudgetError, ModelUnavailableError, PlanError
from examples.llm_costs import agents, model_planner
from examples.llm_costs.model_planner import read_plan

STAGES = tuple(agent for agent in agents() if agent.name != "supervisor")
RULES = ["data", "optimization", "report"]


def answer(*stages: Any, reason: str = "You want numbers.", **params: Any) -> str:
    return json.dumps({"stages": list(stages), "params": params, "reason": reason})


async def test_the_model_plans_and_the_user_is_told(run_stage: Any) -> None:
    text = "Sure:\n```json\n" + answer("data", "optimization", min_large_share=0.4, trace="/etc/passwd") + "\n```"
    outcome = await run_stage("supervisor", {}, message="how low could our bill go?", model=[text])
    assert outcome.result == {
        "stages": ["data", "optimization"],
        "params": {"min_large_share": 0.4, "trace": "sample:synthetic_trace.csv"},
        "reason": "You want numbers.",
    }
    (thinking,) = outcome.told("agent_thinking")
    assert thinking["text"] == "Planning data → optimization: You want numbers."
    assert thinking["planned_by"] == "small"
    (asked,) = outcome.asked
    assert "optimization: Finds the cheapest" in asked["messages"][0]["content"]
    assert asked["messages"][1]["content"] == "how low could our bill go?"


@pytest.mark.parametrize(
    "said",
    [
        ModelUnavailableError("the model's endpoint cannot be reached"),
        ModelBudgetError("used up", retry_after_s=60),
        "I would rather not.",
        "{not json}",
        "[]",
        "{}",
        answer(),
        answer("data", "sales"),
        answer("optimization"),
        answer("report", "data", "optimization"),
        answer("data", "data"),
        answer({"name": "data"}),
        answer("data", min_large_share=7),
        json.dumps({"stages": "data"}),
        json.dumps({"stages": ["data"], "params": [1]}),
    ],
)
async def test_without_a_sound_plan_rules_decide(run_stage: Any, said: Any) -> None:
    outcome = await run_stage("supervisor", {}, message="write a report", model=[said])
    assert outcome.result["stages"] == RULES
    assert outcome.result["reason"] == "the message says 'report'"
    first, second = outcome.told("agent_thinking")
    assert first["text"].startswith("Planning by rules: ")
    assert second["stages"] == RULES


async def test_a_model_that_takes_too_long_is_not_waited_for(run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_planner, "_PATIENCE_S", 0.05)
    outcome = await run_stage("supervisor", {}, message="write a report", model=[])
    assert outcome.result["stages"] == RULES
    assert "did not plan within" in outcome.told("agent_thinking")[0]["text"]


@pytest.mark.parametrize("params", [{"goal": "data"}, {"pipeline": ["data"]}, {"question": "SELECT 1"}])
async def test_parameters_that_decide_ask_nobody(run_stage: Any, params: dict[str, Any]) -> None:
    outcome = await run_stage("supervisor", params, message="" if "question" in params else "hello", model=["x"])
    assert outcome.result["stages"] == ["data"]
    assert outcome.asked == []


async def test_a_wrong_parameter_of_the_users_costs_no_question(run_stage: Any) -> None:
    outcome = await run_stage("supervisor", {"min_large_share": 7}, message="report", model=[answer("data")])
    assert isinstance(outcome.error, InvalidRequestError)
    assert outcome.asked == []


def test_what_the_user_has_set_stands() -> None:
    plan = read_plan(
        answer("data", min_large_share=0.9, prices="/x", question="DROP"), {"min_large_share": 0.1}, STAGES
    )
    assert plan.params == {"trace": "sample:synthetic_trace.csv"}


def test_a_plan_needs_what_it_needs() -> None:
    with pytest.raises(PlanError):
        read_plan(answer("optimization", "data"), {}, STAGES)
    long = read_plan(answer("data", reason="x " * 500), {}, STAGES)
    assert len(long.reason) <= 300
    assert read_plan(json.dumps({"stages": ["data"]}), {}, STAGES).reason == "the model says so"
