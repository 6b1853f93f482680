"""What every Carrel error is made of: status names, the root class and its branches, the registry of codes.

Not the whole tree, which ``carrel.errors`` draws and completes; import from there. Nothing here knows grpc or HTTP
libraries.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "HTTP_STATUS",
    "AgentError",
    "CancelledRunError",
    "CarrelError",
    "ConflictError",
    "DeadlineError",
    "InternalError",
    "InvalidRequestError",
    "LimitExceededError",
    "ModelError",
    "NotFoundError",
    "NotImplementedYetError",
    "PermissionDeniedError",
    "StartupError",
    "Status",
    "ToolError",
    "UnauthenticatedError",
    "UnavailableError",
    "error_class",
    "error_codes",
    "from_dict",
    "http_status",
]

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TREE_MODULES: Final = ("carrel.errors", "carrel.error_base", "carrel.error_work")
# What a peer (a worker, at worst) may put into an error that we rebuild and pass on.
_MAX_TEXT: Final = 4096
_MAX_NESTING: Final = 16


class Status(enum.IntEnum):
    """The canonical gRPC status codes, by their numbers, without importing grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: Final[Mapping[Status, int]] = {
    Status.OK: 200,
    Status.CANCELLED: 499,
    Status.UNKNOWN: 500,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    # Google's table says 400; every FAILED_PRECONDITION of ours is a conflict with the state of something.
    Status.FAILED_PRECONDITION: 409,
    Status.ABORTED: 409,
    Status.OUT_OF_RANGE: 400,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.DATA_LOSS: 500,
    Status.UNAUTHENTICATED: 401,
}


class CarrelError(Exception):
    """Root of the tree: everything Carrel raises on purpose.

    Args:
        message: What went wrong, for a person. Never a secret, a token or a user's text.
        advice: What to do next; the class's own advice when empty.
        retry_after_s: Seconds after which trying again makes sense, or None.
        details: Machine-readable facts, JSON values only (others are kept as their ``str``).

    The class says what kind of failure it is: ``code`` (stable, UPPER_SNAKE, made from the class's name), ``status``
    (the gRPC status it travels as) and ``retryable`` (the same request may succeed later, unchanged).
    """

    code: str = "CARREL"
    status: Status = Status.UNKNOWN
    retryable: bool = False
    default_advice: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            cls.code = _CAMEL.sub("_", cls.__name__.removesuffix("Error")).upper()
        known = _BY_CODE.get(cls.code)
        # An author's module may be loaded twice (reload), but nobody may take over a code of the library's own.
        if known is not None and known.__module__ in _TREE_MODULES:
            raise TypeError(f"{cls.__name__}: the error code {cls.code} is taken by carrel.errors.{known.__name__}")
        _BY_CODE[cls.code] = cls

    def __init__(
        self, message: str, *, advice: str = "", retry_after_s: float | None = None, **details: object
    ) -> None:
        message = _text(message)
        super().__init__(message)
        self.message = message
        self.advice = _text(advice) or self.default_advice
        self.retry_after_s = retry_after_s
        self.details: dict[str, Any] = {name: _jsonable(value) for name, value in details.items()}

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call cls(message) and lose advice, details and delay on the way to another process.
        return from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Everything about this error as JSON values; ``from_dict`` rebuilds it."""
        data: dict[str, Any] = {
            "code": self.code,
            "status": self.status.name,
            "message": self.message,
            "advice": self.advice,
            "retryable": self.retryable,
        }
        if self.retry_after_s is not None:
            data["retry_after_s"] = self.retry_after_s
        if self.details:
            data["details"] = dict(self.details)
        return data


_BY_CODE: dict[str, type[CarrelError]] = {CarrelError.code: CarrelError}


class InvalidRequestError(CarrelError):
    """The request itself is wrong; sending it again unchanged fails again."""

    status = Status.INVALID_ARGUMENT
    default_advice = "correct the request and send it again"

    @property
    def fields(self) -> Mapping[str, str]:
        """Field → what is wrong with it, from ``details["fields"]``; becomes ``google.rpc.BadRequest``."""
        fields: Any = self.details.get("fields")
        return {str(k): str(v) for k, v in fields.items()} if isinstance(fields, Mapping) else {}


class UnauthenticatedError(CarrelError):
    """Nobody is known to be calling."""

    status = Status.UNAUTHENTICATED


class PermissionDeniedError(CarrelError):
    """The caller is known and may not do this."""

    status = Status.PERMISSION_DENIED
    default_advice = "ask an operator for what is missing"


class NotFoundError(CarrelError):
    """Nothing of that name among what the caller may see."""

    status = Status.NOT_FOUND
    default_advice = "check the name: only what is your own can be named"


class ConflictError(CarrelError):
    """The request does not fit the present state."""

    status = Status.ABORTED
    default_advice = "look at how it stands now, then ask again"


class LimitExceededError(CarrelError):
    """A limit is reached: ``limit`` names it, ``limit_value`` is its size, ``use`` how much is in use."""

    status = Status.RESOURCE_EXHAUSTED
    retryable = True
    default_advice = "wait a little and try again, or ask for less"

    @property
    def limit(self) -> str:
        """Name of the limit, as in the settings."""
        return str(self.details.get("limit", ""))

    @property
    def limit_value(self) -> float | None:
        """The limit's size, in its own unit."""
        return self.details.get("limit_value")

    @property
    def use(self) -> float | None:
        """How much of it is in use, or was asked for."""
        return self.details.get("use")


class UnavailableError(CarrelError):
    """It cannot be done now; later it can."""

    status = Status.UNAVAILABLE
    retryable = True
    default_advice = "try again shortly"


class DeadlineError(CarrelError):
    """The call's time is up; whether it had an effect is unknown."""

    status = Status.DEADLINE_EXCEEDED
    retryable = True
    default_advice = "try again, with more time"


class CancelledRunError(CarrelError):
    """The run, or the call, was cancelled."""

    status = Status.CANCELLED
    default_advice = "ask anew if it is still wanted"


class NotImplementedYetError(CarrelError):
    """Part of the contract that this version does not fill."""

    status = Status.UNIMPLEMENTED


class InternalError(CarrelError):
    """A fault of Carrel's own."""

    status = Status.INTERNAL
    default_advice = "report it with the run's id"


class StartupError(CarrelError):
    """A process cannot start: ``phase`` is where it stopped, ``what`` is missing, ``advice`` what to do."""

    status = Status.FAILED_PRECONDITION

    @property
    def phase(self) -> str:
        """INITIALIZATION, CONFIGURATION, INTEGRATION or READINESS."""
        return str(self.details.get("phase", ""))

    @property
    def what(self) -> str:
        """What is missing or wrong."""
        return str(self.details.get("what", ""))


class AgentError(CarrelError):
    """What ends an agent's attempt, other than the request being wrong."""

    default_advice = "try again; if it fails again, give the run's id to the agent's author"


class ModelError(CarrelError):
    """Every way a call of a language model can fail; ``except ModelError`` around ``ctx.llm`` catches them all."""

    default_advice = "try again; if it fails again, tell the operator"


class ToolError(CarrelError):
    """Every way a tool call can fail; ``except ToolError`` around ``ctx.call_tool`` catches them all."""

    default_advice = "try again; if it fails again, give the run's id to the tool's author"


_NEAREST: Final[Mapping[Status, str]] = {
    Status.CANCELLED: "CANCELLED_RUN",
    Status.INVALID_ARGUMENT: "INVALID_REQUEST",
    Status.DEADLINE_EXCEEDED: "DEADLINE",
    Status.NOT_FOUND: "NOT_FOUND",
    Status.ALREADY_EXISTS: "ALREADY_EXISTS",
    Status.PERMISSION_DENIED: "PERMISSION_DENIED",
    Status.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
    Status.FAILED_PRECONDITION: "CONFLICT",
    Status.ABORTED: "CONFLICT",
    Status.OUT_OF_RANGE: "INVALID_REQUEST",
    Status.UNIMPLEMENTED: "NOT_IMPLEMENTED_YET",
    Status.INTERNAL: "INTERNAL",
    Status.UNAVAILABLE: "UNAVAILABLE",
    Status.DATA_LOSS: "INTERNAL",
    Status.UNAUTHENTICATED: "UNAUTHENTICATED",
}


def error_class(code: str, status: Status = Status.UNKNOWN) -> type[CarrelError]:
    """The class that has ``code``; for a code nobody here knows, the nearest class by status."""
    _load_tree()
    known = _BY_CODE.get(code)
    return known if known is not None else _BY_CODE[_NEAREST.get(status, "CARREL")]


def error_codes() -> Mapping[str, type[CarrelError]]:
    """Every known code with its class, an author's own included."""
    _load_tree()
    return dict(_BY_CODE)


def from_dict(data: Mapping[str, Any]) -> CarrelError:
    """Rebuild what ``to_dict`` gave, as the same class, or as the nearest one that keeps the foreign code.

    It never fails on what a peer sent: wrong or missing fields fall back to harmless ones.
    """
    status = Status.__members__.get(str(data.get("status", "")), Status.UNKNOWN)
    code = str(data.get("code") or "")
    details, delay = data.get("details"), data.get("retry_after_s")
    message = str(data.get("message", ""))[:_MAX_TEXT]
    known = error_class(code, status)
    # Past __init__ of the class, which an author may have given another signature.
    error = known.__new__(known, message)
    CarrelError.__init__(error, message)
    error.advice = _text(str(data.get("advice", ""))[:_MAX_TEXT])
    if isinstance(delay, int | float) and not isinstance(delay, bool) and delay >= 0:
        error.retry_after_s = float(delay)
    if isinstance(details, Mapping):
        error.details = {_text(str(name)): _jsonable(value) for name, value in details.items()}
    if code and error.code != code:
        error.code = code
        error.retryable = data.get("retryable") is True
    if status is not Status.UNKNOWN and error.status is not status and "status" in data:
        error.status = status
    return error


def http_status(error: CarrelError) -> int:
    """The HTTP status the gateway answers with: the table above, save for what is too large (413)."""
    return 413 if error.code == "TOO_LARGE" else HTTP_STATUS[error.status]


def _load_tree() -> None:
    import carrel.errors  # noqa: F401  (the tree registers itself; importing it here at the top is a cycle)


def _jsonable(value: object, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _MAX_NESTING:
        if isinstance(value, Mapping):
            return {_text(str(name)): _jsonable(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_jsonable(item, depth + 1) for item in value]
    return _text(str(value)) if depth < _MAX_NESTING else "…"


def _text(value: str) -> str:
    """Text that UTF-8 can carry: what cannot be encoded would lose the whole error on its way."""
    return value.encode("utf-8", "replace").decode()
