"""What an event may be: a known kind that a producer may write, data within its bound that fits its schema, cleaned.

What must be refused is not dropped: its number stays, and an ``event_rejected`` takes its place, so that no hole opens
in the producer's numbers and the user learns that something was withheld.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Final, Protocol

import orjson

from carrel.errors import CarrelError, InternalError, InvalidEventError, PermissionDeniedError
from carrel.events import EVENTS, Criticality, check_event_size, validate_event
from servicekit.logs import get_logger
from services.emitter.domain.sanitize import Sanitizer

__all__ = ["REJECTED", "EventFields", "Guard", "check_notifiable"]

_log: Final = get_logger("services.emitter")

REJECTED: Final = "event_rejected"
# Written by the run's owner alone, through its outbox.
_OWNERS_PREFIX: Final = "run_"
_MAX_NAME: Final = 128
_MAX_TRACEPARENT: Final = 64
_EVENT_ID: Final = re.compile(r"[!-.0-~]{1,128}")
_KIND_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")

_PRODUCIBLE: Final = {name: kind for name, kind in EVENTS.items() if kind.source in ("agent", "run")}


# The seconds of the years 1 to 9999, which is what a timestamp may say and ISO 8601 can.
_FIRST_S: Final = -62_135_596_800
_LAST_S: Final = 253_402_300_799
_LAST_NS: Final = 999_999_999


class TimestampFields(Protocol):
    """The fields of ``google.protobuf.Timestamp``."""

    seconds: int
    nanos: int


class EventFields(Protocol):
    """The fields of ``carrel.v1.Event`` that are looked at."""

    event_id: str
    number: int
    event_type: str
    agent_name: str
    data: bytes
    traceparent: str

    @property
    def timestamp(self) -> TimestampFields:
        """When it happened, by its producer."""


class Guard:
    """Checks and cleans events."""

    def __init__(self, sanitizer: Sanitizer) -> None:
        self._is_suspect = sanitizer.is_suspect
        self._clean = sanitizer.clean
        self.cleaned = 0

    def admit(self, event: EventFields) -> bool:
        """Check an event and clean its data in place; False when it has been replaced by ``event_rejected``."""
        kind = event.event_type
        data = event.data
        try:
            if _EVENT_ID.fullmatch(event.event_id) is None:
                raise InvalidEventError("event_id is not 1 to 128 printable ASCII characters", field="event_id")
            if len(event.agent_name) > _MAX_NAME or len(event.traceparent) > _MAX_TRACEPARENT:
                raise InvalidEventError("agent_name or traceparent is too long", field="agent_name")
            timestamp = event.timestamp
            if not (_FIRST_S <= timestamp.seconds <= _LAST_S and 0 <= timestamp.nanos <= _LAST_NS):
                raise InvalidEventError("timestamp is not within the years 1 to 9999", field="timestamp")
            admitted = self.admit_data(kind, data)
        except CarrelError as error:
            known = EVENTS.get(kind)
            if known is not None and known.criticality is Criticality.MISSION_CRITICAL:
                _log.warning("a mission-critical event was rejected", event_type=kind, code=error.code)
            _replace(event, error)
            return False
        except Exception as error:  # noqa: BLE001 -- an event that trips us up would come again for ever
            _log.error("an event could not be judged", error=error, event_type=kind)
            _replace(event, InternalError("the event could not be judged"))
            return False
        if admitted is not data:
            event.data = admitted
        return True

    def admit_data(self, event_type: str, data: bytes) -> bytes:
        """The data, cleaned; the same object when nothing was to be removed.

        Raises:
            InvalidEventError: A kind that is unknown or not a producer's to write, no JSON object, or a wrong field.
            TooLargeError: Over its kind's bound.
        """
        kind = _PRODUCIBLE.get(event_type)
        if kind is None:
            raise _unknown(event_type)
        if len(data) > kind.max_bytes:
            check_event_size(event_type, len(data))
        try:
            value: Any = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise InvalidEventError(f"the data of {event_type} is not JSON", event_type=event_type) from None
        validate_event(event_type, value)
        try:
            if not self._is_suspect(data, value):
                return data
            cleaned = self._clean(data, value)
        except orjson.JSONEncodeError:
            # It reads a thousand levels and writes a quarter of that.
            raise InvalidEventError(
                f"the data of {event_type} nests too deep", advice="send flatter data", event_type=event_type
            ) from None
        if cleaned is not data:
            self.cleaned += 1
        return cleaned


def check_notifiable(event_type: str) -> None:
    """Raises:
    PermissionDeniedError: The kind is one that only the run's owner, the emitter or the log writes.
    """
    kind = EVENTS.get(event_type)
    if kind is not None and (kind.source != "agent" or event_type.startswith(_OWNERS_PREFIX)):
        raise PermissionDeniedError(
            f"{event_type} is written by the run's owner alone",
            advice="notify of one of the agents' kinds",
            event_type=event_type,
        )


def _unknown(event_type: str) -> InvalidEventError:
    if event_type in EVENTS:
        return InvalidEventError(f"{event_type} is not written by producers", event_type=event_type)
    return InvalidEventError("unknown event type", advice=f"use one of {', '.join(_PRODUCIBLE)}")


def _replace(event: EventFields, error: CarrelError) -> None:
    kind = event.event_type if _KIND_NAME.fullmatch(event.event_type) else "unknown"
    if _EVENT_ID.fullmatch(event.event_id) is None:
        # Made from what it replaces, so that a resend has the same one.
        digest = hashlib.blake2s(event.event_id.encode("utf-8", "replace"), digest_size=8).hexdigest()
        event.event_id = f"rejected-{event.number}-{digest}"
    event.agent_name = event.agent_name[:_MAX_NAME]
    event.traceparent = ""
    timestamp = event.timestamp
    if not (_FIRST_S <= timestamp.seconds <= _LAST_S and 0 <= timestamp.nanos <= _LAST_NS):
        timestamp.seconds, timestamp.nanos = divmod(time.time_ns(), _LAST_NS + 1)
    event.data = orjson.dumps({"event_type": kind, "reason": error.message[:500], "code": error.code})
    event.event_type = REJECTED
