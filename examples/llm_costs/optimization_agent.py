"""The optimization stage: the cheapest assignment of the profiled requests to models, within the limits asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from carrel import JSON, Agent, AgentContext, Request, tool
from carrel.errors import ToolArgumentsError
from carrel.frozen import thaw
from examples.llm_costs.params import Params
from examples.llm_costs.plan import least_cost

__all__ = ["OptimizationAgent", "optimization_engine"]

_NEEDS = ("trace", "cells", "busy_minutes", "models")


@tool(permission="optimize:run", timeout_s=60)
async def optimization_engine(data: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Find the least cost of serving the requests: linear programming over quartiles of context length and models.

    Args:
        data: ``trace``, ``cells``, ``busy_minutes`` and ``models`` of the data agent's result.
        params: Any of baseline_model, min_large_share, min_medium_share, tokens_per_minute.
    """
    parsed = Params.parse(params)
    try:
        return await asyncio.to_thread(least_cost, data, parsed)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        problem = f"is not a result of the data agent ({type(error).__name__}: {error})"
        raise ToolArgumentsError(f"optimization_engine: data {problem}", fields={"data": problem}) from error


class OptimizationAgent(Agent):
    """Finds the cheapest assignment for what the data stage has profiled."""

    name = "optimization"
    description = "Finds the cheapest assignment of requests to models within windows, rates and promised shares."
    requires = ("data",)
    tools = (optimization_engine,)
    dependencies = ("tools",)
    preload = ("numpy", "scipy.optimize")

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """The result of ``optimization_engine`` for the request's parameters."""
        params = Params.parse(request.params)
        data = request.results["data"]
        await ctx.thinking(
            f"Looking for the cheapest assignment: at least {params.min_large_share:.0%} on large, "
            f"{params.min_medium_share:.0%} on medium or large models in each quartile of context length",
            step="solve",
        )
        found: dict[str, Any] = dict(
            await ctx.call_tool(
                "optimization_engine",
                data={name: thaw(data[name]) for name in _NEEDS},
                params={
                    "baseline_model": params.baseline_model,
                    "min_large_share": params.min_large_share,
                    "min_medium_share": params.min_medium_share,
                    "tokens_per_minute": dict(params.tokens_per_minute),
                },
            )
        )
        await ctx.thinking(
            f"{found['cost_after']['usd']:,.2f} USD instead of {found['cost_before']['usd']:,.2f} USD: "
            f"{found['savings']['percent']:.1f} % less",
            step="solved",
        )
        return found
