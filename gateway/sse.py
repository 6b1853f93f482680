"""Server-sent events as text: one block for each thing that a reader is told, and positions as ids.

An event's ``data`` is the JSON object that sockets get, its ``id`` the position after it: what a browser's
``EventSource`` sends back as ``Last-Event-ID``. Not here: when what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from carrel.errors import InvalidRequestError
from gateway.encoding import Frame
from gateway.jitter import retry_ms
from gateway.ring import Place
from gateway.sockets import Ending

__all__ = [
    "block",
    "entry_block",
    "first_words",
    "heartbeat",
    "last_words",
    "parse_position",
    "position_id",
    "retry_after_ms",
]

_FORM: Final = "epoch:offset:event_id"
# Everything that is kept: the id after which nothing has been seen, or nothing that could be compared.
_FROM_OLDEST: Final = ":0:"
_OFFSET: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_ID: Final = re.compile(r"[!-.0-~]{0,128}")
# On top of what a socket's client waits: an EventSource waits the same time each time, however often it fails.
_LEAST_RETRY_MS: Final = 1_000
_FIRST_RETRY_MS: Final = 2_000
_EPOCH: Final = re.compile(r"[!-9;-~]{0,64}")


def position_id(place: Place) -> str:
    """A place as an id. One whose entry is not known can't be compared later: then that of everything that is kept."""
    if place.event_id or (place.epoch and not place.offset):
        return f"{place.epoch}:{place.offset}:{place.event_id}"
    return _FROM_OLDEST


def parse_position(text: str, name: str) -> Place:
    """An id that a client sends back.

    Args:
        text: What it sent.
        name: The header or parameter, for the message.

    Raises:
        InvalidRequestError: It is none.
    """
    # An event_id may contain colons, the others don't.
    epoch, colon, rest = text.partition(":")
    offset, more, event_id = rest.partition(":")
    wellformed = colon and more and _EPOCH.fullmatch(epoch) and _OFFSET.fullmatch(offset) and _ID.fullmatch(event_id)
    if not wellformed or (offset != "0" and not (epoch and event_id)):
        raise InvalidRequestError(
            f"{name} is not of the form {_FORM}",
            advice=f"send the id of the last event as it came, or {_FROM_OLDEST} for everything that is kept",
            fields={name: f"must be {_FORM}"},
        )
    return Place(epoch, int(offset), event_id)


def entry_block(frame: Frame, epoch: str) -> bytes:
    """A log entry."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        position_id(Place(epoch, frame.offset, frame.event_id)).encode(),
        frame.event_type.encode(),
        frame.wire[frame.head :],
    )


def block(kind: str, fields: Mapping[str, Any], place: Place | None = None, wait_ms: int | None = None) -> bytes:
    """A control frame: its type as the event's name, its fields as the data; with a position where it has one."""
    body = {name: value for name, value in fields.items() if value is not None}
    first = b"id: %b\n" % position_id(place).encode() if place is not None else b""
    if wait_ms is not None:
        first += b"retry: %d\n" % wait_ms
    return b"%bevent: %b\ndata: %b\n\n" % (first, kind.encode(), orjson.dumps(body))


def heartbeat(place: Place) -> bytes:
    """A sign of life. Its id moves the reader's position past what a filter has left out; no event is dispatched."""
    return b": ping\nid: %b\n\n" % position_id(place).encode()


def first_words() -> bytes:
    """What opens a stream: how long an ``EventSource`` is to wait before it comes back, not the same for everybody."""
    return b"retry: %d\n\n" % (_LEAST_RETRY_MS + retry_ms(_FIRST_RETRY_MS))


def retry_after_ms(ending: Ending) -> int | None:
    """How long to wait before coming back; None where that helps nobody."""
    return _LEAST_RETRY_MS + ending.retry_ms if ending.code.reconnect else None


def last_words(ending: Ending) -> bytes:
    """``bye``, and why. The error is a part of it: an event of that name would be taken for a failed connection."""
    code = ending.code
    wait_ms = retry_after_ms(ending)
    body = {
        "code": int(code),
        "reason": code.name.lower(),
        "reconnect": code.reconnect,
        "retry_ms": wait_ms,
        "error": ending.error.to_dict() if ending.error else None,
    }
    return block("bye", body, wait_ms=wait_ms)
