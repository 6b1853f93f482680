"""The leaves of the tree of errors for limits, agents, tools and models. Import them from ``carrel.errors``."""

from __future__ import annotations

from carrel.error_base import AgentError, LimitExceededError, ModelError, Status, ToolError

__all__ = [
    "ActiveRunsError",
    "AgentDependencyError",
    "AgentFailedError",
    "AgentIdleTimeoutError",
    "ApprovalDeniedError",
    "ConnectionsLimitError",
    "EngineTimeoutError",
    "EnginesLimitError",
    "InputExpiredError",
    "InvalidResultError",
    "ModelBudgetError",
    "ModelBusyError",
    "ModelRefusedError",
    "ModelUnavailableError",
    "QueueFullError",
    "QuotaError",
    "RateLimitError",
    "TooLargeError",
    "ToolFailedError",
    "ToolTimeoutError",
    "ToolUnavailableError",
    "UnendedRunsError",
    "WorkerLimitError",
    "WorkerLostError",
    "WorkersBusyError",
]


class EnginesLimitError(LimitExceededError):
    """The user has ``max_engines_per_user`` active engines."""


class UnendedRunsError(LimitExceededError):
    """The user has as many unended runs as allowed."""


class ActiveRunsError(LimitExceededError):
    """The whole deployment has as many active, or unended, runs as allowed."""


class ConnectionsLimitError(LimitExceededError):
    """Too many connections, of this user, from this address, or in all."""


class RateLimitError(LimitExceededError):
    """Too many requests in a short time."""


class QueueFullError(LimitExceededError):
    """A bounded queue is full."""


class WorkersBusyError(LimitExceededError):
    """No worker is free for another attempt."""


class QuotaError(LimitExceededError):
    """A budget for a long time (storage, tokens) is used up."""

    retryable = False


class TooLargeError(LimitExceededError):
    """Something is larger than allowed; ``limit_value`` and ``use`` are bytes."""

    retryable = False


class AgentFailedError(AgentError):
    """An agent raised, and has no fallback."""


class InvalidResultError(AgentError):
    """An agent returned something other than a JSON object, or a Plan where none is expected."""


class AgentDependencyError(AgentError):
    """An agent needs something (llm, tools, database) that this deployment does not have."""

    status = Status.FAILED_PRECONDITION


class AgentIdleTimeoutError(AgentError):
    """No event, tool or model activity for too long."""

    status = Status.DEADLINE_EXCEEDED


class EngineTimeoutError(AgentError):
    """The engine's whole time is used up."""

    status = Status.DEADLINE_EXCEEDED


class InputExpiredError(AgentError):
    """Nobody answered the run's question in time."""

    status = Status.DEADLINE_EXCEEDED
    default_advice = "ask anew, and answer the question sooner"


class WorkerLimitError(AgentError, LimitExceededError):
    """The agent's process used more than it may: ``limit`` names what (memory, cpu, files), and is not tried again."""

    retryable = False
    default_advice = "ask for less at once, or have the operator raise the limit"


class WorkerLostError(AgentError):
    """The process that ran the agent died."""

    status = Status.UNAVAILABLE
    retryable = True


class ToolFailedError(ToolError):
    """A tool's body raised."""


class ToolTimeoutError(ToolError):
    """A tool's body took longer than its ``timeout_s``."""

    status = Status.DEADLINE_EXCEEDED


class ToolUnavailableError(ToolError):
    """The server that offers the tool is away; it is being started again."""

    status = Status.UNAVAILABLE
    retryable = True
    default_advice = "try again shortly"


class ApprovalDeniedError(ToolError):
    """The user was asked to approve the call and did not."""

    status = Status.FAILED_PRECONDITION
    default_advice = "go on without it, or ask for something else"


class ModelRefusedError(ModelError):
    """The model's endpoint refused the request, or gave what is no answer; sending it again changes nothing."""

    status = Status.FAILED_PRECONDITION
    default_advice = "correct the request to the model"


class ModelUnavailableError(ModelError):
    """The model's endpoint does not answer, or none is configured."""

    status = Status.UNAVAILABLE
    retryable = True
    default_advice = "try again shortly, or have the operator look at the model's endpoint"


class ModelBudgetError(ModelError, QuotaError):
    """The user's tokens for models are used up; ``retry_after_s`` says when there are new ones."""


class ModelBusyError(ModelError, LimitExceededError):
    """As many of the user's model calls are under way, and wait, as may; ``limit`` names which."""

    retryable = True
    default_advice = "ask for fewer answers at once, or try again shortly"
