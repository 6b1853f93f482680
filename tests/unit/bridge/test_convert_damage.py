"""What gateways and producers are told when something of one user is damaged: it is that user's matter."""

from __future__ import annotations

import pytest

from carrel.v1 import events_pb2
from services.bridge.convert import ack_of, attach_response
from services.bridge.models import (
    Append,
    AppendResult,
    Entries,
    GatewayItem,
    Position,
    Refusal,
    RefusalReason,
    Reset,
    ResetReason,
    ResumePoint,
    StoredEvent,
    Subscribed,
)

SOUND = StoredEvent("ev", events_pb2.LogEntry(event_id="ev", data=b"{}").SerializeToString())


@pytest.mark.parametrize(
    "damaged",
    [
        Entries("alice", 7, "e1", 1, (SOUND, StoredEvent("x", b"\xff\xff rubbish"))),
        Entries("alice", 7, "e1", -4, (SOUND,)),
        Subscribed("alice", 7, Position("e1", 3, -2), True),
        Reset("alice", 7, ResetReason.TRIMMED, ResumePoint("e1", -3, "")),
    ],
)
def test_item_that_cannot_be_told_refuses_its_own_subscription(damaged: GatewayItem) -> None:
    bob = Entries("bob", 1, "e2", 5, (SOUND,))
    first, refused, last = attach_response([bob, damaged, bob]).items
    assert first == last
    assert [entry.offset for entry in first.entries.entries] == [5]
    assert refused.WhichOneof("item") == "refused"
    assert (refused.refused.user_id, refused.refused.generation) == ("alice", 7)
    assert refused.refused.error.code == "INTERNAL"


def test_producer_of_a_user_whose_log_cannot_be_used_is_to_send_again() -> None:
    append = Append("alice", "r", "t", "p", 3, 1, (SOUND,))
    ack = ack_of(append, AppendResult(0, "", 0, (), Refusal(RefusalReason.FAILED, 0)))
    assert ack.refusal.reason == events_pb2.REFUSAL_REASON_OVERLOADED
    assert (ack.refusal.error.retryable, ack.refusal.retry_after.seconds, ack.fence) == (True, 1, 3)
