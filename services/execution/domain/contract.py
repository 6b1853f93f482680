"""What the engine layer of the chain asks for, promises, may raise, and how quick it means to be."""

from __future__ import annotations

from typing import Final

from carrel.errors import (
    ActiveRunsError,
    AlreadyExistsError,
    EnginesLimitError,
    IdempotencyConflictError,
    PlanError,
    RateLimitError,
    StoreUnavailableError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownAgentError,
    UnknownEngineError,
)
from servicekit.contracts import Clause, FactoryLayerContract
from services.execution.domain.requests import PipelineRequest
from services.execution.models import RunState
from services.execution.models_steps import Admitted

__all__ = ["engine_contract"]


def _has_ids(request: PipelineRequest) -> bool:
    identity = request.identity
    return all((identity.user, identity.thread_id, identity.run_id, identity.request_id))


def _runs_somewhere(admitted: Admitted) -> bool:
    run = admitted.run
    if admitted.existing or run.state is RunState.QUEUED:
        return True
    return run.state is RunState.RUNNING and bool(run.engine_id and run.stages and run.fence)


_INPUT: Final = (
    Clause("user, thread, run and root request are set and verified", _has_ids),
    Clause("the agents that are named are in agent_instance's registry"),
)
_OUTPUT: Final = (
    Clause("a new run is durable, and has an engine, a fence and its first stage, or waits for them", _runs_somewhere),
    Clause("no user has more engines or unended runs than their limits"),
    Clause("the engine is free again once the run's outcome is decided"),
)


def engine_contract() -> FactoryLayerContract:
    """The contract, with counts of its own; bounds in milliseconds."""
    return FactoryLayerContract(
        name="execution_engine",
        input_requirements=_INPUT,
        output_guarantees=_OUTPUT,
        error_conditions=(
            UnknownAgentError,
            PlanError,
            ThreadBusyError,
            EnginesLimitError,
            UnendedRunsError,
            ActiveRunsError,
            RateLimitError,
            UnknownEngineError,
            IdempotencyConflictError,
            AlreadyExistsError,
            StoreUnavailableError,
        ),
        performance_bounds={"execute": 5.0},
    )
