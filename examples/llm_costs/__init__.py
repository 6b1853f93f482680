"""What does serving a language model cost, and what would it cost at best? Four agents that answer it from a trace.

``supervisor`` reads what is wanted and plans; ``data`` profiles a trace of requests and prices it on every model;
``optimization`` finds the cheapest assignment of requests to models by linear programming; ``report`` writes it up
with charts. A language model, where one is configured, is asked for the plan; none is needed. Numbers come from duckdb,
scipy and matplotlib (the extra ``llm-costs``), loaded only when a tool runs: importing this package loads none of them.

``agents`` is what the entry point ``carrel.agents`` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrel.agents import Agent

__all__ = ["agents"]


def agents() -> tuple[type[Agent], ...]:
    """The agent classes of this package, in the order in which their stages run."""
    from examples.llm_costs.data_agent import DataAgent
    from examples.llm_costs.optimization_agent import OptimizationAgent
    from examples.llm_costs.report_agent import ReportAgent
    from examples.llm_costs.supervisor import SupervisorAgent

    return SupervisorAgent, DataAgent, OptimizationAgent, ReportAgent
