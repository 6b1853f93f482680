"""The one table between the tree of errors and gRPC: ``google.rpc.Status`` with typed details, both ways.

Nothing else translates errors to or from gRPC. HTTP is ``carrel.errors.http_status``; errors as data in messages are
``carrel.wire``'s. What travels:

    Status.code, .message     the class's status; the message
    ErrorInfo                 reason = code, domain = DOMAIN, metadata = advice, retryable and the details
    RetryInfo                 retry_after_s
    QuotaFailure              a LimitExceededError's limit
    BadRequest                an InvalidRequestError's fields
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status  # type: ignore[import-untyped]  # ships no types

from carrel.errors import CarrelError, InternalError, InvalidRequestError, LimitExceededError, Status, from_dict

__all__ = ["DOMAIN", "from_rpc_error", "from_status", "grpc_code", "to_grpc_status", "to_status"]

DOMAIN: Final = "carrel.v1"
_DETAILS_KEY: Final = "grpc-status-details-bin"
# gRPC refuses metadata above 8 KiB by default, and base64 adds a third: a longer status would replace the error.
_MAX_STATUS_BYTES: Final = 4096
_MAX_MESSAGE: Final = 1024
_MAX_RETRY_S: Final = 366 * 86_400.0
_RESERVED: Final = frozenset({"advice", "retryable", "details_json"})
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_M = TypeVar("_M", bound=Message)


def grpc_code(status: Status) -> grpc.StatusCode:
    """The grpc library's own name for a status."""
    return _CODES[int(status)]


def to_status(error: CarrelError) -> status_pb2.Status:
    """An error as ``google.rpc.Status``; details that would make it too long for metadata are left out."""
    status = _build(error, error.details)
    if status.ByteSize() > _MAX_STATUS_BYTES:
        status = _build(error, {name: v for name, v in error.details.items() if len(str(v)) <= 100})
    if status.ByteSize() > _MAX_STATUS_BYTES:
        status = _build(error, {})
    return status


def to_grpc_status(error: CarrelError) -> grpc.Status:
    """An error as what a handler ends a call with: ``code``, ``details`` and ``trailing_metadata`` for ``abort``."""
    status: grpc.Status = rpc_status.to_status(to_status(error))
    return status


def from_status(status: status_pb2.Status) -> CarrelError:
    """The error of a ``google.rpc.Status``, the same class; of a foreign one, the nearest by status. Never fails."""
    data: dict[str, Any] = {"status": _status(status.code).name, "message": status.message}
    info = _find(status, error_details_pb2.ErrorInfo)
    details: dict[str, Any] = {}
    if info is not None and info.domain == DOMAIN:
        metadata = dict(info.metadata)
        data |= {
            "code": info.reason,
            "advice": metadata.pop("advice", ""),
            "retryable": metadata.pop("retryable", "") == "true",
        }
        details = {**_loads(metadata.pop("details_json", "")), **metadata}
    bad = _find(status, error_details_pb2.BadRequest)
    if bad is not None and "fields" not in details:
        details["fields"] = {violation.field: violation.description for violation in bad.field_violations}
    retry = _find(status, error_details_pb2.RetryInfo)
    if retry is not None:
        data["retry_after_s"] = (retry.retry_delay.seconds * 10**9 + retry.retry_delay.nanos) / 10**9
    return from_dict({**data, "details": details})


def from_rpc_error(error: grpc.RpcError) -> CarrelError:
    """The error behind a failed call; of a plain gRPC failure, the nearest class by its code.

    A plain failure's text is left out, since it names hosts and ports; ``raise … from error`` keeps it for logs.
    """
    code = getattr(error, "code", lambda: None)()
    if not isinstance(code, grpc.StatusCode):
        return InternalError("the call failed without a status")
    for key, value in _trailing_metadata(error):
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            # A proxy may have replaced the code: the outer one is what really happened.
            if status.code == code.value[0]:
                return from_status(status)
            break
    return from_dict({"status": code.name, "message": f"the call failed with {code.name}"})


def _build(error: CarrelError, details: dict[str, Any]) -> status_pb2.Status:
    status = status_pb2.Status(code=int(error.status), message=error.message[:_MAX_MESSAGE])
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)
    info.metadata["retryable"] = "true" if error.retryable else "false"
    if error.advice:
        info.metadata["advice"] = error.advice[:_MAX_MESSAGE]
    fields = _violations(error, details)
    rest = {name: value for name, value in details.items() if not (fields is not None and name == "fields")}
    plain = {name: v for name, v in rest.items() if isinstance(v, str) and name and name not in _RESERVED}
    info.metadata.update(plain)
    others = {name: value for name, value in rest.items() if name not in plain}
    if others:
        info.metadata["details_json"] = json.dumps(others, separators=(",", ":"))
    _add(status, info)
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        retry = error_details_pb2.RetryInfo()
        seconds = min(max(error.retry_after_s, 0.0), _MAX_RETRY_S)
        retry.retry_delay.FromNanoseconds(round(seconds * 1e9))
        _add(status, retry)
    if fields is not None:
        _add(status, fields)
    if isinstance(error, LimitExceededError):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=error.limit, description=error.message[:_MAX_MESSAGE])
        _add(status, quota)
    return status


def _violations(error: CarrelError, details: dict[str, Any]) -> error_details_pb2.BadRequest | None:
    fields = details.get("fields")
    if not isinstance(error, InvalidRequestError) or not isinstance(fields, dict) or not fields:
        return None
    if not all(isinstance(problem, str) for problem in fields.values()):
        return None
    bad = error_details_pb2.BadRequest()
    for name, problem in fields.items():
        bad.field_violations.add(field=name, description=problem)
    return bad


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _find(status: status_pb2.Status, kind: type[_M]) -> _M | None:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            try:
                packed.Unpack(detail)
            except DecodeError:
                return None
            return detail
    return None


def _loads(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _status(number: int) -> Status:
    return Status(number) if number in _CODES else Status.UNKNOWN


def _trailing_metadata(error: grpc.RpcError) -> Iterable[tuple[str, Any]]:
    read = getattr(error, "trailing_metadata", None)
    return (read() or ()) if callable(read) else ()
