"""Holds messages to the rules written in the .proto files (protovalidate) and reports every broken one by field.

Rules between messages and anything that needs state belong to the services. Not used on the event path (Emit, Publish).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from carrel.errors import InvalidRequestError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from protovalidate import Validator

__all__ = ["validate_message", "warm"]

_MAX_FIELDS: Final = 20


@cache
def _validator() -> Validator:
    # 55 ms to import, so not before the first server is built.
    import protovalidate

    return protovalidate.Validator()


def validate_message(message: Message) -> None:
    """Raises:
    InvalidRequestError: One or more fields break their rules; ``details["fields"]`` names them.
    """
    violations = _validator().collect_violations(message)
    if violations:
        raise _refusal(violations)


def warm(messages: list[type[Message]]) -> None:
    """Compile the rules of these messages now, instead of in a user's first call."""
    for kind in messages:
        _validator().collect_violations(kind())


def _refusal(violations: list[Any]) -> InvalidRequestError:
    fields: dict[str, str] = {}
    for violation in violations[:_MAX_FIELDS]:
        proto = violation.proto
        name = ".".join(_element(element) for element in proto.field.elements) if proto.field else ""
        fields.setdefault(name or "request", proto.message or proto.rule_id or "is not valid")
    listed = "; ".join(f"{name}: {problem}" for name, problem in fields.items())
    return InvalidRequestError(
        f"the request breaks its rules: {listed}", advice="correct the fields named and send it again", fields=fields
    )


def _element(element: Any) -> str:
    name: str = element.field_name
    subscript = getattr(element, "subscript", None)
    return name if subscript is None else f"{name}[{getattr(subscript, 'value', subscript)}]"
