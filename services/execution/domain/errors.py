"""Errors that only execution raises; everything else is in ``carrel.errors``."""

from __future__ import annotations

from carrel.errors import ConflictError, Status, WorkerLostError

__all__ = ["AgentInstanceDrainedError", "AgentInstanceLostError", "RunNotEndedError"]


class AgentInstanceLostError(WorkerLostError):
    """The agent_instance that ran the stage broke off or stopped giving signs of life."""

    code = "AGENT_INSTANCE_LOST"
    default_advice = "send the request again"


class AgentInstanceDrainedError(AgentInstanceLostError):
    """The agent_instance that ran the stage ends in order and gave the attempt back: nobody's failure."""

    code = "AGENT_INSTANCE_DRAINED"


class RunNotEndedError(ConflictError):
    """What was asked for needs a run to have ended first."""

    code = "RUN_NOT_ENDED"
    status = Status.FAILED_PRECONDITION
    retryable = True
    default_advice = "wait for the run to end, or cancel it"
