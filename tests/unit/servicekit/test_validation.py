"""Rules of the contract: every broken one is named by its field, and values are never quoted."""

import pytest

from carrel.errors import InvalidRequestError
from carrel.v1 import context_pb2, emitter_pb2, events_pb2, execution_pb2
from servicekit.rpc.validation import validate_message, warm


def broken(message: object) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        validate_message(message)  # type: ignore[arg-type]  # any message
    return dict(caught.value.fields)


def test_message_that_keeps_its_rules_passes() -> None:
    context = context_pb2.UserExecutionContext(user_id="alice")
    validate_message(execution_pb2.GetRunRequest(context=context, run_id="run-1"))


def test_fields_inside_lists_and_messages_are_named_by_their_path() -> None:
    events = [events_pb2.Event(event_id="e-1", number=1, event_type="agent_started"), events_pb2.Event(event_id="a b")]
    item = events_pb2.ProducerEvents(context=context_pb2.UserExecutionContext(), producer_id="p", events=events)
    found = broken(emitter_pb2.EmitRequest(items=[item]))
    assert set(found) == {
        "items[0].events[1].event_id",
        "items[0].events[1].number",
        "items[0].events[1].event_type",
    }
    assert "a b" not in str(found)


def test_missing_context_is_named() -> None:
    assert broken(execution_pb2.ListRunsRequest()) == {"context": "value is required"}


def test_number_of_named_fields_is_bounded() -> None:
    items = [events_pb2.ProducerEvents() for _ in range(100)]
    assert len(broken(emitter_pb2.EmitRequest(items=items))) <= 20


def test_rules_of_every_request_compile() -> None:
    warm([execution_pb2.ExecutePipelineRequest, emitter_pb2.NotifyRequest])
