"""The supervisor: what it plans from parameters and plain words, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errors import CarrelError, InvalidRequestError, PlanError, UnknownStageError, UnmetRequirementError
from examples.llm_costs.supervisor import stages_for

DATA, OPTIMIZE, REPORT = ("data",), ("data", "optimization"), ("data", "optimization", "report")


@pytest.mark.parametrize(
    ("message", "stages"),
    [
        ("Write a report on the cost of serving my models", REPORT),
        ("summarise the trace with charts", REPORT),
        ("Optimize!", OPTIMIZE),
        ("How can I reduce my spending?", OPTIMIZE),
        ("what is the cheapest assignment", OPTIMIZE),
        ("Profile the data", DATA),
        ("What does this trace cost?", DATA),
        ("token statistics, please", DATA),
        ("Optimise, but no report", OPTIMIZE),
        ("Analyse the load without optimization", DATA),
        ("don\u2019t optimize, just profile it", DATA),
    ],
)
def test_plain_words_choose_the_stages(message: str, stages: tuple[str, ...]) -> None:
    assert stages_for(message, {})[0] == stages


@pytest.mark.parametrize(
    ("params", "stages"),
    [
        ({"goal": "report"}, REPORT),
        ({"goal": "Optimize"}, OPTIMIZE),
        ({"goal": "profile"}, DATA),
        ({"pipeline": ["data", "optimization"]}, OPTIMIZE),
        ({"pipeline": "data, optimization, report"}, REPORT),
        ({"question": "SELECT 1"}, DATA),
    ],
)
def test_parameters_choose_the_stages_whatever_the_words(params: dict[str, Any], stages: tuple[str, ...]) -> None:
    assert stages_for("hello" if "question" in params else "write a report", params)[0] == stages


@pytest.mark.parametrize(
    ("message", "params", "kind"),
    [
        ("", {}, InvalidRequestError),
        ("book a flight to Paris", {}, InvalidRequestError),
        ("no report", {}, InvalidRequestError),
        ("a report without optimization", {}, UnmetRequirementError),
        ("", {"goal": "world peace"}, InvalidRequestError),
        ("", {"goal": 5}, InvalidRequestError),
        ("", {"goal": "report", "pipeline": ["data"]}, InvalidRequestError),
        ("", {"pipeline": []}, InvalidRequestError),
        ("", {"pipeline": 3}, InvalidRequestError),
        ("", {"pipeline": [1]}, InvalidRequestError),
        ("", {"pipeline": ["data", "sales"]}, UnknownStageError),
        ("", {"pipeline": ["supervisor"]}, UnknownStageError),
        ("", {"pipeline": ["report"]}, UnmetRequirementError),
        ("", {"pipeline": ["optimization", "data"]}, UnmetRequirementError),
        ("", {"pipeline": ["data", "data"]}, PlanError),
    ],
)
def test_what_cannot_be_done_is_said(message: str, params: dict[str, Any], kind: type[CarrelError]) -> None:
    with pytest.raises(kind) as caught:
        stages_for(message, params)
    assert type(caught.value) is kind
    assert caught.value.advice


async def test_plan_carries_the_trace_and_the_reason(run_stage: Any) -> None:
    outcome = await run_stage("supervisor", {}, message="report, please")
    assert outcome.result == {
        "stages": list(REPORT),
        "params": {"trace": "sample:synthetic_trace.csv"},
        "reason": "the message says 'report'",
    }
    (thinking,) = outcome.told("agent_thinking")
    assert thinking["stages"] == list(REPORT)


async def test_wrong_parameter_ends_the_run_before_any_stage(run_stage: Any) -> None:
    outcome = await run_stage("supervisor", {"min_large_share": 7}, message="report")
    assert isinstance(outcome.error, InvalidRequestError)
    assert "min_large_share" in outcome.error.fields
