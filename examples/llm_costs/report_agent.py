"""The report stage: a Markdown document with charts, as artifacts that a person can save and open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from carrel import JSON, Agent, AgentContext, Request, tool
from carrel.errors import ToolArgumentsError
from carrel.frozen import thaw
from examples.llm_costs import markdown
from examples.llm_costs.charts import render

__all__ = ["ReportAgent", "report_generator"]

_NEEDS_DATA = ("trace", "distributions", "quartile_edges", "costs", "peak_minute", "cells", "load")


@tool(permission="report:write", timeout_s=60)
async def report_generator(ctx: AgentContext, data: dict[str, Any], optimization: dict[str, Any]) -> dict[str, Any]:
    """Write the report as artifacts: report.md and the charts it shows.

    Args:
        data: The data agent's result.
        optimization: The optimization agent's result.
    """
    try:
        text, charts = await asyncio.to_thread(lambda: (markdown.write(data, optimization), render(data, optimization)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        problem = f"are not results of these agents ({type(error).__name__}: {error})"
        raise ToolArgumentsError(
            f"report_generator: data and optimization {problem}", fields={"data": problem, "optimization": problem}
        ) from error
    # The charts first: whoever sees the report finds everything it shows.
    references = [await ctx.artifacts.put(name, svg, "image/svg+xml") for name, svg in charts.items()]
    report = await ctx.artifacts.put("report.md", text, "text/markdown")
    return {"report": report.to_dict(), "charts": [reference.to_dict() for reference in references]}


class ReportAgent(Agent):
    """Writes up what the stages before it have found."""

    name = "report"
    description = "Writes the findings up as Markdown with charts, as artifacts to save and open."
    requires = ("data", "optimization")
    tools = (report_generator,)
    dependencies = ("tools",)
    preload = ("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.dates")

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """The artifacts' references and the outcome in two sentences, which is also the answer to the user."""
        data, optimization = request.results["data"], request.results["optimization"]
        await ctx.thinking("Drawing the charts and writing the report", step="write")
        written = dict(
            await ctx.call_tool(
                "report_generator",
                data={name: thaw(data[name]) for name in _NEEDS_DATA},
                optimization=thaw(optimization),
            )
        )
        outcome = markdown.summary(data, optimization)
        await ctx.message(outcome)
        return {**written, "summary": outcome}
