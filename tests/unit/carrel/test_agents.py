"""What an author declares and passes: agent classes, requests, plans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carrel import Agent, Message, Plan, Request, tool
from carrel.agents import MAX_STAGES, check_agent_name, collect_wrong_classes, declaration_problems
from carrel.errors import InvalidConfigurationError, InvalidRequestError, PlanError


@tool
async def look() -> int:
    return 1


def declare(**attributes: Any) -> type[Agent]:
    return type("Declared", (Agent,), {"name": "declared", **attributes})


def test_a_full_declaration_passes() -> None:
    made = declare(
        requires=("data",), tools=(look,), fallback="plain", dependencies=("llm", "database"),
        isolation="task", plans=True, idle_timeout_s=5, timeout_s=60.5,
    )  # fmt: skip
    assert made.requires == ("data",)
    assert Agent.isolation == "process"


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"name": "Big"}, "name must be"),
        ({"name": ""}, "name must be"),
        ({"name": None}, "name must be"),
        ({"requires": "data"}, "for one name write"),
        ({"requires": ("a", "a")}, "twice"),
        ({"requires": ("declared",)}, "requires itself"),
        ({"requires": [1]}, "requires must be"),
        ({"dependencies": ("gpu",)}, "dependencies may be database, llm, tools"),
        ({"dependencies": "llm"}, "dependencies must be a tuple"),
        ({"tools": look}, "for one tool write"),
        ({"tools": (print,)}, "decorated with @tool"),
        ({"tools": (look, look)}, "two tools have one name"),
        ({"isolation": "thread"}, "isolation must be"),
        ({"fallback": "declared"}, "fallback must name another"),
        ({"timeout_s": 0}, "positive number"),
        ({"idle_timeout_s": True}, "positive number"),
        ({"timeout_s": float("inf")}, "positive number"),
        ({"run": lambda self, ctx, request: {}}, "async def"),
    ],
)
def test_a_wrong_declaration_fails_where_it_is_written(attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfigurationError, match=text):
        declare(**attributes)


def test_every_mistake_of_a_class_is_told_at_once() -> None:
    with pytest.raises(InvalidConfigurationError, match=r"isolation.*timeout_s") as caught:
        declare(isolation="x", timeout_s=-1)
    assert caught.value.advice == "correct the class where it is defined"


def test_wrong_classes_can_be_collected_instead_of_ending_the_module_that_defines_them() -> None:
    with collect_wrong_classes() as wrong:
        bad = declare(isolation="x", timeout_s=-1)
        declare()
    assert wrong == [bad]
    assert len(declaration_problems(bad)) == 2
    with pytest.raises(InvalidConfigurationError):
        declare(isolation="x")


def test_a_base_class_without_a_name_is_left_alone() -> None:
    base = type("Base", (Agent,), {"timeout_s": 5})
    assert type("Real", (base,), {"name": "real"}).timeout_s == 5  # type: ignore[attr-defined]  # inherited


async def test_an_agent_without_run_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Declared has no run"):
        await declare()().run(None, Request("x"))  # type: ignore[arg-type]  # never looked at


def test_a_request_is_a_read_only_copy() -> None:
    params: dict[str, Any] = {"a": [1]}
    request = Request("m", params, {"data": {"x": 1}}, [Message("user", "hi", "run-0")])  # type: ignore[arg-type]  # a list is taken too
    params["a"].append(2)
    assert request.params["a"] == (1,)
    with pytest.raises(TypeError):
        request.results["data"]["x"] = 2  # type: ignore[index]  # what is refused
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@pytest.mark.parametrize(
    "data",
    [{"message": 5}, {"message": "m", "attempt": 0}, {"message": "m", "params": []}, {"message": "m", "attempt": "1"},
     {"message": "m", "history": [{"role": "robot", "text": ""}]}, {"message": "m", "history": [{"role": "user"}]}],
)  # fmt: skip
def test_a_malformed_request_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Request.from_dict(data)


def test_a_plan_round_trips() -> None:
    plan = Plan(("data", "report"), {"a": [1]}, "why")
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert Plan(["data"]).stages == ("data",)  # type: ignore[arg-type]  # a list is taken too


@pytest.mark.parametrize("stages", [(), "data", ("data", "data"), ("Bad Name",), (1,), None, ("a",) * (MAX_STAGES + 1)])
def test_a_plan_with_impossible_stages_is_refused(stages: Any) -> None:
    with pytest.raises(PlanError):
        Plan(stages)


def test_a_plan_with_parameters_that_are_no_json_is_refused() -> None:
    with pytest.raises(PlanError, match="params"):
        Plan(("data",), {"a": object()})


def test_agent_names() -> None:
    assert check_agent_name("data-2_x") == "data-2_x"
    for name in ("", "Data", "2data", "a" * 65, "a b", None):
        with pytest.raises(InvalidRequestError, match="agent's name"):
            check_agent_name(name)
