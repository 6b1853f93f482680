"""``UserExecutionContext`` and ``CarrelError`` to and from their protobuf messages.

Imports protobuf, not grpc; errors that travel as a gRPC status are ``carrel.rpc_errors``'s. The one lossy step is told
here: a Struct knows doubles only, so integral numbers up to ±2**53 come back as integers, whatever they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf import struct_pb2

from carrel.context import UserExecutionContext
from carrel.errors import CarrelError, InvalidContextError, Status, from_dict
from carrel.frozen import MAX_EXACT_INT
from carrel.v1 import context_pb2

__all__ = ["context_from_proto", "context_to_proto", "error_from_proto", "error_to_proto"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MAX_RETRY_S: Final = 366 * 86_400.0


def context_to_proto(context: UserExecutionContext) -> context_pb2.UserExecutionContext:
    """The message of a context, ticket included; what is bound to this process stays here."""
    message = context_pb2.UserExecutionContext(
        user_id=context.user_id,
        thread_id=context.thread_id,
        run_id=context.run_id,
        request_id=context.request_id,
        websocket_client_id=context.websocket_client_id or "",
        operation_depth=context.operation_depth,
        parent_request_id=context.parent_request_id or "",
        ticket=context.ticket,
    )
    micros = (context.created_at - _EPOCH) // _MICROSECOND
    message.created_at.seconds, rest = divmod(micros, 1_000_000)
    message.created_at.nanos = rest * 1000
    if context.agent_context:
        _fill(message.agent_context, context.agent_context)
    if context.audit_metadata:
        _fill(message.audit_metadata, context.audit_metadata)
    return message


def context_from_proto(message: context_pb2.UserExecutionContext) -> UserExecutionContext:
    """The context of a message, checked as every context is. A message without ``created_at`` was created now.

    Raises:
        InvalidContextError: A field breaks a rule.
    """
    created = datetime.now(UTC)
    if message.HasField("created_at"):
        stamp = message.created_at
        try:
            created = _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
        except OverflowError:
            problem = "is beyond the years 1 to 9999"
            raise InvalidContextError(f"created_at {problem}", fields={"created_at": problem}) from None
    return UserExecutionContext(
        user_id=message.user_id,
        thread_id=message.thread_id,
        run_id=message.run_id,
        request_id=message.request_id,
        websocket_client_id=message.websocket_client_id or None,
        created_at=created,
        agent_context=_read(message.agent_context) if message.HasField("agent_context") else {},
        audit_metadata=_read(message.audit_metadata) if message.HasField("audit_metadata") else {},
        operation_depth=message.operation_depth,
        parent_request_id=message.parent_request_id or None,
        ticket=message.ticket,
    )


def error_to_proto(error: CarrelError) -> context_pb2.ErrorDetail:
    """An error as data, for results and acknowledgements."""
    detail = context_pb2.ErrorDetail(
        code=error.code,
        status=int(error.status),
        message=error.message,
        advice=error.advice,
        retryable=error.retryable,
    )
    if error.retry_after_s is not None:
        detail.retry_after.FromNanoseconds(round(min(error.retry_after_s, _MAX_RETRY_S) * 1e9))
    if error.details:
        detail.details_json = json.dumps(error.details, separators=(",", ":"), ensure_ascii=False).encode()
    return detail


def error_from_proto(detail: context_pb2.ErrorDetail) -> CarrelError:
    """The error of such data, as the same class; of an unknown code, as the nearest one. Never fails."""
    try:
        details = json.loads(detail.details_json) if detail.details_json else {}
    except (ValueError, RecursionError):
        details = {}
    known = detail.status in Status.__members__.values()
    after = detail.retry_after
    # One division: two roundings would make 1.36 s another number.
    delay = (after.seconds * 10**9 + after.nanos) / 10**9 if detail.HasField("retry_after") else None
    return from_dict(
        {
            "code": detail.code,
            "status": Status(detail.status).name if known else "UNKNOWN",
            "message": detail.message,
            "advice": detail.advice,
            "retryable": detail.retryable,
            "retry_after_s": delay,
            "details": details,
        }
    )


def _fill(struct: struct_pb2.Struct, values: Mapping[str, Any]) -> None:
    fields = struct.fields
    for name, value in values.items():
        _put(fields[name], value)


def _put(target: struct_pb2.Value, value: Any) -> None:
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill(target.struct_value, value)
    else:
        target.list_value.SetInParent()
        for item in value:
            _put(target.list_value.values.add(), item)


def _read(struct: struct_pb2.Struct) -> dict[str, Any]:
    # Protobuf's parser bounds the nesting at 100, and the context refuses a third of that.
    return {name: _get(value) for name, value in struct.fields.items()}


def _get(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= MAX_EXACT_INT else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _read(value.struct_value)
    if kind == "list_value":
        return [_get(item) for item in value.list_value.values]
    return None
