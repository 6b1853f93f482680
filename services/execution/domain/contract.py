"""What decides the clauses of the engine layer's contract; its text is in ``servicekit.layers``."""

from __future__ import annotations

from servicekit.contracts import FactoryLayerContract
from servicekit.layers import layer_contract
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


def engine_contract() -> FactoryLayerContract:
    """The contract, with counts of its own; bounds in milliseconds."""
    return layer_contract("execution_engine", {"needs.ids": _has_ids, "gives.durable": _runs_somewhere})
