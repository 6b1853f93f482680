"""The data stage: profiles a trace, prices it on every model, and answers the user's own SQL over it.

Its result is small and all that later stages need: cells, busy minutes and series, never rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from carrel import JSON, Agent, AgentContext, Request, tool
from carrel.errors import ConflictError
from examples.llm_costs import prices as price_tables
from examples.llm_costs.database import QUERY_TIMEOUT_S, Query
from examples.llm_costs.params import Params
from examples.llm_costs.profile import profile
from examples.llm_costs.sources import DEFAULT_TRACE, SAMPLE_PREFIX
from examples.llm_costs.traces import iso
from examples.llm_costs.traces import load as load_csv

__all__ = ["DataAgent", "load_trace", "query_database"]

_MAX_BUCKETS: Final = 240
_TOTALS: Final = (
    "SELECT count(*) AS requests, sum(ContextTokens) AS input_tokens, sum(GeneratedTokens) AS output_tokens FROM trace"
)


@tool(permission="trace:read", timeout_s=30)
async def load_trace(path: str, prices: str | None = None) -> dict[str, Any]:
    """Profile a trace of requests: token distributions, cost on each model, busiest minute, cells to plan with.

    Args:
        path: CSV file inside the data folder, or ``sample:<file>`` for a packaged sample.
        prices: CSV file with a price table, likewise; the packaged table when missing.
    """
    return await asyncio.to_thread(lambda: profile(load_csv(path), price_tables.load(prices)))


@tool(permission="trace:query", timeout_s=30)
async def query_database(sql: str, trace: str = DEFAULT_TRACE) -> dict[str, Any]:
    """Answer one read-only SELECT over the table trace (TIMESTAMP, ContextTokens, GeneratedTokens), in DuckDB.

    Args:
        sql: One SELECT; nothing but the table ``trace`` can be read.
        trace: The trace that the table holds, as for load_trace.
    """
    query = Query(await asyncio.to_thread(load_csv, trace), sql, timeout_s=QUERY_TIMEOUT_S)
    try:
        return await asyncio.to_thread(query.run)
    except asyncio.CancelledError:
        # The thread cannot be stopped from here; the query in it can.
        query.cancel()
        raise


class DataAgent(Agent):
    """Profiles the trace that the request names."""

    name = "data"
    description = "Profiles a trace of language model requests and prices it on every model of the price table."
    tools = (load_trace, query_database)
    dependencies = ("tools",)
    preload = ("duckdb",)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """Profile, load over time, validation, and the answer to ``question`` when one is asked."""
        params = Params.parse(request.params)
        await ctx.thinking(f"Profiling {_label(params.trace)}", step="profile")
        found = dict(await ctx.call_tool("load_trace", path=params.trace, prices=params.prices))
        models = price_tables.from_json(found["models"])
        # Said now, not after the next stage has begun.
        baseline = price_tables.find(models, params.baseline_model, "baseline_model")
        params.limits(models)
        facts = found["trace"]
        await ctx.thinking(
            f"{int(facts['requests']):,} requests, {int(facts['input_tokens']):,} input and "
            f"{int(facts['output_tokens']):,} output tokens: "
            f"{baseline.cost(facts['input_tokens'], facts['output_tokens']):,.2f} USD on {baseline.model}",
            step="price",
        )
        found["load"] = await _load_over_time(ctx, params.trace, float(facts["duration_s"]))
        found["validated"] = await _validate(ctx, params.trace, facts)
        if params.question is not None:
            await ctx.thinking("Answering the question in SQL", step="question")
            found["answer"] = await ctx.call_tool("query_database", sql=params.question, trace=params.trace)
        return found


async def _load_over_time(ctx: AgentContext, trace: str, seconds: float) -> dict[str, Any]:
    minutes = max(1, -(-int(seconds) // (60 * _MAX_BUCKETS)))
    width = minutes * 60_000_000
    answer = await ctx.call_tool(
        "query_database",
        sql=f"SELECT epoch_us(TIMESTAMP) // {width} AS bucket, count(*) AS requests, "  # noqa: S608  (an integer of ours)
        "sum(ContextTokens) AS input_tokens, sum(GeneratedTokens) AS output_tokens FROM trace "
        "GROUP BY ALL ORDER BY ALL",
        trace=trace,
    )
    rows = {int(row[0]): [int(value) for value in row[1:]] for row in answer["rows"]}
    first, last = min(rows), max(rows)
    dense = [rows.get(bucket, [0, 0, 0]) for bucket in range(first, last + 1)]
    return {
        "start": iso(first * width),
        "bucket_minutes": minutes,
        "requests": [row[0] for row in dense],
        "input_tokens": [row[1] for row in dense],
        "output_tokens": [row[2] for row in dense],
    }


async def _validate(ctx: AgentContext, trace: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Count once more by another way: the profile is numpy's, this is DuckDB's."""
    async with ctx.child("validation", tools=("query_database",)) as child:
        await child.thinking("Counting the trace once more, in SQL", step="validation")
        answer = await child.call_tool("query_database", sql=_TOTALS, trace=trace)
    counted = dict(zip(answer["columns"], answer["rows"][0], strict=True))
    if any(int(facts[name]) != int(value) for name, value in counted.items()):
        raise ConflictError("the trace changed while it was being read", advice="ask again once the file is complete")
    return counted


def _label(trace: str) -> str:
    return f"the packaged synthetic sample {trace}" if trace.startswith(SAMPLE_PREFIX) else trace
