"""From a text message of the gateway to frames: JSON objects, batches undone, compressed ones too.

What the frames mean to a reader is ``reading.py``'s. Whatever is malformed is a ``ProtocolError`` that says what.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from carrel.errors import ProtocolError

__all__ = ["MAX_BATCH_BYTES", "bodies_of", "parse_object"]

# What a compressed batch may grow to: beyond any that the protocol allows, and far below what hurts.
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
_GZIP: Final = 31


def parse_object(text: str | bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ProtocolError: It is none.
    """
    try:
        body = orjson.loads(text)
    except ValueError:
        raise ProtocolError("the gateway sent a message that is not JSON") from None
    if not isinstance(body, dict):
        raise ProtocolError("the gateway sent JSON that is not an object")
    return body


def bodies_of(frame: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The events of an ``event_batch``, or the one event that the frame is.

    Raises:
        ProtocolError: A batch is malformed, or does not hold what it says.
    """
    if frame.get("event_type") != "event_batch":
        return (frame,)
    events = _inflated(frame) if frame.get("compressed") is True else frame.get("events")
    if not isinstance(events, list) or not all(isinstance(body, Mapping) for body in events):
        raise ProtocolError("the gateway sent an event_batch without its events")
    size = frame.get("batch_size")
    if size is not None and size != len(events):
        raise ProtocolError(f"the gateway sent an event_batch of {len(events)} events that says {size}")
    return events


def _inflated(frame: Mapping[str, Any]) -> Any:
    try:
        packed = bytes.fromhex(frame["events_compressed"])
        inflater = zlib.decompressobj(_GZIP)
        data = inflater.decompress(packed, MAX_BATCH_BYTES)
    except (KeyError, TypeError, ValueError, zlib.error):
        raise ProtocolError("the gateway sent a compressed event_batch that cannot be unpacked") from None
    if not inflater.eof:
        raise ProtocolError("the gateway sent a compressed event_batch that is cut off or far too large")
    said = frame.get("original_size")
    if said is not None and said != len(data):
        raise ProtocolError(f"the gateway sent a compressed event_batch of {len(data)} bytes that says {said}")
    try:
        return orjson.loads(data)
    except ValueError:
        raise ProtocolError("the gateway sent a compressed event_batch that holds no JSON") from None
