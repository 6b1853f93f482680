"""The server's edge: where an exception becomes a gRPC status with details. Once, and nowhere else.

A ``CarrelError`` goes out as it is. Anything else is a fault of ours: it is logged with its traceback under an id, and
the caller gets the id and nothing more.
"""

from __future__ import annotations

from typing import Any, NoReturn

from grpc import aio

from carrel.errors import CarrelError, InternalError, NotImplementedYetError
from carrel.ids import new_id
from carrel.rpc_errors import to_grpc_status
from servicekit.logs import get_logger

__all__ = ["abort_with", "as_carrel_error"]

_log = get_logger("servicekit.rpc")


def as_carrel_error(error: Exception, method: str) -> CarrelError:
    """The error as one of the tree; an unexpected one is logged and hidden behind an id."""
    if isinstance(error, CarrelError):
        return error
    if isinstance(error, NotImplementedError):
        return NotImplementedYetError(f"{method} is not implemented by this version", method=method)
    error_id = new_id("err")
    _log.error("unexpected error in a call", error=error, method=method, error_id=error_id)
    return InternalError(
        f"internal error {error_id}", advice=f"report {error_id}; the service's log has the rest", error_id=error_id
    )


async def abort_with(context: aio.ServicerContext[Any, Any], error: CarrelError) -> NoReturn:
    """End the call with the error's status and details."""
    status = to_grpc_status(error)
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())
