"""The three desks as agents of Carrel.

    carrel up --agents examples.adapters.agents:agents

Each is named, not imported: the service need not load the libraries, and where a worker looks it up there is a key.
"""

from __future__ import annotations

from carrel.adapters import langgraph, openai_agents, pydantic_ai

__all__ = ["agents"]

PydanticDesk = pydantic_ai.agent_class(
    "examples.adapters.pydantic_desk:agent", name="pydantic-desk", description="The order desk, with pydantic-ai."
)

GraphDesk = langgraph.agent_class(
    "examples.adapters.langgraph_desk:graph",
    name="graph-desk",
    description="The order desk, with LangGraph.",
    remembers=True,
)

OpenAiDesk = openai_agents.agent_class(
    "examples.adapters.openai_desk:desk", name="openai-desk", description="The order desk, with OpenAI's SDK."
)

agents = (PydanticDesk, GraphDesk, OpenAiDesk)
