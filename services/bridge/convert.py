"""Messages of the contract to the bridge's models and back. No rule is decided here but what a message may hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import orjson
from google.protobuf.message import DecodeError

from carrel.errors import (
    CarrelError,
    EventGapError,
    InternalError,
    InvalidRequestError,
    PermissionDeniedError,
    SealedLogError,
    StaleFenceError,
    StoreUnavailableError,
    TooLargeError,
)
from carrel.events import EVENTS, TERMINAL, validate_event
from carrel.ids import MAX_REQUEST_ID_LENGTH, new_id
from carrel.v1 import bridge_pb2, events_pb2
from carrel.wire import error_to_proto
from servicekit.delivery.refusals import refusal_of
from servicekit.identity.principals import RunPrincipal
from servicekit.logs import get_logger, hash_user
from services.bridge.domain.bridge import Bridge
from services.bridge.models import (
    Append,
    AppendResult,
    Bye,
    Entries,
    Entry,
    GatewayItem,
    Page,
    ReadItem,
    Refusal,
    RefusalReason,
    Refused,
    Reset,
    ResetReason,
    ResumePoint,
    RunInfo,
    StoredEvent,
    Subscribed,
)

__all__ = [
    "ack_of",
    "append_of",
    "attach_response",
    "entry_filter",
    "read_response",
    "refused_ack",
    "resume_of",
    "run_response",
    "state_response",
]

MAX_EVENTS: Final = 100
MAX_DATA: Final = 262_144
_MAX_INT: Final = (1 << 63) - 1
_MAX_NUMBER: Final = (1 << 53) - 1  # what every store and JSON hold exactly
_PRODUCER_ID: Final = re.compile(r"[!-.0-~]{1,200}")
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_NAME: Final = 128
_MAX_TRACEPARENT: Final = 64
# The seconds of the years 1 to 9999: what a reader can make a date of.
_FIRST_S: Final = -62_135_596_800
_LAST_S: Final = 253_402_300_799
_FAILED_AGAIN_S: Final = 1.0
# Run tickets of this issuer are for runs that were admitted. Others are what a user can get: they notify, no more.
_OWNER: Final = "execution"
_NOTIFY: Final = "notify:"
_log = get_logger("services.bridge")
_LOGS_OWN: Final = frozenset(name for name, kind in EVENTS.items() if kind.source == "log")

_RESETS: Final = {
    ResetReason.EPOCH_CHANGED: events_pb2.RESET_REASON_EPOCH_CHANGED,
    ResetReason.TRIMMED: events_pb2.RESET_REASON_TRIMMED,
    ResetReason.BEYOND_TOP: events_pb2.RESET_REASON_BEYOND_TOP,
    ResetReason.EVENT_MISMATCH: events_pb2.RESET_REASON_EVENT_MISMATCH,
}


def append_of(item: events_pb2.ProducerEvents, principal: RunPrincipal) -> Append:
    """An item under its verified principal, whose ids are the ones that count.

    Raises:
        InvalidRequestError: The item is malformed.
        PermissionDeniedError: The ticket is not of the run's owner, and this is more than a notification.
    """
    producer_id, fence, events = item.producer_id, item.fence, item.events
    notified = principal.issuer != _OWNER
    if notified:
        _check_notification(item)
    if not _PRODUCER_ID.fullmatch(producer_id):
        raise InvalidRequestError("producer_id must be 1 to 200 printable ASCII characters without '/' and space")
    if not 0 < len(events) <= MAX_EVENTS:
        raise InvalidRequestError(f"an item must hold 1 to {MAX_EVENTS} events")
    first = number = events[0].number
    if not 1 <= first <= _MAX_NUMBER - MAX_EVENTS or fence > _MAX_INT:
        raise InvalidRequestError("numbers are from 1 to below 2^53, and a fence is below 2^63")
    shared = _shared_fields(item, principal).SerializeToString()
    stored: list[StoredEvent] = []
    event_type = ""
    for event in events:
        if event_type == TERMINAL:
            raise InvalidRequestError(f"nothing may follow {TERMINAL} in an item")
        event_type = event.event_type
        stored.append(_stored(event, number, shared))
        number += 1
    gap = _gap_event(producer_id, first, shared) if item.declare_gap else None
    return Append(
        principal.user_id,
        principal.run_id,
        principal.thread_id,
        producer_id,
        fence,
        first,
        tuple(stored),
        event_type == TERMINAL,
        gap,
        notified,
    )


def _check_notification(item: events_pb2.ProducerEvents) -> None:
    """What a ticket allows that any user can get, whether it came through the emitter's Notify or past it."""
    if not item.producer_id.startswith(_NOTIFY) or len(item.events) != 1 or item.declare_gap:
        raise PermissionDeniedError(
            "only the run's owner publishes streams of events", advice="send single events with the emitter's Notify"
        )
    event = item.events[0]
    kind = EVENTS.get(event.event_type)
    if kind is None or kind.source != "agent":
        raise PermissionDeniedError(
            "a notification is of one of the agents' kinds", advice="leave the run's own events to its owner"
        )
    try:
        value = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        raise InvalidRequestError("an event's data is not JSON") from None
    validate_event(event.event_type, value)


def _shared_fields(item: events_pb2.ProducerEvents, principal: RunPrincipal) -> events_pb2.LogEntry:
    context = item.context
    if max(len(context.request_id), len(context.parent_request_id)) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError(f"a request_id is at most {MAX_REQUEST_ID_LENGTH} characters")
    return events_pb2.LogEntry(
        thread_id=principal.thread_id,
        run_id=principal.run_id,
        request_id=context.request_id,
        parent_request_id=context.parent_request_id,
        attempt=item.attempt,
        producer_id=item.producer_id,
    )


def _stored(event: events_pb2.Event, number: int, shared: bytes) -> StoredEvent:
    # Measured: assignments take 1.6 µs an event, keyword arguments 2.0.
    event_id, event_type, data = event.event_id, event.event_type, event.data
    if event.number != number:
        raise InvalidRequestError("the events of an item must be numbered without a hole")
    if not (0 < len(event_id) <= 128 and event_id.isascii() and event_id.isprintable()):
        raise InvalidRequestError("event_id must be 1 to 128 printable ASCII characters")
    if len(data) > MAX_DATA:
        raise TooLargeError(
            "an event's data is over the hard limit",
            advice="make it an artifact and send the reference",
            limit="event_bytes",
            limit_value=MAX_DATA,
            use=len(data),
        )
    if event_type not in EVENTS or event_type in _LOGS_OWN:
        _check_kind(event_type)
    _check_data(data)
    entry = events_pb2.LogEntry()
    entry.event_id = event_id
    entry.event_type = event_type
    agent_name, traceparent = event.agent_name, event.traceparent
    if len(agent_name) > _MAX_NAME or len(traceparent) > _MAX_TRACEPARENT:
        raise InvalidRequestError("agent_name or traceparent is too long")
    entry.agent_name = agent_name
    entry.data = data
    entry.number = number
    if event.HasField("timestamp"):
        timestamp = event.timestamp
        if not (_FIRST_S <= timestamp.seconds <= _LAST_S and 0 <= timestamp.nanos < 1_000_000_000):
            raise InvalidRequestError("timestamp is not within the years 1 to 9999")
        entry.timestamp.CopyFrom(timestamp)
    if traceparent:
        entry.traceparent = traceparent
    # Messages concatenated are messages merged: the fields that all events of the item share are encoded once.
    return StoredEvent(event_id, shared + entry.SerializeToString())


def _check_kind(event_type: str) -> None:
    if event_type in _LOGS_OWN:
        raise InvalidRequestError(f"{event_type} is written by the log alone")
    if not _KIND.fullmatch(event_type):
        raise InvalidRequestError("event_type must be 1 to 64 small letters, digits and '_'")


def _check_data(data: bytes) -> None:
    # Readers embed it into their own JSON as it is. Whether it is JSON is the emitter's to see, which parses it anyway.
    try:
        data.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("an event's data is not UTF-8") from None


def _gap_event(producer_id: str, first: int, shared: bytes) -> StoredEvent:
    event_id = new_id("gap")
    entry = events_pb2.LogEntry(
        event_id=event_id,
        event_type="log_gap",
        data=orjson.dumps(
            {"producer_id": producer_id, "last": first - 1, "reason": "events were lost before they reached the log"}
        ),
    )
    entry.timestamp.GetCurrentTime()
    return StoredEvent(event_id, shared + entry.SerializeToString())


def ack_of(append: Append, result: AppendResult, micros: int = 0) -> events_pb2.ProducerAck:
    """What the producer learns about an append, which took so many microseconds."""
    events = result.events
    ack = events_pb2.ProducerAck(
        user_id=append.user,
        producer_id=append.producer_id,
        through=result.through,
        offset=result.first_offset + len(events) - 1 if events else 0,
        epoch=result.epoch,
        log_micros=micros,
    )
    if result.refusal is not None:
        ack.refusal.CopyFrom(refusal_of(_refusal_error(result.refusal), result.refusal.last_number))
        ack.fence = append.fence
    return ack


def refused_ack(user_id: str, producer_id: str, fence: int, error: CarrelError) -> events_pb2.ProducerAck:
    """The answer to an item that never reached the log; the producer goes back to what is acknowledged."""
    refusal = refusal_of(error, 0)
    return events_pb2.ProducerAck(user_id=user_id, producer_id=producer_id, refusal=refusal, fence=fence)


def _refusal_error(refusal: Refusal) -> CarrelError:
    match refusal.reason:
        case RefusalReason.GAP:
            return EventGapError(
                "events before these are missing in the log",
                advice="send again from the one after last_number, or declare the gap",
                last_number=refusal.last_number,
            )
        case RefusalReason.STALE_FENCE:
            return StaleFenceError("a newer holder of the run has written to the log")
        case RefusalReason.FENCE:
            return PermissionDeniedError("only the run's owner raises its fence", advice="leave fence out")
        case RefusalReason.SEALED:
            return SealedLogError("the run's terminal event is in the log")
        case RefusalReason.MISMATCH:
            return InvalidRequestError("the run is known under another thread, or the producer under another run")
        case RefusalReason.FAILED:
            return StoreUnavailableError(
                "the event log has something of this user that it cannot use",
                advice="see the bridge's log; what was sent is sent again",
                retry_after_s=_FAILED_AGAIN_S,
            )


def attach_response(items: Iterable[GatewayItem]) -> bridge_pb2.AttachResponse:
    """Items for a gateway as one message; one that cannot be told refuses its own subscription, and no other."""
    response = bridge_pb2.AttachResponse()
    for item in items:
        message = response.items.add()
        try:
            _fill_item(message, item)
        except (ValueError, TypeError, DecodeError) as error:
            if isinstance(item, Bye | Refused):
                raise
            _log.error("a user's item cannot be told", user=hash_user(item.user), error=error)
            message.Clear()
            _fill_refused(message.refused, Refused(item.user, item.generation, InternalError("an entry is damaged")))
    return response


def _fill_item(message: bridge_pb2.AttachItem, item: GatewayItem) -> None:
    match item:
        case Entries():
            _fill_entries(message.entries, item)
        case Subscribed(user, generation, position, recovered):
            begun = message.subscribed
            begun.user_id, begun.generation, begun.recovered = user, generation, recovered
            begun.top.epoch, begun.top.offset, begun.top.event_id = position.epoch, position.top, position.event_id
            begun.oldest_offset = position.oldest if position.oldest <= position.top else 0
        case Reset():
            reset = message.reset
            reset.user_id, reset.generation = item.user, item.generation
            reset.reset.CopyFrom(_reset(item))
        case Refused():
            _fill_refused(message.refused, item)
        case Bye(reason, retry_after_s):
            message.bye.reason = reason
            message.bye.retry_after.FromMilliseconds(int(retry_after_s * 1000))


def _fill_refused(message: bridge_pb2.SubscriptionRefused, item: Refused) -> None:
    message.user_id, message.generation = item.user, item.generation
    message.error.CopyFrom(error_to_proto(item.error))


def _fill_entries(message: bridge_pb2.UserEntries, item: Entries) -> None:
    message.user_id, message.generation, message.epoch = item.user, item.generation, item.epoch
    offset = item.first_offset
    for _, blob in item.events:
        entry = message.entries.add()
        entry.ParseFromString(blob)
        entry.offset = offset
        offset += 1


def read_response(user_id: str, item: ReadItem) -> bridge_pb2.ReadEventsResponse:
    """One item of a read."""
    match item:
        case Page(epoch, entries):
            response = bridge_pb2.ReadEventsResponse()
            response.entries.user_id, response.entries.epoch = user_id, epoch
            for offset, _, blob in entries:
                entry = response.entries.entries.add()
                entry.ParseFromString(blob)
                entry.offset = offset
            return response
        case Reset():
            return bridge_pb2.ReadEventsResponse(reset=_reset(item))
    return bridge_pb2.ReadEventsResponse(through=_position(item.point))


def resume_of(position: events_pb2.Position) -> ResumePoint:
    """A position as it came."""
    return ResumePoint(position.epoch, position.offset, position.event_id)


def entry_filter(run_id: str, thread_id: str) -> Callable[[Entry], bool] | None:
    """Which entries are of this run and this thread; None for all."""
    if not run_id and not thread_id:
        return None

    def keep(entry: Entry) -> bool:
        message = events_pb2.LogEntry.FromString(entry.blob)
        return (not run_id or message.run_id == run_id) and (not thread_id or message.thread_id == thread_id)

    return keep


def run_response(run: RunInfo, epoch: str, connections: int) -> bridge_pb2.ResolveRunResponse:
    """A row of the thread-run map."""
    return bridge_pb2.ResolveRunResponse(
        run_id=run.run_id,
        thread_id=run.thread_id,
        first_offset=run.first_offset,
        last_offset=run.last_offset,
        sealed=run.sealed,
        fence=run.fence,
        epoch=epoch,
        connections=connections,
    )


def state_response(bridge: Bridge, identity_mismatches: int) -> bridge_pb2.GetStateResponse:
    """The bridge's state and counts."""
    monitor, hub, counts = bridge.monitor, bridge.hub, bridge.counts
    response = bridge_pb2.GetStateResponse(
        state=bridge_pb2.IntegrationState.Value(f"INTEGRATION_STATE_{monitor.state.name}"),
        recovery_attempts=monitor.attempts,
        last_error=monitor.last_error,
        gateways=hub.gateways,
        subscriptions=hub.subscriptions,
        connections=hub.connections(),
        events_appended=counts.appended,
        events_duplicate=counts.duplicate,
        commits=bridge.commits,
        users_behind=hub.users_behind,
        identity_mismatch_total=identity_mismatches,
    )
    response.since.FromMilliseconds(int(monitor.since * 1000))
    return response


def _reset(item: Reset) -> events_pb2.Reset:
    return events_pb2.Reset(reason=_RESETS[item.reason], position=_position(item.point))


def _position(point: ResumePoint) -> events_pb2.Position:
    return events_pb2.Position(epoch=point.epoch, offset=point.offset, event_id=point.event_id)
