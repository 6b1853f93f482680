"""Refusals as errors and errors as refusals: the one place where both hops translate between them.

Not the table of gRPC statuses, which is ``carrel.rpc_errors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from carrel.errors import (
    CarrelError,
    EventGapError,
    IdentityMismatchError,
    InvalidRequestError,
    PermissionDeniedError,
    QueueFullError,
    SealedLogError,
    StaleFenceError,
    TicketError,
    TicketExpiredError,
    UnauthenticatedError,
    UnavailableError,
)
from carrel.v1.events_pb2 import Refusal, RefusalReason
from carrel.wire import error_from_proto, error_to_proto

__all__ = ["reason_of", "refusal_error", "refusal_of", "retry_after_s"]

_Reason = RefusalReason


_CLASSES: Final[Mapping[int, type[CarrelError]]] = {
    _Reason.REFUSAL_REASON_GAP: EventGapError,
    _Reason.REFUSAL_REASON_STALE_FENCE: StaleFenceError,
    _Reason.REFUSAL_REASON_SEALED: SealedLogError,
    _Reason.REFUSAL_REASON_TICKET_EXPIRED: TicketExpiredError,
    _Reason.REFUSAL_REASON_UNAUTHENTICATED: TicketError,
    _Reason.REFUSAL_REASON_PERMISSION_DENIED: IdentityMismatchError,
    _Reason.REFUSAL_REASON_OVERLOADED: QueueFullError,
    _Reason.REFUSAL_REASON_INVALID: InvalidRequestError,
}

# From the particular to the general.
_REASONS: Final[tuple[tuple[type[CarrelError], RefusalReason.ValueType], ...]] = (
    (EventGapError, _Reason.REFUSAL_REASON_GAP),
    (StaleFenceError, _Reason.REFUSAL_REASON_STALE_FENCE),
    (SealedLogError, _Reason.REFUSAL_REASON_SEALED),
    (TicketExpiredError, _Reason.REFUSAL_REASON_TICKET_EXPIRED),
    (UnauthenticatedError, _Reason.REFUSAL_REASON_UNAUTHENTICATED),
    (PermissionDeniedError, _Reason.REFUSAL_REASON_PERMISSION_DENIED),
    (QueueFullError, _Reason.REFUSAL_REASON_OVERLOADED),
    (UnavailableError, _Reason.REFUSAL_REASON_OVERLOADED),
    (InvalidRequestError, _Reason.REFUSAL_REASON_INVALID),
)


def reason_of(error: CarrelError) -> RefusalReason.ValueType:
    """What a producer has to do about ``error``; INVALID when nothing would help."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return _Reason.REFUSAL_REASON_INVALID


def refusal_of(error: CarrelError, last_number: int) -> Refusal:
    """The refusal that carries ``error``; the producer goes on after ``last_number``, where it may go on."""
    refusal = Refusal(reason=reason_of(error), last_number=last_number, error=error_to_proto(error))
    if error.retry_after_s is not None:
        refusal.retry_after.FromNanoseconds(int(error.retry_after_s * 1e9))
    return refusal


def refusal_error(refusal: Refusal) -> CarrelError:
    """The error of a refusal; one made from its reason alone when it carries none."""
    if refusal.HasField("error") and refusal.error.code:
        return error_from_proto(refusal.error)
    kind = _CLASSES.get(refusal.reason, UnavailableError)
    return kind(f"events were refused: {_Reason.Name(refusal.reason)}", last_number=refusal.last_number)


def retry_after_s(refusal: Refusal) -> float:
    """Seconds to wait before sending again; 0.0 when the refusal does not say."""
    return refusal.retry_after.seconds + refusal.retry_after.nanos / 1e9 if refusal.HasField("retry_after") else 0.0
