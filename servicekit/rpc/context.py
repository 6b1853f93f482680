"""What the call being served knows about itself: its verified caller and the time that it has left.

Set by the server's interceptor and read anywhere below it, without passing arguments through. Not for values of a run.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from carrel.errors import UnauthenticatedError
from servicekit.identity.principals import Principal
from servicekit.telemetry.tracing import leave_span

__all__ = ["current_principal", "enter_call", "leave_call", "remaining_deadline_s"]

_principal: ContextVar[Principal | None] = ContextVar("servicekit_principal", default=None)
_deadline: ContextVar[float | None] = ContextVar("servicekit_deadline", default=None)


def current_principal() -> Principal:
    """The verified caller of the call being served.

    Raises:
        UnauthenticatedError: There is none: outside a call, or on a stream whose items carry a context each.
    """
    principal = _principal.get()
    if principal is None:
        raise UnauthenticatedError("no caller has been verified for this call")
    return principal


def remaining_deadline_s() -> float | None:
    """Seconds that the call being served has left (0 when none), or None when it has no deadline."""
    ends = _deadline.get()
    return None if ends is None else max(0.0, ends - time.monotonic())


def enter_call(principal: Principal | None, remaining_s: float | None) -> None:
    """Bind the call's caller and deadline to this task. For interceptors and tests.

    Nothing is to be undone: grpc.aio serves each call in a task, and so in a context, of its own.
    """
    _principal.set(principal)
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def leave_call() -> None:
    """Forget the call and its span, for work that goes on after it (``TaskOwner`` does this for its tasks)."""
    leave_span()
    _principal.set(None)
    _deadline.set(None)
