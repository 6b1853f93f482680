"""The stages as agents: what they emit, return and leave behind, and how they fail."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import CarrelError, ConflictError, InvalidRequestError
from examples.llm_costs import agents, data_agent
from examples.llm_costs.data_agent import DataAgent, load_trace, query_database
from examples.llm_costs.errors import DataPathError, InfeasibleError, MalformedCsvError, QueryError
from examples.llm_costs.optimization_agent import optimization_engine
from examples.llm_costs.report_agent import report_generator

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


async def chain(run_stage: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Data, optimization and report, one after the other, as execution runs them."""
    outcomes: dict[str, Any] = {}
    for name in ("data", "optimization", "report"):
        results = {done: outcome.result for done, outcome in outcomes.items()}
        outcomes[name] = await run_stage(name, params, results)
        assert outcomes[name].error is None
    return outcomes


async def test_synthetic_sample_from_trace_to_report(run_stage: Any) -> None:
    outcomes = await chain(run_stage, {})
    assert outcomes["data"].result["trace"]["input_tokens"] == 4_836_086
    assert outcomes["optimization"].result["cost_after"]["usd"] == pytest.approx(1.016149936)
    report = outcomes["report"]
    assert "6.54 USD on gpt-5 and 1.02 USD at least cost" in report.result["summary"]
    assert [data["text"] for data in report.told("agent_message")] == [report.result["summary"]]
    for outcome in outcomes.values():
        assert outcome.told("agent_thinking")
        executing, completed = (
            sum(kind == name for _, kind, _ in outcome.events) for name in ("tool_executing", "tool_completed")
        )
        assert executing == completed > 0


async def test_real_trace_costs_25_usd_on_gpt_5(run_stage: Any, real_trace: str) -> None:
    outcomes = await chain(run_stage, {"trace": real_trace})
    data = outcomes["data"].result
    assert (data["trace"]["input_tokens"], data["trace"]["output_tokens"]) == (18_059_974, 245_896)
    costs = {row["model"]: row["usd"] for row in data["costs"]}
    assert round(costs["gpt-5"], 2) == 25.03
    assert "25.03 USD on gpt-5" in outcomes["data"].told("agent_thinking")[1]["text"]
    assert outcomes["optimization"].result["cost_before"]["usd"] == pytest.approx(25.0339275)
    assert max(data["load"]["requests"]) == 585


async def test_report_and_its_charts_make_a_document(run_stage: Any, tmp_path: Path) -> None:
    report = (await chain(run_stage, {}))["report"]
    for name, content in report.artifacts.items():
        (tmp_path / name).write_bytes(content)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert set(shown) == {"load_over_time.svg", "cost_by_model.svg", "assignment.svg"}
    for name in shown:
        root = ET.fromstring((tmp_path / name).read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
    assert report.result["report"]["name"] == list(report.artifacts)[-1] == "report.md"
    assert {chart["media_type"] for chart in report.result["charts"]} == {"image/svg+xml"}


async def test_validation_is_a_child_with_events_of_its_own(run_stage: Any) -> None:
    outcome = await run_stage("data")
    child = [(kind, data.get("tool_name")) for owner, kind, data in outcome.events if owner == "req-1_validation"]
    assert child == [
        ("agent_thinking", None),
        ("tool_executing", "query_database"),
        ("tool_completed", "query_database"),
    ]
    assert outcome.result["validated"] == {"requests": 2000, "input_tokens": 4_836_086, "output_tokens": 49_221}
    assert {owner for owner, _, _ in outcome.events} == {"req-1", "req-1_validation"}


async def test_trace_that_changes_while_it_is_read_is_noticed(
    run_stage: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "t.csv").write_text(HEADER + "2024-01-01 00:00:00,1,1\n", encoding="utf-8")
    whole = data_agent._load_over_time

    async def and_grow(*arguments: Any) -> Any:
        with (data_dir / "t.csv").open("a", encoding="utf-8") as file:
            file.write("2024-01-01 00:00:01,1,1\n")
        return await whole(*arguments)

    monkeypatch.setattr(data_agent, "_load_over_time", and_grow)
    outcome = await run_stage("data", {"trace": "t.csv"})
    assert isinstance(outcome.error, ConflictError)
    assert "changed while" in outcome.error.message


async def test_load_has_a_place_for_minutes_without_requests(run_stage: Any, data_dir: Path) -> None:
    (data_dir / "t.csv").write_text(
        HEADER + "2024-01-01 00:00:59,1,2\n2024-01-01 00:03:00,3,4\n2024-01-01 00:03:01,5,6\n", encoding="utf-8"
    )
    load = (await run_stage("data", {"trace": "t.csv"})).result["load"]
    assert load == {
        "start": "2024-01-01T00:00:00Z",
        "bucket_minutes": 1,
        "requests": [1, 0, 0, 2],
        "input_tokens": [1, 0, 0, 8],
        "output_tokens": [2, 0, 0, 10],
    }


async def test_trace_over_years_stays_small_and_reaches_the_report(run_stage: Any, data_dir: Path) -> None:
    rows = "".join(f"{year}-01-01 00:00:00,100,10\n" for year in range(1970, 2030))
    (data_dir / "t.csv").write_text(HEADER + rows, encoding="utf-8")
    outcomes = await chain(run_stage, {"trace": "t.csv"})
    load = outcomes["data"].result["load"]
    assert 200 < len(load["requests"]) <= 242
    assert sum(load["requests"]) == 60


async def test_single_request_makes_a_whole_chain(run_stage: Any, data_dir: Path) -> None:
    (data_dir / "t.csv").write_text(HEADER + "2024-01-01 00:00:00,0,0\n", encoding="utf-8")
    outcomes = await chain(run_stage, {"trace": "t.csv"})
    assert outcomes["optimization"].result["savings"]["percent"] == 0


async def test_question_in_sql_is_answered(run_stage: Any) -> None:
    outcome = await run_stage("data", {"question": "SELECT max(ContextTokens) AS longest FROM trace"})
    assert outcome.result["answer"]["columns"] == ["longest"]
    assert outcome.result["answer"]["rows"] == [[7900]]


@pytest.mark.parametrize(
    ("params", "kind", "says"),
    [
        ({"trace": "../t.csv"}, DataPathError, "leaves the folder"),
        ({"trace": "/etc/passwd"}, DataPathError, "leaves the folder"),
        ({"trace": "missing.csv"}, DataPathError, "names nothing"),
        ({"trace": "broken.csv"}, MalformedCsvError, "line 2, column GeneratedTokens"),
        ({"trace": "t.csv", "prices": "broken.csv"}, MalformedCsvError, "line 1, column model"),
        ({"trace": "t.csv", "baseline_model": "gpt-6"}, InvalidRequestError, "no model 'gpt-6'"),
        ({"trace": "t.csv", "tokens_per_minute": {"gpt-6": 1}}, InvalidRequestError, "no model 'gpt-6'"),
        ({"trace": "t.csv", "question": "DROP TABLE trace"}, QueryError, "only SELECT is allowed"),
        ({"trace": "t.csv", "question": "SELECT * FROM read_csv('t.csv')"}, QueryError, "read_csv is not allowed"),
        ({"trase": "t.csv"}, InvalidRequestError, "did you mean trace"),
        ({"min_large_share": 2}, InvalidRequestError, "must be a fraction"),
    ],
)
async def test_wrong_request_is_answered_with_what_is_wrong(
    run_stage: Any, data_dir: Path, params: dict[str, Any], kind: type[CarrelError], says: str
) -> None:
    (data_dir / "t.csv").write_text(HEADER + "2024-01-01 00:00:00,1,1\n", encoding="utf-8")
    (data_dir / "broken.csv").write_text(HEADER + "2024-01-01 00:00:00,1,many\n", encoding="utf-8")
    outcome = await run_stage("data", params)
    assert type(outcome.error) is kind
    assert says in outcome.error.message
    assert outcome.error.advice
    assert outcome.error.status.name == "INVALID_ARGUMENT"


async def test_impossible_limits_reach_the_user_by_name(run_stage: Any) -> None:
    data = await run_stage("data")
    params = {"tokens_per_minute": {"large": 0, "default": None}, "min_large_share": 0.3}
    outcome = await run_stage("optimization", params, {"data": data.result})
    assert isinstance(outcome.error, InfeasibleError)
    assert outcome.error.code == "INFEASIBLE"
    assert "large_share/quartile_4" in outcome.error.details["constraints"]
    assert [data["status"] for data in outcome.told("tool_completed")] == ["error"]


async def test_tools_refuse_what_is_no_result_of_a_stage() -> None:
    for call in (
        optimization_engine({}, {}),
        optimization_engine({"trace": 1, "cells": 2, "busy_minutes": 3, "models": 4}, {}),
        report_generator(None, {"trace": {}}, {}),
    ):
        with pytest.raises(InvalidRequestError, match="result"):
            await call


def test_declarations() -> None:
    supervisor, data, optimization, report = agents()
    assert (supervisor.plans, data.plans) == (True, False)
    assert (data.requires, optimization.requires, report.requires) == ((), ("data",), ("data", "optimization"))
    assert {tool.name: tool.permission for agent in agents() for tool in agent.tools} == {
        "load_trace": "trace:read",
        "query_database": "trace:query",
        "optimization_engine": "optimize:run",
        "report_generator": "report:write",
    }
    assert all(agent.description for agent in agents())
    assert DataAgent.tools == (load_trace, query_database)
    assert set(load_trace.input_schema["properties"]) == {"path", "prices"}
