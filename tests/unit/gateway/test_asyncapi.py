"""docs/asyncapi.json is an AsyncAPI document, and says what the code does: no frame, field, kind or code is missing."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final

import orjson
import pytest
from jsonschema import Draft7Validator

import gateway
from carrel.errors import EnginesLimitError
from carrel.events import EVENTS
from carrel.v1 import agent_instance_pb2, events_pb2, execution_pb2
from gateway import frames
from gateway.close_codes import CloseCode
from gateway.encoding import control, encode_entry, event_batch, packed_batch
from gateway.fields import Rule
from gateway.frames import Connect
from gateway.requests import STRATEGIES
from gateway.run_json import run_json
from gateway.terms import Terms
from tests.support.asyncapi import (
    CLIENT,
    GATEWAY,
    document,
    message_of,
    messages_of,
    official_schema,
    problems,
    references,
    schema_of,
)
from tests.unit.gateway.entries import entries

_JSON: Final = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
    tuple: "array",
    NoneType: "null",
}
# Where one value may be of several kinds, or is required by more than its rule.
_OWN_WAY: Final = {("connect", "resume"), ("connect", "ack"), ("input_provide", "value")}


def _at(reference: str) -> Any:
    found: Any = document()
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


# The document itself.


def test_it_is_a_document_of_asyncapi_3() -> None:
    Draft7Validator.check_schema(official_schema())
    wrong = [
        f"{list(error.absolute_path)}: {error.message}"
        for error in Draft7Validator(official_schema()).iter_errors(document())
    ]
    assert not wrong


def test_references_resolve_and_every_part_is_used() -> None:
    used = set(references(document()))
    for reference in used:
        assert _at(reference), reference
    for kind in ("messages", "schemas"):
        for name in document()["components"][kind]:
            assert f"#/components/{kind}/{name}" in used, name
    told = {key for sender in (CLIENT, GATEWAY) for key in messages_of(sender).values()}
    for channel in document()["channels"].values():
        assert set(channel["messages"]) == told == set(document()["components"]["messages"])


def test_operations_name_messages_of_their_channel() -> None:
    for name, operation in document()["operations"].items():
        channel = operation["channel"]["$ref"]
        answers = operation.get("reply", {}).get("messages", [])
        for reference in [*operation["messages"], *answers]:
            assert reference["$ref"].startswith(f"{channel}/messages/"), name
        sent = set(messages_of(GATEWAY).values())
        assert {reference["$ref"].rpartition("/")[2] for reference in answers} <= sent, name


def test_payloads_are_json_schemas_and_examples_fit_them() -> None:
    for name, schema in document()["components"]["schemas"].items():
        Draft7Validator.check_schema(schema)
        assert schema, name
    for key, message in document()["components"]["messages"].items():
        assert message["payload"] == {"$ref": f"#/components/schemas/{key}"}
        for example in message.get("examples", []):
            assert problems(example["payload"], CLIENT) == [], key


# Against the code: what clients send.


def test_frames_of_clients_are_those_that_the_gateway_takes() -> None:
    assert set(messages_of(CLIENT)) == set(frames._RULES)


@pytest.mark.parametrize("kind", sorted(frames._RULES))
def test_fields_of_a_client_s_frame_are_those_that_the_gateway_takes(kind: str) -> None:
    schema, rules = schema_of(messages_of(CLIENT)[kind]), frames._RULES[kind]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["type"] == {"const": kind}
    assert set(schema["properties"]) == {"type", *rules}
    required = {name for name, rule in rules.items() if rule.required or (kind, name) == ("input_provide", "value")}
    assert set(schema["required"]) == {"type", *required}
    for name, rule in rules.items():
        if (kind, name) not in _OWN_WAY:
            assert _rule_of(schema["properties"][name]) == rule, f"{kind}.{name}"


def _rule_of(schema: Mapping[str, Any]) -> Rule:
    """The rule that a field's schema says, but for whether the field must be there."""
    kind = next(python for python, name in _JSON.items() if name == schema["type"])
    return _Loose(
        kind,
        longest=schema.get("maxLength", schema.get("maxItems", 0)),
        least=schema.get("minLength", schema.get("minItems", schema.get("minimum", 0))),
        choices=tuple(schema.get("enum", ())),
    )


class _Loose(Rule):
    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Rule)
        mine, its = (self.kind, self.longest, self.least), (other.kind, other.longest, other.least)
        return mine == its and self.choices == other.choices

    __hash__ = None  # type: ignore[assignment]  # compared only


def test_the_parts_of_connect_and_execute() -> None:
    position = schema_of("Position")
    assert set(position["properties"]) == set(frames._RESUME)
    assert position["required"] == [name for name, rule in frames._RESUME.items() if rule.required]
    for name, rule in frames._RESUME.items():
        assert _rule_of(position["properties"][name]) == rule
    _, window = schema_of("connect")["properties"]["ack"]["oneOf"]
    assert set(window["properties"]) == set(frames._ACK)
    assert schema_of("agent_execute")["properties"]["strategy"]["enum"] == list(STRATEGIES)


# What the gateway sends.


def test_control_frames_and_their_fields_are_those_that_the_gateway_sends() -> None:
    said = _said()
    assert said.keys() == {name for name in messages_of(GATEWAY) if not name.startswith("event:")}
    for kind, fields in said.items():
        schema = schema_of(messages_of(GATEWAY)[kind])
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) == {"type", *fields}, kind


def _said() -> dict[str, set[str]]:
    """Every control frame that the socket's code makes, with its fields: from its source."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(gateway.__file__).parent.glob("*.py")):
        if path.name.startswith("sse"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        values = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            kind = call.args[0] if call.args else None
            if name in {"say", "control"} and isinstance(kind, ast.Constant):
                fields = found.setdefault(str(kind.value), set())
                for argument in call.args[1:]:
                    fields |= _keys(values.get(argument.id, argument) if isinstance(argument, ast.Name) else argument)
                for keyword in call.keywords:
                    fields |= {keyword.arg} if keyword.arg else _keys(keyword.value)
    return found


def _keys(value: ast.expr) -> set[str]:
    """The fields of a dictionary in the source, or of what the known functions make."""
    if isinstance(value, ast.Dict):
        return {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
    name = ast.unparse(value).partition("(")[0]
    made: Mapping[str, Mapping[str, Any]] = {
        "run_json": run_json(execution_pb2.Run()),
        "error_fields": EnginesLimitError("m", limit="l", retry_after_s=1).to_dict(),
        "granted": Terms.granted(Terms().flow_for(Connect(), 0), None),
    }
    return set(made[name])


def test_an_event_has_the_fields_of_the_envelope() -> None:
    entry = events_pb2.LogEntry(offset=1, event_id="e", event_type="agent_thinking", parent_request_id="p")
    made = encode_entry("alice", entry)
    assert set(orjson.loads(made.wire[made.head :])) == set(schema_of("Event")["properties"])
    assert set(schema_of("Event")["properties"]) - set(schema_of("Event")["required"]) == {"parent_request_id"}


def test_event_kinds_are_those_of_the_table() -> None:
    kinds = {name.removeprefix("event:") for name in messages_of(GATEWAY) if name.startswith("event:")}
    assert kinds == {*EVENTS, "event_batch"}
    assert schema_of("Event")["properties"]["event_type"]["enum"] == list(EVENTS)
    any_of = {reference["$ref"].rpartition("/")[2] for reference in schema_of("AnyEvent")["oneOf"]}
    assert any_of == {f"event_{kind}" for kind in EVENTS}


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_a_kind_s_data_is_that_of_the_table(name: str) -> None:
    kind = EVENTS[name]
    envelope, own = schema_of(f"event_{name}")["allOf"]
    assert envelope == {"$ref": "#/components/schemas/Event"}
    assert own["properties"]["event_type"] == {"const": name}
    data = own["properties"]["data"]
    assert set(data["properties"]) == set(kind.schema)
    assert set(data.get("required", ())) == {field for field, rule in kind.schema.items() if rule.required}
    assert [one["required"] for one in data.get("oneOf", ())] == [[field] for field in kind.one_of]
    for field, rule in kind.schema.items():
        schema = data["properties"][field]
        types = {_JSON[one] for one in rule.types}
        told = schema.get("type", sorted(set(_JSON.values())))
        assert ({told} if isinstance(told, str) else set(told)) == types, field
        assert set(schema.get("enum", ())) == set(rule.choices or ()), field


def test_batches_are_as_the_document_says() -> None:
    made = [encode_entry("alice", entry) for entry in entries(1, 40)]
    packed = packed_batch(made)
    assert packed is not None
    for wire in (event_batch(made), packed):
        frame = _parsed(wire)
        assert message_of(frame, GATEWAY) == "event_batch"
        assert problems(frame, GATEWAY) == []


def test_close_codes_are_those_of_the_table() -> None:
    told = [(one["code"], one["reason"], one["reconnect"]) for one in document()["x-close-codes"]]
    assert told == [(int(code), code.name.lower(), code.reconnect) for code in CloseCode]
    bye = schema_of("bye")["properties"]
    assert bye["code"]["enum"] == [code for code, _, _ in told]
    assert bye["reason"]["enum"] == [reason for _, reason, _ in told]


def test_states_and_reasons_are_those_of_the_contract() -> None:
    def names(enum: Any, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name, value in enum.items() if value]

    assert schema_of("RunStatus")["enum"] == names(execution_pb2.RunState, "RUN_STATE_")
    reasons = [name.lower() for name in names(events_pb2.ResetReason, "RESET_REASON_")]
    assert schema_of("reset")["properties"]["reason"]["enum"] == reasons
    stages = ["UNSPECIFIED", *names(execution_pb2.StageState, "STAGE_STATE_")]
    assert schema_of("Stage")["properties"]["status"]["enum"] == stages


def test_a_whole_run_and_its_question_are_as_the_document_says() -> None:
    run = execution_pb2.Run(run_id="r", thread_id="t", request_id="q", agent_name="a", client_ref="c")
    run.state = execution_pb2.RUN_STATE_WAITING
    run.result_json = b'{"rows":3}'
    run.created_at.FromSeconds(1_700_000_000)
    run.ended_at.FromSeconds(1_700_000_009)
    run.error.code, run.error.message = "ENGINES_LIMIT", "m"
    run.stages.add(agent_name="a", attempt=1, state=execution_pb2.STAGE_STATE_RUNNING)
    run.artifacts.add(name="report.md", media_type="text/markdown", size=3, sha256="ab")
    run.waiting_for.CopyFrom(agent_instance_pb2.InputRequired(input_id="i", tool_name="t", arguments_json=b"{}"))
    for one in (run, execution_pb2.Run(run_id="r", state=execution_pb2.RUN_STATE_QUEUED)):
        assert problems(_parsed(control("run_state", run_json(one))), GATEWAY) == []


def _parsed(wire: bytes) -> dict[str, Any]:
    """A WebSocket frame's JSON."""
    size = wire[1] & 0x7F
    frame: dict[str, Any] = orjson.loads(wire[4 if size == 126 else 10 if size == 127 else 2 :])
    return frame
