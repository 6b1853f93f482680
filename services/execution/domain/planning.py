"""Which agents run, in which order: explicit pipelines and supervisors' plans against the registry's ``requires``.

An explicit pipeline must name everything it needs, since its author chose it; a plan is completed, since a supervisor
chooses goals. Both are ordered so that an agent comes after all it requires, otherwise as written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from carrel.doctor_names import DOCTOR_AGENT
from carrel.errors import CyclicPlanError, PlanError, UnknownAgentError, UnknownStageError, UnmetRequirementError

__all__ = ["MAX_STAGES", "AgentFacts", "Catalogue", "default_agent", "order_pipeline", "order_plan"]

MAX_STAGES: Final = 32


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What planning must know of an agent."""

    name: str
    requires: tuple[str, ...] = ()
    plans: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The agents of agent_instance's frozen registry."""

    agents: Mapping[str, AgentFacts] = field(default_factory=dict)
    digest: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.agents

    def known(self) -> str:
        """The names, for an error's advice."""
        return ", ".join(sorted(self.offered())) or "(none is registered)"

    def offered(self) -> tuple[str, ...]:
        """The names without that of the doctor's agent, which is there for nobody else."""
        return tuple(name for name in self.agents if name != DOCTOR_AGENT)


def default_agent(name: str, catalogue: Catalogue) -> str:
    """The agent of a request that names none: the deployment's default, or the only one that there is."""
    if name not in catalogue and len(catalogue.offered()) == 1:
        return catalogue.offered()[0]
    return name


def order_pipeline(names: Sequence[str], catalogue: Catalogue) -> tuple[str, ...]:
    """The stages of an explicit pipeline, ordered.

    Raises:
        UnknownAgentError, UnmetRequirementError, CyclicPlanError, PlanError: Each names the agents concerned.
    """
    for name in names:
        if name not in catalogue:
            raise UnknownAgentError(
                f"no agent is called {name!r}", advice=f"use one of: {catalogue.known()}", agent_name=name
            )
    _check_duplicates(names)
    _check_planners(names, catalogue)
    # A cycle that the pipeline lies on can't be met by adding agents, so it is told first.
    _check_cycles(_closure(names, catalogue, frozenset()), catalogue)
    missing = {name: [need for need in catalogue.agents[name].requires if need not in names] for name in names}
    if unmet := {name: needs for name, needs in missing.items() if needs}:
        full = _sort(_closure(names, catalogue, frozenset()), catalogue)
        raise UnmetRequirementError(
            "; ".join(f"{name} requires {', '.join(needs)}" for name, needs in unmet.items())
            + ", which the pipeline lacks",
            advice=f"ask for the pipeline {', '.join(full)}",
            unmet=unmet,
        )
    return _sort(names, catalogue)


def order_plan(names: Sequence[str], catalogue: Catalogue, done: Iterable[str], room: int) -> tuple[str, ...]:
    """The stages that a supervisor's plan adds: those named and what they require, ordered, less what is done.

    Raises:
        UnknownStageError, CyclicPlanError, PlanError: The plan can't be run.
    """
    finished = frozenset(done)
    if not names:
        raise PlanError("the plan has no stages", advice="name at least one agent in the plan")
    _check_duplicates(names)
    if again := [name for name in names if name in finished]:
        raise PlanError(f"the plan names what has run already: {', '.join(again)}", agents=again)
    stages = _closure(names, catalogue, finished)
    if planners := [name for name in stages if catalogue.agents[name].plans]:
        raise PlanError(f"a plan can't contain an agent that plans: {', '.join(planners)}", agents=planners)
    if len(stages) > room:
        raise PlanError(f"the plan has {len(stages)} stages; {room} more are allowed", limit=MAX_STAGES)
    return _sort(stages, catalogue)


def _check_duplicates(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlanError(
            f"named more than once: {', '.join(twice)}",
            advice="name each agent once; its result goes to every stage after it",
            agents=twice,
        )


def _check_planners(names: Sequence[str], catalogue: Catalogue) -> None:
    planners = [name for name in names if catalogue.agents[name].plans]
    if planners and len(names) > 1:
        raise PlanError(
            f"{planners[0]} plans its own pipeline and must be the only one named",
            advice=f"ask for {planners[0]} alone, or for the others without it",
            agents=planners,
        )


def _closure(names: Sequence[str], catalogue: Catalogue, done: frozenset[str]) -> tuple[str, ...]:
    """The names and all they require, in order of first mention."""
    found: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = queue.pop(0)
        if name in found or name in done:
            continue
        agent = catalogue.agents.get(name)
        if agent is None:
            raise UnknownStageError(
                f"no agent is called {name!r}", advice=f"the known ones are: {catalogue.known()}", agent_name=name
            )
        found[name] = None
        queue += agent.requires
    return tuple(found)


def _sort(names: Sequence[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Stable topological order: of the agents whose needs are met, always the one named first."""
    waiting, order = list(names), list[str]()
    while waiting:
        ready = next((n for n in waiting if not any(need in waiting for need in catalogue.agents[n].requires)), None)
        if ready is None:
            _check_cycles(waiting, catalogue)
            raise CyclicPlanError(f"the agents {', '.join(waiting)} require each other")
        waiting.remove(ready)
        order.append(ready)
    return tuple(order)


def _check_cycles(names: Sequence[str], catalogue: Catalogue) -> None:
    done: set[str] = set()
    for name in names:
        _walk(name, catalogue, [], done)


def _walk(name: str, catalogue: Catalogue, path: list[str], done: set[str]) -> None:
    if name in path:
        cycle = [*path[path.index(name) :], name]
        raise CyclicPlanError(
            f"agents require each other in a circle: {' → '.join(cycle)}",
            advice="remove one of these from the other's requires",
            cycle=cycle,
        )
    if name in done or name not in catalogue:
        return
    path.append(name)
    for need in catalogue.agents[name].requires:
        _walk(need, catalogue, path, done)
    path.pop()
    done.add(name)
