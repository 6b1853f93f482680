"""The three desks as agents of Carrel, and a stage before them that has nothing to do with any library.

carrel up --agents examples.adapters.agents:agents
"""

from __future__ import annotations

from carrel.adapters import langgraph, openai_agents, pydantic_ai
from examples.adapters.openai_desk import desk
from examples.adapters.pydantic_desk import agent

__all__ = ["agents"]

PydanticDesk = pydantic_ai.agent_class(agent, name="pydantic-desk", description="The order desk, with pydantic-ai.")

# By name: its module makes a ChatOpenAI(), which wants a key, and there is one in the worker only.
GraphDesk = langgraph.agent_class(
    "examples.adapters.langgraph_desk:graph", name="graph-desk", description="The order desk, with LangGraph."
)

OpenAiDesk = openai_agents.agent_class(desk, name="openai-desk", description="The order desk, with OpenAI's SDK.")

agents = (PydanticDesk, GraphDesk, OpenAiDesk)
