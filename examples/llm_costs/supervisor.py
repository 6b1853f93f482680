"""The supervisor: reads from parameters or plain words which stages are wanted, and plans them. It calls no agent.

Where a language model is configured it is asked (``model_planner``), unless parameters say what is wanted. Without one,
or when it cannot be asked or answers nonsense: a fixed set of words, matched as words. What cannot be understood or
done is said, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carrel import Agent, AgentContext, Plan, Request
from carrel.errors import InvalidRequestError, ModelError, PlanError, UnknownStageError, UnmetRequirementError
from examples.llm_costs.data_agent import DataAgent
from examples.llm_costs.model_planner import ask_for_plan
from examples.llm_costs.optimization_agent import OptimizationAgent
from examples.llm_costs.params import Params
from examples.llm_costs.report_agent import ReportAgent

__all__ = ["SupervisorAgent", "stages_for"]

_STAGES: Final[tuple[type[Agent], ...]] = (DataAgent, OptimizationAgent, ReportAgent)
_NAMES: Final = tuple(stage.name for stage in _STAGES)
# Parameters that say what is wanted; nobody needs to be asked then.
_DECIDED_BY: Final = ("pipeline", "goal", "question")
_REQUIRES: Final = {stage.name: stage.requires for stage in _STAGES}

# Each pattern is matched against whole words, in lower case.
_WORDS: Final = {
    "report": r"reports?|write-?ups?|summar(?:y|ies|i[sz]e)|charts?|plots?|graphs?|documents?|markdown|pipeline",
    "optimization": r"optimi[sz](?:e|es|ed|ing|ation)|optimal|optimum|cheap(?:er|est)?|sav(?:e|ing|ings)|reduce|"
    r"lower|cut|least|minimi[sz]e|minimum|assign(?:ment)?",
    "data": r"data|profil(?:e|es|ing)|traces?|loads?|distributions?|statistics?|stats|analy[sz](?:e|es|is)|costs?|"
    r"prices?|spend(?:ing)?|tokens?|quer(?:y|ies)|sql|questions?",
}
_GOALS: Final = {
    name: re.compile(rf"(?P<no>\b(?:no|not|without|skip|except|don't)\s+(?:(?:a|an|any|the)\s+)?)?\b(?:{words})\b")
    for name, words in _WORDS.items()
}
_ADVICE: Final = (
    "say report, optimize or profile, or give the parameter goal (one of data, optimization, report) "
    "or pipeline (a list of these in order)"
)


class SupervisorAgent(Agent):
    """Plans which of data, optimization and report a request needs."""

    name = "supervisor"
    description = "Reads what is wanted (report, optimize, profile) and plans the stages."
    plans = True

    async def run(self, ctx: AgentContext, request: Request) -> Plan:
        """The plan; parameters are checked here already, so that a wrong one costs no stage."""
        params = Params.parse(request.params)
        if ctx.llm.available and request.message.strip() and not any(name in request.params for name in _DECIDED_BY):
            try:
                plan = await ask_for_plan(ctx, request, _STAGES)
            except ModelError as error:
                await ctx.thinking(f"Planning by rules: {error.message}", code=error.code)
            else:
                said = f"Planning {' → '.join(plan.stages)}: {plan.reason}"
                await ctx.thinking(said, stages=list(plan.stages), planned_by=ctx.llm.model)
                return plan
        stages, reason = stages_for(request.message, request.params)
        await ctx.thinking(f"Planning {' → '.join(stages)}: {reason}", stages=list(stages))
        return Plan(stages, {"trace": params.trace}, reason)


def stages_for(message: str, params: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The stages for a request, and why, in words.

    Raises:
        InvalidRequestError: Neither parameters nor words say what is wanted, or they contradict each other.
        UnknownStageError: ``pipeline`` names a stage that does not exist.
        UnmetRequirementError: A stage is asked for without one it needs before it.
    """
    pipeline, goal = params.get("pipeline"), params.get("goal")
    if pipeline is not None and goal is not None:
        raise InvalidRequestError("pipeline and goal both say what is wanted", advice="give one of them")
    if pipeline is not None:
        return _from_pipeline(pipeline), "the parameter pipeline says so"
    if goal is not None:
        return _from_goal(goal), f"the parameter goal is {goal}"
    return _from_words(message, has_question=params.get("question") is not None)


def _from_pipeline(value: object) -> tuple[str, ...]:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidRequestError("pipeline must be a list of stages", advice=_ADVICE, fields={"pipeline": "a list"})
    unknown = [name[:64] for name in names if name not in _NAMES]
    if unknown:
        raise UnknownStageError(f"there is no stage {unknown[0]!r}", advice=f"stages are {', '.join(_NAMES)}")
    if len(set(names)) != len(names):
        raise PlanError("pipeline names a stage twice", advice="name each once, in order: " + ", ".join(_NAMES))
    for place, name in enumerate(names):
        missing = [needed for needed in _REQUIRES[name] if needed not in names[:place]]
        if missing:
            raise UnmetRequirementError(
                f"the stage {name} needs the result of {' and '.join(missing)} before it",
                advice=f"put {', '.join(missing)} before {name}, or give goal={name} instead of pipeline",
                stage=name,
                missing=missing,
            )
    return tuple(names)


def _from_goal(value: object) -> tuple[str, ...]:
    text = value.strip().lower() if isinstance(value, str) else ""
    for name in reversed(_NAMES):
        if text == name or (text and _GOALS[name].fullmatch(text)):
            return _with_requirements(name)
    raise InvalidRequestError(
        "goal is none that these agents have", advice=_ADVICE, fields={"goal": f"must be one of {', '.join(_NAMES)}"}
    )


def _from_words(message: str, *, has_question: bool) -> tuple[tuple[str, ...], str]:
    # Bounded: a message may be long, and what is wanted is said at its beginning.
    text = message[:2000].lower().replace("\u2019", "'")
    wanted: dict[str, str] = {}
    unwanted: set[str] = set()
    for name, pattern in _GOALS.items():
        for match in pattern.finditer(text):
            if match["no"]:
                unwanted.add(name)
            else:
                wanted.setdefault(name, match[0])
    for name in reversed(_NAMES):
        if name in wanted and name not in unwanted:
            stages = _with_requirements(name)
            if refused := [stage for stage in stages if stage in unwanted]:
                raise UnmetRequirementError(
                    f"{name} is not possible without {refused[0]}", advice=f"ask for {name} as a whole, or for less"
                )
            return stages, f"the message says {wanted[name]!r}"
    if has_question:
        return ("data",), "there is a question to answer in SQL"
    raise InvalidRequestError("the message does not say what these agents can do", advice=_ADVICE)


def _with_requirements(name: str) -> tuple[str, ...]:
    return tuple(stage for stage in _NAMES if stage == name or stage in _REQUIRES[name])
