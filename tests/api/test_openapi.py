"""docs/openapi.json is an OpenAPI document, and says what the code does: no route, field, status or name is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from carrel.error_base import HTTP_STATUS
from carrel.errors import error_codes
from carrel.ids import FORBIDDEN_PREFIXES, FORBIDDEN_WORDS
from carrel.v1 import agent_instance_pb2, execution_pb2
from gateway.development import _RULES as SIGN_IN_RULES
from gateway.fields import Rule
from gateway.requests import EXECUTE_RULES
from gateway.rest.http import _OWN_STATUS
from gateway.rest.logout import _RULES as LOGOUT_RULES
from gateway.rest.routes import CONSOLE_PATHS, DOCS_PATHS, OPEN_PATHS
from gateway.rest.runs import _CANCEL_RULES, _INPUT_RULES
from gateway.rest.tickets import _RULES as TICKET_RULES
from gateway.run_json import agent_json, artifact_json, message_json, run_json, thread_json, timing_json
from gateway.tally import GatewayStatistics, Tally
from tests.support.asyncapi import document as asyncapi
from tests.support.asyncapi import references
from tests.support.openapi import at, document, operations, problems, served

_JSON: Final = {str: "string", int: "integer", bool: "boolean", dict: "object", list: "array"}
_BODIES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "ExecuteRequest": EXECUTE_RULES,
    "CancelRequest": _CANCEL_RULES,
    "InputRequest": _INPUT_RULES,
    "TicketRequest": TICKET_RULES,
    "LogoutRequest": LOGOUT_RULES,
    "SignInRequest": SIGN_IN_RULES,
}
# Only within the stack, or only in a run's own error; and of what comes with a later release, at the moment nothing.
_NO_ANSWERS: Final = {499, 501}


# The document itself.


def test_it_is_a_document_of_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document()).iter_errors()] == []


def test_references_resolve_and_every_part_is_used() -> None:
    used = set(references(document()))
    for reference in used:
        assert at(reference), reference
    for kind, parts in document()["components"].items():
        for name in parts:
            # Every address answers 405 to the methods that it does not take, so that none lists it.
            if kind != "securitySchemes" and name != "MethodNotAllowed":
                assert f"#/components/{kind}/{name}" in used, name


def test_operations_are_told_apart_and_say_what_they_are() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in document()["tags"]}
    assert {tag for _, operation in operations() for tag in operation["tags"]} == tags
    for name, operation in operations():
        assert operation["summary"], name
        for parameter in operation.get("parameters", []):
            found = at(parameter["$ref"]) if "$ref" in parameter else parameter
            assert "example" in found or found["schema"], name


def test_examples_fit_their_schemas() -> None:
    checked = 0
    contents = [r["content"] for r in document()["components"]["responses"].values()]
    contents += [operation["requestBody"]["content"] for _, operation in operations() if "requestBody" in operation]
    for content in contents:
        for media in content.values():
            if "example" in media:
                assert problems(media["example"], media["schema"]) == []
                checked += 1
    for schema in document()["components"]["schemas"].values():
        for example in schema.get("examples", []):
            assert problems(example, schema) == []
            checked += 1
    assert checked > 15


# Against the code.


def test_routes_are_those_that_the_gateway_serves() -> None:
    assert {name for name, _ in operations()} == served()


def test_only_open_routes_need_no_login() -> None:
    for name, operation in operations():
        is_open = name.partition(" ")[2] in OPEN_PATHS | CONSOLE_PATHS | DOCS_PATHS
        assert is_open is (operation["security"] == [] or {} in operation["security"]), name
        if not is_open:
            assert {"400", "401", "403", "429", "500", "503", "504"} <= operation["responses"].keys(), name


@pytest.mark.parametrize("name", sorted(_BODIES))
def test_fields_of_bodies_are_those_that_the_gateway_takes(name: str) -> None:
    schema, rules = document()["components"]["schemas"][name], _BODIES[name]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(rules)
    required = {field for field, rule in rules.items() if rule.required or (name, field) == ("InputRequest", "value")}
    assert set(schema.get("required", ())) == required
    for field, rule in rules.items():
        told = schema["properties"][field]
        if rule.kind is object:
            assert "type" not in told
            continue
        # What may be left out may be null as well.
        if "anyOf" in told:
            first, other = told["anyOf"]
            told = {**first, "type": [first["type"], other["type"]]}
        kind = _JSON[rule.kind] if rule.required else [_JSON[rule.kind], "null"]
        assert told["type"] == kind, field
        assert tuple(choice for choice in told.get("enum", ()) if choice) == rule.choices, field
        longest = told.get("maxLength", told.get("maxItems", 128 if "pattern" in told else 0))
        # The message is bounded in bytes, and that by execution's rule too.
        assert longest == (rule.longest or (262_144 if field == "message" else 0)), field
        assert told.get("minLength", told.get("minItems", told.get("minimum", int("pattern" in told)))) == rule.least


def test_placeholders_are_those_that_are_refused() -> None:
    schema = document()["components"]["schemas"]["ExecuteRequest"]["properties"]["thread_id"]
    words, prefixes = schema["anyOf"][0]["not"]["anyOf"]
    assert set(words["enum"]) == FORBIDDEN_WORDS
    assert set(re.findall(r"\w+_", prefixes["pattern"])) == set(FORBIDDEN_PREFIXES)


def test_every_status_of_an_error_is_told_with_codes_that_have_it() -> None:
    codes = {code: _OWN_STATUS.get(code, HTTP_STATUS[cls.status]) for code, cls in error_codes().items()}
    codes |= {"TOO_LARGE": 413}
    told: dict[int, set[str]] = {}
    for name, operation in operations():
        for status, response in operation["responses"].items():
            if "$ref" in response:
                example = at(response["$ref"])["content"]["application/json"]["example"]["error"]
                assert codes[example["code"]] == int(status), name
                named = set(re.findall(r"`([A-Z][A-Z_]+)`", at(response["$ref"])["description"]))
                told.setdefault(int(status), set()).update(named)
    for status, named in told.items():
        assert {codes[code] for code in named} <= {status}, named
    assert {405, *told} == {*_OWN_STATUS.values(), 413, *HTTP_STATUS.values()} - {200} - _NO_ANSWERS


def test_states_are_those_of_the_contract() -> None:
    states = [name.removeprefix("RUN_STATE_") for name, value in execution_pb2.RunState.items() if value]
    assert document()["components"]["schemas"]["RunStatus"]["enum"] == states


def test_what_it_shares_with_the_socket_s_document_is_the_same() -> None:
    mine, theirs = document()["components"]["schemas"], asyncapi()["components"]["schemas"]
    for name in ("RunStatus", "Stage", "Artifact", "Question"):
        assert mine[name] == theirs[name]
    assert set(mine["Error"]["properties"]) == set(theirs["Error"]["properties"])


def test_objects_that_the_gateway_makes_are_as_the_document_says() -> None:
    run = execution_pb2.Run(run_id="r", thread_id="t", request_id="q", agent_name="a", client_ref="c")
    run.state = execution_pb2.RUN_STATE_WAITING
    run.created_at.FromSeconds(1_700_000_000)
    run.ended_at.FromSeconds(1_700_000_009)
    run.error.code, run.error.message = "ENGINES_LIMIT", "m"
    run.stages.add(agent_name="a", attempt=1, state=execution_pb2.STAGE_STATE_RUNNING)
    artifact = run.artifacts.add(name="report.md", media_type="text/markdown", size=3, sha256="ab")
    run.waiting_for.CopyFrom(agent_instance_pb2.InputRequired(input_id="i", tool_name="t"))
    run.timing.parts.add(name="queue").time.FromMilliseconds(3)
    agent = agent_instance_pb2.AgentInfo(name="a", isolation=agent_instance_pb2.ISOLATION_PROCESS)
    agent.tools.add(name="t")
    made: Mapping[str, Mapping[str, Any]] = {
        "Run": run_json(run),
        "RunWithTiming": {**run_json(run), **timing_json(run)},
        "Artifact": artifact_json(artifact, "r"),
        "Thread": thread_json(execution_pb2.Thread(thread_id="t")),
        "Message": message_json(agent_instance_pb2.ConversationMessage(role="user", text="x")),
        "Agent": agent_json(agent),
        "GatewayCounts": GatewayStatistics.of(Tally(), [], connections=0, users=0, ring_bytes=0).to_json(),
    }
    for name, value in made.items():
        schema = document()["components"]["schemas"][name]
        assert set(schema["properties"]) == set(value), name
        assert problems(value, schema) == [], name


def test_schemas_are_schemas() -> None:
    for name, schema in document()["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema, name
