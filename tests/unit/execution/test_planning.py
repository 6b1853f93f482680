"""Which agents run and in which order."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import (
    CyclicPlanError,
    PlanError,
    UnknownAgentError,
    UnknownStageError,
    UnmetRequirementError,
)
from services.execution.domain.planning import AgentFacts, Catalogue, order_pipeline, order_plan

CHAIN = Catalogue(
    {
        facts.name: facts
        for facts in (
            AgentFacts("data"),
            AgentFacts("optimization", ("data",)),
            AgentFacts("report", ("data", "optimization")),
            AgentFacts("supervisor", plans=True),
            AgentFacts("a", ("b",)),
            AgentFacts("b", ("c",)),
            AgentFacts("c", ("a",)),
            AgentFacts("selfish", ("selfish",)),
            AgentFacts("dangling", ("gone",)),
        )
    }
)


@pytest.mark.parametrize(
    "given_order",
    [["report", "optimization", "data"], ["optimization", "report", "data"], ["data", "optimization", "report"]],
)
def test_pipeline_is_put_in_dependency_order(given_order: Sequence[str]) -> None:
    assert order_pipeline(given_order, CHAIN) == ("data", "optimization", "report")


def test_order_as_written_is_kept_where_nothing_speaks_against_it() -> None:
    free = Catalogue({name: AgentFacts(name) for name in "xyz"})
    assert order_pipeline(["z", "x", "y"], free) == ("z", "x", "y")


def test_unknown_agent_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownAgentError) as raised:
        order_pipeline(["nobody"], CHAIN)
    assert "nobody" in raised.value.message
    assert "data" in raised.value.advice


def test_explicit_pipeline_must_name_what_its_agents_require() -> None:
    with pytest.raises(UnmetRequirementError) as raised:
        order_pipeline(["report"], CHAIN)
    assert "report requires data, optimization" in raised.value.message
    assert "data, optimization, report" in raised.value.advice
    assert raised.value.details["unmet"] == {"report": ["data", "optimization"]}


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["selfish"]])
def test_cycle_is_named(names: Sequence[str]) -> None:
    with pytest.raises(CyclicPlanError) as raised:
        order_pipeline(names, CHAIN)
    cycle = raised.value.details["cycle"]
    assert cycle[0] == cycle[-1]
    assert " → ".join(cycle) in raised.value.message


@pytest.mark.parametrize("names", [["data", "data"], ["supervisor", "data"], ["data", "supervisor"]])
def test_repeated_agent_and_planner_beside_others_are_refused(names: Sequence[str]) -> None:
    with pytest.raises(PlanError):
        order_pipeline(names, CHAIN)


def test_agent_that_requires_an_unregistered_one_is_refused() -> None:
    with pytest.raises(UnknownStageError) as raised:
        order_pipeline(["dangling"], CHAIN)
    assert "gone" in raised.value.message


def test_plan_is_completed_and_ordered() -> None:
    assert order_plan(["report"], CHAIN, ["supervisor"], 31) == ("data", "optimization", "report")


def test_plan_adds_nothing_that_has_run() -> None:
    assert order_plan(["report"], CHAIN, ["supervisor", "data"], 31) == ("optimization", "report")


@pytest.mark.parametrize(
    ("names", "done", "room", "error"),
    [
        ([], [], 31, PlanError),
        (["nobody"], [], 31, UnknownStageError),
        (["a"], [], 31, CyclicPlanError),
        (["data", "data"], [], 31, PlanError),
        (["data"], ["data"], 31, PlanError),
        (["supervisor"], [], 31, PlanError),
        (["report"], [], 2, PlanError),
    ],
)
def test_plan_that_cannot_run_is_refused(
    names: Sequence[str], done: Sequence[str], room: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        order_plan(names, CHAIN, done, room)


@given(st.data())
def test_every_agent_of_any_acyclic_registry_comes_after_what_it_requires(data: st.DataObject) -> None:
    names = [f"n{i}" for i in range(data.draw(st.integers(1, 8)))]
    agents = {
        name: AgentFacts(name, tuple(data.draw(st.sets(st.sampled_from(names[:i]))) if i else ()))
        for i, name in enumerate(names)
    }
    order = order_pipeline(data.draw(st.permutations(names)), Catalogue(agents))
    assert sorted(order) == sorted(names)
    assert all(order.index(need) < order.index(name) for name in names for need in agents[name].requires)
