"""What a gateway is told of many users at once: an item that cannot be told is its own user's matter."""

from __future__ import annotations

import pytest

from carrel.v1 import events_pb2
from services.bridge.convert import attach_response
from services.bridge.models import (
    Entries,
    GatewayItem,
    Position,
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
