"""Messages between a worker and its host as bytes and back. ``decode`` trusts nothing: a worker may send anything."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from carrel.agent_messages import MAX_MESSAGE_BYTES, Message, Object
from carrel.errors import ProtocolError, TooLargeError

__all__ = ["decode", "encode", "from_dict", "to_dict"]


def to_dict(message: Message) -> dict[str, Any]:
    """The message as JSON values, ``type`` first; bytes are base64."""
    name, fields = _BY_CLASS[type(message)]
    data: dict[str, Any] = {"type": name}
    for attribute in fields:
        value = getattr(message, attribute)
        data[attribute] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return data


def from_dict(data: object) -> Message:
    """What ``to_dict`` gave, checked field by field.

    Raises:
        ProtocolError: It is no message; names the field, never the value.
    """
    if not isinstance(data, dict):
        raise ProtocolError("a message is not a JSON object")
    kind = data.pop("type", None)
    shape = _BY_NAME.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise ProtocolError("a message is of no known type")
    cls, checks, required = shape
    values: dict[str, Any] = {}
    for name, value in data.items():
        check = checks.get(name)
        if check is None:
            raise ProtocolError(f"{kind}: a field that the message does not have")
        try:
            values[name] = check(value)
        except (TypeError, ValueError):
            raise ProtocolError(f"{kind}: {name} is of the wrong type", field=name) from None
    if not required <= values.keys():
        raise ProtocolError(f"{kind}: {min(required - values.keys())} is missing")
    message: Message = cls(**values)
    return message


def encode(message: Message) -> bytes:
    """The message as bytes.

    Raises:
        TooLargeError: It is over ``MAX_MESSAGE_BYTES``.
        ProtocolError: It holds something that is no JSON value.
    """
    try:
        data = orjson.dumps(to_dict(message))
    except TypeError as error:
        raise ProtocolError(f"{type(message).__name__} holds something that is no JSON value") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"{type(message).__name__} is {len(data)} bytes; at most {MAX_MESSAGE_BYTES} can be passed on",
            advice="store large data as an artifact",
            limit="message_bytes",
            limit_value=MAX_MESSAGE_BYTES,
            use=len(data),
        )
    return data


def decode(data: bytes) -> Message:
    """What ``encode`` gave.

    Raises:
        ProtocolError: It is no message.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError("a message is over the bound")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ProtocolError("a message is not JSON") from None
    return from_dict(value)


_Check = Callable[[Any], Any]


def _exactly(*types: type) -> _Check:
    def check(value: Any) -> Any:
        if type(value) not in types:
            raise TypeError
        return value

    return check


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise TypeError
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
        raise TypeError
    return tuple(value)


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise TypeError from error


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


_CHECKS: Final[Mapping[Any, _Check]] = {
    int: _natural,
    int | None: _optional(_natural),
    float | None: _optional(_seconds),
    str: _exactly(str),
    bool: _exactly(bool),
    bytes: _bytes,
    Object: _exactly(dict),
    Object | None: _optional(_exactly(dict)),
    tuple[str, ...]: _names,
    tuple[str, ...] | None: _optional(_names),
    Any: lambda value: value,
}

_BY_CLASS: Final[dict[type, tuple[str, tuple[str, ...]]]] = {}
_BY_NAME: Final[dict[str, tuple[type, dict[str, _Check], frozenset[str]]]] = {}


def _register(cls: type) -> None:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    _BY_CLASS[cls] = (name, tuple(item.name for item in fields))
    required = frozenset(
        item.name
        for item in fields
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    )
    _BY_NAME[name] = (cls, {item.name: _CHECKS[hints[item.name]] for item in fields}, required)


for _cls in typing.get_args(Message):
    _register(_cls)
