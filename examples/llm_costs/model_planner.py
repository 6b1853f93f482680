"""The supervisor's planning by a language model: what it is told, and what of its answer is taken.

The answer is data from outside: stages are checked against the agents there are, parameters against a short list of
plain numbers and names, and what the user has set stands. Files and SQL are never the model's to choose.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carrel import Agent, AgentContext, Plan, Request
from carrel.errors import InvalidRequestError, ModelRefusedError, ModelUnavailableError, PlanError
from carrel.frozen import thaw
from examples.llm_costs.params import Params

__all__ = ["MODELS_PARAMS", "ask_for_plan", "read_plan"]

MODELS_PARAMS: Final = ("baseline_model", "min_large_share", "min_medium_share", "tokens_per_minute")
"""The parameters that a model may set."""

_PATIENCE_S: Final = 20.0
_MAX_ASKED: Final = 4000
_MAX_REASON: Final = 300
_MAX_ANSWER_TOKENS: Final = 500
_OBJECT: Final = re.compile(r"\{.*\}", re.S)

_INSTRUCTIONS: Final = """\
You plan which agents answer a request about the cost of serving language models. The agents, in their order:
{agents}
Answer with one JSON object and nothing else:
{{"stages": [names, in order, each after those it needs], "params": {{}}, "reason": "one short sentence for the user"}}
Choose no more stages than the request needs. Set a parameter only if the request says so; parameters:
baseline_model (a model's name: what is compared with), min_large_share and min_medium_share (fractions 0 to 1 of
requests that must go to large, or to medium or large models), tokens_per_minute (a limit, for all models).
If the request is about something else, answer {{"stages": [], "params": {{}}, "reason": "why"}}."""


async def ask_for_plan(ctx: AgentContext, request: Request, agents: Sequence[type[Agent]]) -> Plan:
    """The model's plan, checked.

    Raises:
        ModelError: The model cannot be asked, or its answer is no plan.
    """
    lines = [f"- {a.name}: {a.description} Needs: {', '.join(a.requires) or 'nothing'}." for a in agents]
    messages = [
        {"role": "system", "content": _INSTRUCTIONS.format(agents="\n".join(lines))},
        {"role": "user", "content": request.message[:_MAX_ASKED]},
    ]
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reply = await ctx.llm.chat(messages, temperature=0, max_tokens=_MAX_ANSWER_TOKENS)
    except TimeoutError:
        raise ModelUnavailableError(f"the model did not plan within {_PATIENCE_S:g} s") from None
    try:
        return read_plan(reply.text, request.params, agents)
    except (InvalidRequestError, PlanError, ValueError) as error:
        raise ModelRefusedError(f"the model's answer is no plan ({type(error).__name__})") from None


def read_plan(text: str, given: Mapping[str, Any], agents: Sequence[type[Agent]]) -> Plan:
    """The plan in a model's answer.

    Args:
        text: The answer; what is around its JSON object is ignored.
        given: The user's parameters, which stand.
        agents: Those that there are, in their order.

    Raises:
        ValueError: There is no JSON object in it, or not of this shape.
        PlanError: Unknown stages, none, or one without what it needs.
        InvalidRequestError: A parameter is wrong.
    """
    found = _OBJECT.search(text)
    answer = json.loads(found[0]) if found else None
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    stages, params, reason = answer.get("stages"), answer.get("params") or {}, answer.get("reason")
    if not isinstance(stages, list) or not isinstance(params, dict):
        raise ValueError("stages or params of another shape")
    known = {agent.name: agent for agent in agents}
    for place, name in enumerate(stages):
        if not isinstance(name, str) or name not in known:
            raise PlanError("an unknown stage")
        if not set(known[name].requires) <= set(stages[:place]):
            raise PlanError("a stage without what it needs before it")
    chosen = {name: params[name] for name in MODELS_PARAMS if name in params and name not in given}
    parsed = Params.parse({**thaw(given), **chosen})
    words = " ".join(reason.split())[:_MAX_REASON] if isinstance(reason, str) else ""
    return Plan(tuple(stages), {**chosen, "trace": parsed.trace}, words or "the model says so")
