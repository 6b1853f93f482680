"""The table of event kinds: how much each matters, how large it may be, what its data holds.

Data of each kind (``?`` may be absent; further fields are allowed everywhere)::

    agent_started    agent_name, description?, stage?, attempt?
    agent_thinking   text, heartbeat? (of a silent agent), shed? (how many were left out), delta? (a piece), message_id?
    tool_executing   tool_name, tool_call_id, arguments?
    tool_completed   tool_name, tool_call_id, status ok|error|timeout|cancelled, duration_ms, result?, error?
                     (both: reported? when the tool is of the agent's own library, and the event the agent's word)
    agent_completed  agent_name, result?, artifact? (reference, when the result is over its bound), duration_ms?
    agent_error      code, message, advice?, retryable?, retry_after_s?, details?, agent_name?, fallback?
    agent_message    message_id, and one of delta (a piece to append) or text (the whole)
    run_accepted     agent_name?, pipeline?, client_ref?, status? (QUEUED when it waits for its turn)
    run_attempt      attempt, agent_name?, stage?, reason?
    run_completed    status SUCCEEDED|FAILED|CANCELLED|TIMED_OUT, result?, error?, artifact?
    input_required   input_id, prompt?, schema?, expires_at?, tool_name? and arguments? (of a call to approve)
    event_rejected   event_type, reason, code?
    log_gap          producer_id?, first?, last?, reason?

Not here: the envelope (ids, number, offset, time), which the proto defines, and sanitizing, which the emitter does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, Final, Literal

from carrel.errors import InvalidEventError, TooLargeError

__all__ = [
    "EVENTS",
    "TERMINAL",
    "Criticality",
    "EventKind",
    "Field",
    "check_event_size",
    "event_kind",
    "validate_event",
]

TERMINAL: Final = "run_completed"

Source = Literal["agent", "run", "emitter", "log"]


class Criticality(enum.StrEnum):
    """What losing the event would mean."""

    MISSION_CRITICAL = "mission_critical"  # never lost, whatever dies
    IMPORTANT = "important"
    INFORMATIONAL = "informational"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a kind's data: its JSON types, whether it must be there, its only values when it has few."""

    types: tuple[type, ...]
    required: bool = False
    choices: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class EventKind:
    """One kind of event.

    ``max_bytes`` bounds the JSON of its data; what is larger becomes an artifact with a reference in its place.
    ``sheddable`` kinds may be left out (and said to be) when a producer is too far ahead of the log.
    ``source`` says who may make it: an agent's attempt, the run's owner, the emitter or the log itself.
    """

    name: str
    criticality: Criticality
    max_bytes: int
    schema: Mapping[str, Field]
    source: Source = "agent"
    sheddable: bool = False
    one_of: tuple[str, ...] = ()


_STR, _INT, _BOOL = (str,), (int,), (bool,)
_NUMBER, _OBJECT, _ARRAY = (int, float), (dict,), (list, tuple)
_ANY = (NoneType, bool, int, float, str, list, tuple, dict)


def _need(*types: type, choices: str = "") -> Field:
    return Field(types, required=True, choices=frozenset(choices.split()) or None)


def _may(*types: type) -> Field:
    return Field((*types, NoneType))


_KIB: Final = 1024
_CRITICAL, _IMPORTANT = Criticality.MISSION_CRITICAL, Criticality.IMPORTANT
_ERROR: Final = {
    "code": _need(*_STR),
    "message": _need(*_STR),
    "advice": _may(*_STR),
    "retryable": _may(*_BOOL),
    "retry_after_s": _may(*_NUMBER),
    "details": _may(*_OBJECT),
    "agent_name": _may(*_STR),
    "fallback": _may(*_STR),
}
_TOOL: Final = {"tool_name": _need(*_STR), "tool_call_id": _need(*_STR)}

_KINDS: Final = (
    EventKind(
        "agent_started",
        _CRITICAL,
        8 * _KIB,
        {"agent_name": _need(*_STR), "description": _may(*_STR), "stage": _may(*_INT), "attempt": _may(*_INT)},
    ),
    EventKind(
        "agent_thinking",
        _IMPORTANT,
        16 * _KIB,
        {"text": _need(*_STR), "heartbeat": _may(*_BOOL), "shed": _may(*_INT)},
        sheddable=True,
    ),
    EventKind("tool_executing", _CRITICAL, 32 * _KIB, {**_TOOL, "arguments": _may(*_OBJECT)}),
    EventKind(
        "tool_completed",
        _CRITICAL,
        32 * _KIB,
        {
            **_TOOL,
            "status": _need(*_STR, choices="ok error timeout cancelled"),
            "duration_ms": _need(*_NUMBER),
            "result": _may(*_ANY),
            "error": _may(*_OBJECT),
        },
    ),
    EventKind(
        "agent_completed",
        _CRITICAL,
        64 * _KIB,
        {
            "agent_name": _need(*_STR),
            "result": _may(*_OBJECT),
            "artifact": _may(*_OBJECT),
            "duration_ms": _may(*_NUMBER),
        },
    ),
    EventKind("agent_error", _CRITICAL, 16 * _KIB, _ERROR),
    EventKind(
        "agent_message",
        _CRITICAL,
        64 * _KIB,
        {"message_id": _need(*_STR), "delta": Field(_STR), "text": Field(_STR)},
        one_of=("delta", "text"),
    ),
    EventKind(
        "run_accepted",
        _CRITICAL,
        16 * _KIB,
        {"agent_name": _may(*_STR), "pipeline": _may(*_ARRAY), "client_ref": _may(*_STR), "status": _may(*_STR)},
        source="run",
    ),
    EventKind(
        "run_attempt",
        _CRITICAL,
        8 * _KIB,
        {"attempt": _need(*_INT), "agent_name": _may(*_STR), "stage": _may(*_INT), "reason": _may(*_STR)},
        source="run",
    ),
    EventKind(
        TERMINAL,
        _CRITICAL,
        64 * _KIB,
        {
            "status": _need(*_STR, choices="SUCCEEDED FAILED CANCELLED TIMED_OUT"),
            "result": _may(*_OBJECT),
            "error": _may(*_OBJECT),
            "artifact": _may(*_OBJECT),
        },
        source="run",
    ),
    EventKind(
        "input_required",
        _CRITICAL,
        32 * _KIB,
        {
            "input_id": _need(*_STR),
            "prompt": _may(*_STR),
            "schema": _may(*_OBJECT),
            "expires_at": _may(*_STR),
            "tool_name": _may(*_STR),
            "arguments": _may(*_OBJECT),
        },
        source="run",
    ),
    EventKind(
        "event_rejected",
        _CRITICAL,
        4 * _KIB,
        {"event_type": _need(*_STR), "reason": _need(*_STR), "code": _may(*_STR)},
        source="emitter",
    ),
    EventKind(
        "log_gap",
        _CRITICAL,
        4 * _KIB,
        {"producer_id": _may(*_STR), "first": _may(*_INT), "last": _may(*_INT), "reason": _may(*_STR)},
        source="log",
    ),
)

EVENTS: Final[Mapping[str, EventKind]] = MappingProxyType({kind.name: kind for kind in _KINDS})

_Rules = tuple[
    tuple[tuple[str, frozenset[type], frozenset[str] | None], ...], dict[str, frozenset[type]], tuple[str, ...]
]


def _compile(kind: EventKind) -> _Rules:
    required = tuple((n, frozenset(f.types), f.choices) for n, f in kind.schema.items() if f.required)
    optional = {n: frozenset(f.types) for n, f in kind.schema.items() if not f.required}
    return required, optional, kind.one_of


# The table again in the shape that the hot path reads: exact classes, so that True is no int.
_RULES: Final = {name: _compile(kind) for name, kind in EVENTS.items()}


def event_kind(name: str) -> EventKind:
    """The kind called ``name``.

    Raises:
        InvalidEventError: There is none.
    """
    kind = EVENTS.get(name)
    if kind is None:
        raise InvalidEventError("unknown event type", advice=f"use one of {', '.join(EVENTS)}")
    return kind


def validate_event(kind: str, data: Mapping[str, Any]) -> None:
    """Check an event's data against its kind, in about a microsecond; its size is ``check_event_size``'s to check.

    Raises:
        InvalidEventError: Unknown kind, a missing field, a field of the wrong type. Values are never quoted.
    """
    rules = _RULES.get(kind)
    if rules is None:
        event_kind(kind)
        return
    if not isinstance(data, dict):
        raise _bad(kind, "data", f"must be an object, not {type(data).__name__}")
    required, optional, one_of = rules
    for name, types, choices in required:
        value = data.get(name)
        if value.__class__ not in types:
            _check_slowly(kind, name, value, types)
        if choices is not None and value not in choices:
            raise _bad(kind, name, f"must be one of {', '.join(sorted(choices))}")
    if len(data) > len(required):
        for name, value in data.items():
            known = optional.get(name)
            if known is not None and value.__class__ not in known:
                _check_slowly(kind, name, value, known)
    if one_of and (one_of[0] in data) == (one_of[1] in data):
        raise _bad(kind, one_of[0], f"exactly one of {' and '.join(one_of)} must be there")


def check_event_size(kind: str, size: int) -> None:
    """Check the size, in bytes of JSON, of an event's data.

    Raises:
        TooLargeError: It is over the kind's bound: store it as an artifact and send the reference.
    """
    bound = event_kind(kind).max_bytes
    if size > bound:
        raise TooLargeError(
            f"the data of {kind} is {size} bytes; at most {bound} are allowed",
            advice="store it as an artifact and send the reference",
            limit=f"{kind}.max_bytes",
            limit_value=bound,
            use=size,
        )


def _check_slowly(kind: str, name: str, value: object, types: frozenset[type]) -> None:
    # Subclasses (a StrEnum, a FrozenDict) are rare: they pay for isinstance, the common exact types do not.
    if value is None and type(None) not in types:
        raise _bad(kind, name, "is required" if EVENTS[kind].schema[name].required else "must not be null")
    if isinstance(value, bool) or not isinstance(value, tuple(types)):
        wanted = "|".join(sorted(_JSON_NAMES[t] for t in types))
        raise _bad(kind, name, f"must be {wanted}, not {_JSON_NAMES.get(type(value), type(value).__name__)}")


def _bad(kind: str, field: str, problem: str) -> InvalidEventError:
    return InvalidEventError(f"{kind}: {field} {problem}", fields={field: problem}, event_type=kind)


_JSON_NAMES: Final[Mapping[type, str]] = {
    NoneType: "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    tuple: "array",
    dict: "object",
}
