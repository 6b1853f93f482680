"""The one tree of errors, the same in every process and on every wire.

A class says what failed; ``code`` is its name in UPPER_SNAKE without ``Error`` and never changes once released.
``carrel.rpc_errors`` maps the tree to gRPC, ``http_status`` to HTTP. Not here: what a single service keeps to itself.
The root and its branches are written in ``carrel.error_base``, the leaves of limits and agents' work in
``carrel.error_work``, the others below; everybody imports from here::

    CarrelError                              UNKNOWN
    ├── InvalidRequestError                  INVALID_ARGUMENT
    │   ├── InvalidContextError              INVALID_ARGUMENT
    │   │   └── InvalidIdError               INVALID_ARGUMENT
    │   ├── InvalidEventError                INVALID_ARGUMENT
    │   ├── InvalidConfigurationError        INVALID_ARGUMENT
    │   ├── InvalidPositionError             OUT_OF_RANGE
    │   ├── PlanError                        INVALID_ARGUMENT
    │   │   ├── UnmetRequirementError        INVALID_ARGUMENT
    │   │   ├── CyclicPlanError              INVALID_ARGUMENT
    │   │   └── UnknownStageError            INVALID_ARGUMENT
    │   ├── FrameError                       INVALID_ARGUMENT
    │   │   └── UnknownFrameError            INVALID_ARGUMENT
    │   ├── MissingDeadlineError             INVALID_ARGUMENT
    │   ├── InvalidInputError                INVALID_ARGUMENT
    │   └── ToolArgumentsError               INVALID_ARGUMENT   also a ToolError
    ├── UnauthenticatedError                 UNAUTHENTICATED
    │   ├── TokenError                       UNAUTHENTICATED
    │   │   └── TokenExpiredError            UNAUTHENTICATED
    │   └── TicketError                      UNAUTHENTICATED
    │       └── TicketExpiredError           UNAUTHENTICATED
    ├── PermissionDeniedError                PERMISSION_DENIED
    │   ├── IdentityMismatchError            PERMISSION_DENIED
    │   ├── ScopeError                       PERMISSION_DENIED
    │   ├── OriginError                      PERMISSION_DENIED
    │   └── ToolPermissionError              PERMISSION_DENIED  also a ToolError
    ├── NotFoundError                        NOT_FOUND
    │   ├── UnknownRunError                  NOT_FOUND
    │   ├── UnknownThreadError               NOT_FOUND
    │   ├── UnknownAgentError                NOT_FOUND
    │   ├── UnknownEngineError               NOT_FOUND
    │   ├── UnknownInstanceError             NOT_FOUND
    │   ├── UnknownArtifactError             NOT_FOUND
    │   └── UnknownToolError                 NOT_FOUND          also a ToolError
    ├── ConflictError                        ABORTED
    │   ├── ThreadBusyError                  ABORTED            retryable
    │   ├── IdempotencyConflictError         ALREADY_EXISTS
    │   ├── AlreadyExistsError               ALREADY_EXISTS
    │   ├── RunEndedError                    FAILED_PRECONDITION
    │   ├── NotWaitingError                  FAILED_PRECONDITION
    │   ├── StaleFenceError                  FAILED_PRECONDITION
    │   ├── SealedLogError                   FAILED_PRECONDITION
    │   └── EventGapError                    ABORTED
    ├── LimitExceededError                   RESOURCE_EXHAUSTED retryable
    │   ├── EnginesLimitError                RESOURCE_EXHAUSTED retryable
    │   ├── UnendedRunsError                 RESOURCE_EXHAUSTED retryable
    │   ├── ActiveRunsError                  RESOURCE_EXHAUSTED retryable
    │   ├── ConnectionsLimitError            RESOURCE_EXHAUSTED retryable
    │   ├── RateLimitError                   RESOURCE_EXHAUSTED retryable
    │   ├── QueueFullError                   RESOURCE_EXHAUSTED retryable
    │   ├── WorkersBusyError                 RESOURCE_EXHAUSTED retryable
    │   ├── QuotaError                       RESOURCE_EXHAUSTED
    │   └── TooLargeError                    RESOURCE_EXHAUSTED
    ├── UnavailableError                     UNAVAILABLE        retryable
    │   ├── StoreUnavailableError            UNAVAILABLE        retryable
    │   ├── DownstreamUnavailableError       UNAVAILABLE        retryable
    │   └── DrainingError                    UNAVAILABLE        retryable
    ├── DeadlineError                        DEADLINE_EXCEEDED  retryable
    ├── CancelledRunError                    CANCELLED
    ├── NotImplementedYetError               UNIMPLEMENTED
    ├── InternalError                        INTERNAL
    │   ├── ContextIsolationError            INTERNAL
    │   ├── ProtocolError                    INTERNAL
    │   └── CorruptStoreError                DATA_LOSS
    ├── StartupError                         FAILED_PRECONDITION
    ├── AgentError                           UNKNOWN
    │   ├── AgentFailedError                 UNKNOWN
    │   ├── InvalidResultError               UNKNOWN
    │   ├── AgentDependencyError             FAILED_PRECONDITION
    │   ├── AgentIdleTimeoutError            DEADLINE_EXCEEDED
    │   ├── EngineTimeoutError               DEADLINE_EXCEEDED
    │   ├── InputExpiredError                DEADLINE_EXCEEDED
    │   ├── WorkerLimitError                 RESOURCE_EXHAUSTED also a LimitExceededError
    │   └── WorkerLostError                  UNAVAILABLE        retryable
    ├── ModelError                           UNKNOWN
    │   ├── ModelRefusedError                FAILED_PRECONDITION
    │   ├── ModelBudgetError                 RESOURCE_EXHAUSTED also a QuotaError
    │   ├── ModelBusyError                   RESOURCE_EXHAUSTED retryable, also a LimitExceededError
    │   └── ModelUnavailableError            UNAVAILABLE        retryable
    └── ToolError                            UNKNOWN
        ├── ToolFailedError                  UNKNOWN
        ├── ToolTimeoutError                 DEADLINE_EXCEEDED
        ├── ToolUnavailableError             UNAVAILABLE        retryable
        └── ApprovalDeniedError              FAILED_PRECONDITION
"""

from __future__ import annotations

from carrel.error_base import (
    AgentError,
    CancelledRunError,
    CarrelError,
    ConflictError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    LimitExceededError,
    ModelError,
    NotFoundError,
    NotImplementedYetError,
    PermissionDeniedError,
    StartupError,
    Status,
    ToolError,
    UnauthenticatedError,
    UnavailableError,
    error_class,
    error_codes,
    from_dict,
    http_status,
)
from carrel.error_work import (
    ActiveRunsError,
    AgentDependencyError,
    AgentFailedError,
    AgentIdleTimeoutError,
    ApprovalDeniedError,
    ConnectionsLimitError,
    EnginesLimitError,
    EngineTimeoutError,
    InputExpiredError,
    InvalidResultError,
    ModelBudgetError,
    ModelBusyError,
    ModelRefusedError,
    ModelUnavailableError,
    QueueFullError,
    QuotaError,
    RateLimitError,
    TooLargeError,
    ToolFailedError,
    ToolTimeoutError,
    ToolUnavailableError,
    UnendedRunsError,
    WorkerLimitError,
    WorkerLostError,
    WorkersBusyError,
)

__all__ = [
    "ActiveRunsError",
    "AgentDependencyError",
    "AgentError",
    "AgentFailedError",
    "AgentIdleTimeoutError",
    "ApprovalDeniedError",
    "CancelledRunError",
    "CarrelError",
    "ConflictError",
    "ConnectionsLimitError",
    "DeadlineError",
    "EngineTimeoutError",
    "EnginesLimitError",
    "InputExpiredError",
    "InternalError",
    "InvalidRequestError",
    "InvalidResultError",
    "LimitExceededError",
    "ModelBudgetError",
    "ModelBusyError",
    "ModelError",
    "ModelRefusedError",
    "ModelUnavailableError",
    "NotFoundError",
    "NotImplementedYetError",
    "PermissionDeniedError",
    "QueueFullError",
    "QuotaError",
    "RateLimitError",
    "StartupError",
    "Status",
    "TooLargeError",
    "ToolError",
    "ToolFailedError",
    "ToolTimeoutError",
    "ToolUnavailableError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnendedRunsError",
    "WorkerLimitError",
    "WorkerLostError",
    "WorkersBusyError",
    "error_class",
    "error_codes",
    "from_dict",
    "http_status",
]


class InvalidContextError(InvalidRequestError):
    """A UserExecutionContext that breaks a rule of its fields."""


class InvalidIdError(InvalidContextError):
    """An id of the wrong form, or a placeholder."""


class InvalidEventError(InvalidRequestError):
    """An event of unknown kind, or data that does not fit its kind."""


class InvalidConfigurationError(InvalidRequestError):
    """A setting with a value that cannot be used; the advice says what to write instead."""


class InvalidPositionError(InvalidRequestError):
    """A log position (epoch, offset) that the log does not have."""

    status = Status.OUT_OF_RANGE
    default_advice = "read the log from its beginning"


class PlanError(InvalidRequestError):
    """A pipeline that cannot be run as asked."""


class UnmetRequirementError(PlanError):
    """A stage requires the result of an agent that does not run before it."""


class CyclicPlanError(PlanError):
    """Stages that require each other."""


class UnknownStageError(PlanError):
    """A plan names an agent that is not registered."""


class FrameError(InvalidRequestError):
    """A WebSocket frame that is not one flat JSON object of the protocol."""


class UnknownFrameError(FrameError):
    """A frame whose ``type`` is not in the protocol."""


class InvalidInputError(InvalidRequestError):
    """A person's answer that does not fit the schema of the question."""


class MissingDeadlineError(InvalidRequestError):
    """A unary call without a deadline."""

    default_advice = "set a timeout on the call"


class ToolArgumentsError(InvalidRequestError, ToolError):
    """Arguments that do not fit the tool's signature; ``fields`` names each wrong one."""


class TokenError(UnauthenticatedError):
    """A user's or service's token that is missing, malformed or not valid here."""

    default_advice = "log in again"


class TokenExpiredError(TokenError):
    """A token past its ``exp``."""


class TicketError(UnauthenticatedError):
    """A context's ticket that is missing, malformed or not signed by a known key."""


class TicketExpiredError(TicketError):
    """A ticket past its end: get a fresh one and send again."""

    default_advice = "get a fresh ticket and send the call again"


class IdentityMismatchError(PermissionDeniedError):
    """The context's fields say another identity than its ticket."""


class ScopeError(PermissionDeniedError):
    """A ticket of the wrong scope (run, session, service) for this call."""


class OriginError(PermissionDeniedError):
    """A browser page from an origin that is not on the allow-list."""


class ToolPermissionError(PermissionDeniedError, ToolError):
    """The user lacks the permission this tool needs."""


class UnknownRunError(NotFoundError):
    """The user has no such run."""


class UnknownThreadError(NotFoundError):
    """The user has no such thread."""


class UnknownAgentError(NotFoundError):
    """No agent of that name is registered."""


class UnknownEngineError(NotFoundError):
    """The user has no such engine."""


class UnknownInstanceError(NotFoundError):
    """No such agent instance, or it has been released."""


class UnknownArtifactError(NotFoundError):
    """The run has no artifact of that name."""


class UnknownToolError(NotFoundError, ToolError):
    """The agent has no tool of that name."""


class ThreadBusyError(ConflictError):
    """The thread has an unended run and its strategy is ``reject``."""

    retryable = True
    default_advice = "wait for the run to end, cancel it, or choose another strategy"


class IdempotencyConflictError(ConflictError):
    """The same ``client_ref`` was used for a request with other content."""

    status = Status.ALREADY_EXISTS
    default_advice = "use a new client_ref for a new request"


class AlreadyExistsError(ConflictError):
    """Something of that name exists already."""

    status = Status.ALREADY_EXISTS


class RunEndedError(ConflictError):
    """The run has ended, so nothing can be done to it any more."""

    status = Status.FAILED_PRECONDITION


class NotWaitingError(ConflictError):
    """The run does not wait for an answer to this question: never asked, answered otherwise, or over."""

    status = Status.FAILED_PRECONDITION


class StaleFenceError(ConflictError):
    """Somebody newer owns the run: the caller must stop working on it."""

    status = Status.FAILED_PRECONDITION


class SealedLogError(ConflictError):
    """The run's terminal event is in the log; nothing comes after it."""

    status = Status.FAILED_PRECONDITION


class EventGapError(ConflictError):
    """A producer's number skips some: it rewinds to ``last_number`` + 1."""

    @property
    def last_number(self) -> int:
        """The last number the log holds of this producer, 0 when none."""
        return int(self.details.get("last_number", 0))


class StoreUnavailableError(UnavailableError):
    """A store (database, log, folder) does not answer or cannot be written."""


class DownstreamUnavailableError(UnavailableError):
    """The next service in the chain does not answer."""


class DrainingError(UnavailableError):
    """This process is shutting down; another one serves."""


class ContextIsolationError(InternalError):
    """Two contexts share a mutable object, or a context carries what belongs to another user."""


class ProtocolError(InternalError):
    """A peer sent a message that its protocol does not allow here."""


class CorruptStoreError(InternalError):
    """A store holds what cannot have been written by us."""

    status = Status.DATA_LOSS
