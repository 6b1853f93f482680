"""The contract of this layer of the factory chain, as data: what it asks for, gives, may raise, and how quick it is."""

from __future__ import annotations

from typing import Final

from carrel.errors import (
    AgentDependencyError,
    UnknownAgentError,
    UnknownInstanceError,
    WorkerLostError,
    WorkersBusyError,
)
from servicekit.contracts import Clause, FactoryLayerContract

__all__ = ["AGENT_INSTANCE"]

AGENT_INSTANCE: Final = FactoryLayerContract(
    name="agent_instance",
    input_requirements=(
        Clause("a verified context of a run", lambda caller: caller.context.scope == "run"),
        Clause("an agent that is in the frozen registry"),
        Clause("the agent's declared dependencies (llm, tools, database) are there"),
    ),
    output_guarantees=(
        Clause("the instance is of one user and one run", lambda item: bool(item.user_id and item.run_id)),
        Clause("its worker has served nobody before and will serve nobody after", lambda item: not item.running),
        Clause("an instance that is not run is released after 30 s"),
    ),
    error_conditions=(
        UnknownAgentError,
        AgentDependencyError,
        WorkersBusyError,
        WorkerLostError,
        UnknownInstanceError,
    ),
    performance_bounds={"create_instance": 3.0},
)
