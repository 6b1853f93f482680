"""What clients ask for, the same through the socket and through REST: checked here, once.

Ids that clients send are checked against the rules of ids; everything else about a run is execution's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from carrel.errors import InvalidRequestError, TooLargeError
from carrel.ids import check_id, check_minted_id
from gateway.fields import ID, OBJECT, Rule, check_fields

__all__ = [
    "EXECUTE_RULES",
    "MAX_MESSAGE_BYTES",
    "STRATEGIES",
    "Answer",
    "ExecuteRequest",
    "answer_of",
    "execute_request",
]

MAX_MESSAGE_BYTES: Final = 262_144
MAX_STAGES: Final = 32
MAX_ANSWER_BYTES: Final = 262_144
STRATEGIES: Final = ("reject", "enqueue", "interrupt", "rollback")

EXECUTE_RULES: Final[Mapping[str, Rule]] = {
    "message": Rule(str, required=True, least=1),
    "params": OBJECT,
    "agent_name": ID,
    "pipeline": Rule(list, longest=MAX_STAGES, least=1),
    "thread_id": ID,
    "strategy": Rule(str, choices=STRATEGIES),
    "client_ref": ID,
    "bound": Rule(bool),
    "traceparent": Rule(str, longest=64),
}


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """A run that is asked for. An empty ``pipeline`` means the deployment's default agent.

    A ``bound`` one ends when whoever asked for it goes away. ``traceparent`` is the asker's own trace (W3C).
    """

    message: str
    params: Mapping[str, Any] = field(default_factory=dict)
    pipeline: tuple[str, ...] = ()
    thread_id: str = ""
    strategy: str = ""
    client_ref: str = ""
    bound: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's answer to a run's question. ``value_json`` is JSON."""

    run_id: str
    input_id: str
    value_json: bytes


def execute_request(body: object, what: str, *, thread_id: str = "", client_ref: str = "") -> ExecuteRequest:
    """The request that a client's object describes; ``thread_id`` and ``client_ref`` stand in where it has none.

    Raises:
        InvalidRequestError: A field is unknown, missing or wrong, or two exclude each other.
        InvalidIdError: A thread_id or client_ref is malformed, or a placeholder.
    """
    fields = check_fields(body, EXECUTE_RULES, what)
    message = fields["message"]
    # A code point takes one to four bytes, so that short texts need not be encoded to be measured.
    if len(message) * 4 > MAX_MESSAGE_BYTES and len(message.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"message is longer than {MAX_MESSAGE_BYTES} bytes", fields={"message": "is too long"}
        )
    if "agent_name" in fields and "pipeline" in fields:
        raise InvalidRequestError(
            "agent_name and pipeline exclude each other",
            advice="send agent_name for one agent, pipeline for several",
            fields={"pipeline": "excludes agent_name"},
        )
    names = fields.get("pipeline") or ([fields["agent_name"]] if "agent_name" in fields else [])
    if any(len(name) > 128 for name in names):
        raise InvalidRequestError(
            "an agent's name is too long", fields={"pipeline": "has a name of over 128 characters"}
        )
    thread, ref = fields.get("thread_id", thread_id), fields.get("client_ref", client_ref)
    return ExecuteRequest(
        message=message,
        params=fields.get("params", {}),
        pipeline=tuple(names),
        thread_id=check_minted_id(thread, "thread_id") if thread else "",
        strategy=fields.get("strategy", ""),
        client_ref=check_id(ref, "client_ref") if ref else "",
        bound=fields.get("bound", False),
        traceparent=fields.get("traceparent", ""),
    )


def answer_of(fields: Mapping[str, Any], body: Mapping[str, Any], run_id: str) -> Answer:
    """The answer in a client's object.

    Args:
        fields: The object's fields, checked.
        body: The object itself: null is an answer, none at all is a mistake.
        run_id: The run that asked.

    Raises:
        InvalidRequestError: There is no ``value``, or an id is malformed.
        TooLargeError: The value is too long.
    """
    if "value" not in body:
        raise InvalidRequestError(
            "the answer has no value", advice="send value: any JSON, null too", fields={"value": "is required"}
        )
    value_json = orjson.dumps(fields.get("value"))
    if len(value_json) > MAX_ANSWER_BYTES:
        raise TooLargeError(
            f"an answer may have {MAX_ANSWER_BYTES} bytes",
            advice="send a shorter one",
            limit="max_answer_bytes",
            limit_value=MAX_ANSWER_BYTES,
            use=len(value_json),
        )
    return Answer(check_id(run_id, "run_id"), check_id(fields["input_id"], "input_id"), value_json)
