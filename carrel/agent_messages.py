"""The messages between an agent's worker and its host: all that ever crosses, whatever carries them.

Up (worker to host) and down (host to worker), as frozen dataclasses of JSON values. A message with a ``call_id``
asks and is answered once, by the type named beside it or by ``Refused``. ``handle`` names a context of the host's
table: ``ROOT`` (0) for the run's own, others as ``ChildOpened`` gave them.

    up    EmitEvent → EventAccepted · CallTool → ToolReply · OpenChild → ChildOpened
          PutArtifact (the last piece) → ArtifactStored
          CancelCall · CloseChild · ToolBodyResult · Heartbeat · then exactly one of Result, Failure
    down  Start first · the answers above · RunToolBody → ToolBodyResult · CancelToolBody · Cancel

Not a transport: ``encode`` and ``decode`` give and take bytes, pipes and queues carry them. ``decode`` trusts nothing.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from carrel.errors import ProtocolError, TooLargeError
from carrel.frozen import JSON

__all__ = [
    "CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "ROOT",
    "ArtifactStored",
    "CallTool",
    "Cancel",
    "CancelCall",
    "CancelToolBody",
    "ChildOpened",
    "CloseChild",
    "DownMessage",
    "EmitEvent",
    "EventAccepted",
    "Failure",
    "Heartbeat",
    "OpenChild",
    "PutArtifact",
    "Refused",
    "Result",
    "RunToolBody",
    "Start",
    "ToolBodyResult",
    "ToolReply",
    "UpMessage",
    "decode",
    "encode",
    "from_dict",
    "to_dict",
]

ROOT: Final = 0
CHUNK_BYTES: Final = 256 * 1024
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

_Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """An event of the context ``handle``; accepted once the host has a place for it."""

    call_id: int
    handle: int
    event_type: str
    data: _Object


@dataclass(frozen=True, slots=True)
class CallTool:
    """Call a tool in the context ``handle``."""

    call_id: int
    handle: int
    name: str
    arguments: _Object


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Nobody waits for this call's answer any more."""

    call_id: int


@dataclass(frozen=True, slots=True)
class OpenChild:
    """Open a child context of ``handle`` that may use ``tools`` (None: all of its parent's)."""

    call_id: int
    handle: int
    operation_name: str
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CloseChild:
    """The child context is done with."""

    handle: int


@dataclass(frozen=True, slots=True)
class PutArtifact:
    """One piece of an artifact; all pieces have one ``call_id``, arrive in order, and the last one says so."""

    call_id: int
    handle: int
    name: str
    media_type: str
    total_size: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class ToolBodyResult:
    """How a tool's body ended: its result, or an error as ``CarrelError.to_dict`` gives it."""

    tool_call_id: str
    result: JSON = None
    error: _Object | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's loop is alive; says nothing about the agent's activity."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Result:
    """The agent has returned. ``plan``: the result is ``Plan.to_dict()``."""

    result: _Object
    plan: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """The agent has raised, or was cancelled; an error as ``CarrelError.to_dict`` gives it."""

    error: _Object


@dataclass(frozen=True, slots=True)
class Start:
    """What to run: the context (without ticket), the agent's name, ``Request.to_dict()`` and the tools it may use."""

    context: _Object
    agent_name: str
    request: _Object
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventAccepted:
    """The host has taken the event and will deliver it."""

    call_id: int


@dataclass(frozen=True, slots=True)
class ToolReply:
    """The tool's result."""

    call_id: int
    result: JSON = None


@dataclass(frozen=True, slots=True)
class ChildOpened:
    """The child context, its handle, and the tools it may use."""

    call_id: int
    handle: int
    context: _Object
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactStored:
    """The stored artifact's reference: ``ArtifactRef.to_dict()``."""

    call_id: int
    artifact: _Object


@dataclass(frozen=True, slots=True)
class Refused:
    """The call failed; an error as ``CarrelError.to_dict`` gives it."""

    call_id: int
    error: _Object


@dataclass(frozen=True, slots=True)
class RunToolBody:
    """Run a tool's body; name, arguments and permission have been checked. ``handle``, ``context`` and ``tools`` are
    those of the context that it runs in, as in ``ChildOpened``."""

    tool_call_id: str
    name: str
    arguments: _Object
    handle: int
    context: _Object
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelToolBody:
    """End a tool's body: out of time, or nobody waits for it."""

    tool_call_id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the attempt: the agent is cancelled now and killed when it does not end by itself."""

    reason: str = field(default="")


UpMessage = (
    EmitEvent
    | CallTool
    | CancelCall
    | OpenChild
    | CloseChild
    | PutArtifact
    | ToolBodyResult
    | Heartbeat
    | Result
    | Failure
)
DownMessage = (
    Start | EventAccepted | ToolReply | ChildOpened | ArtifactStored | Refused | RunToolBody | CancelToolBody | Cancel
)
_Message = UpMessage | DownMessage


def to_dict(message: _Message) -> dict[str, Any]:
    """The message as JSON values, ``type`` first; bytes are base64."""
    name, fields = _BY_CLASS[type(message)]
    data: dict[str, Any] = {"type": name}
    for attribute in fields:
        value = getattr(message, attribute)
        data[attribute] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return data


def from_dict(data: object) -> _Message:
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
    message: _Message = cls(**values)
    return message


def encode(message: _Message) -> bytes:
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


def decode(data: bytes) -> _Message:
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
    str: _exactly(str),
    bool: _exactly(bool),
    bytes: _bytes,
    _Object: _exactly(dict),
    _Object | None: _optional(_exactly(dict)),
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
    required = frozenset(item.name for item in fields if item.default is dataclasses.MISSING)
    _BY_NAME[name] = (cls, {item.name: _CHECKS[hints[item.name]] for item in fields}, required)


for _cls in typing.get_args(_Message):
    _register(_cls)
