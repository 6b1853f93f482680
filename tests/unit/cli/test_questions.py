"""What a person types as an answer, and what they are shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from carrel.cli.questions import parse_answer, parts_of, problem_of, question_text, what_to_type
from carrel.client import Question

# As pydantic writes it for a model with an enum, an optional number and a default.
FORM: dict[str, Any] = {
    "type": "object",
    "$defs": {"Size": {"enum": ["small", "large"], "type": "string"}},
    "properties": {
        "size": {"$ref": "#/$defs/Size"},
        "count": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
        "gift": {"type": "boolean", "description": "wrap it"},
    },
    "required": ["size", "gift"],
}
APPROVAL = Question(
    "input-1",
    "Allow send_mail",
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"approved": {"type": "boolean"}}}]},
    datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    "send_mail",
    {"to": "bob", "text": "hi\x1b[2J"},
)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({}, "just text", "just text"),
        ({}, '{"a": 1}', {"a": 1}),
        ({"type": "string"}, "42", "42"),
        ({"type": "string"}, "yes", "yes"),
        ({"type": "string"}, '"quoted"', "quoted"),
        ({"type": "integer"}, " 42 ", 42),
        ({"type": "boolean"}, "Yes", True),
        ({"type": "boolean"}, "n", False),
        ({"enum": ["Berlin", "Paris"]}, "berlin", "Berlin"),
        ({"enum": [1, 2]}, "2", 2),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        (FORM, '{"size": "small", "gift": true}', {"size": "small", "gift": True}),
    ],
)
def test_text_means_what_the_schema_wants(schema: dict[str, Any], text: str, value: object) -> None:
    assert parse_answer(text, Question("input-1", "?", schema)) == value


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        ({"type": "integer"}, "many", "a whole number"),
        ({"type": "integer", "minimum": 3}, "2", "from 3"),
        ({"type": "boolean"}, "perhaps", "yes | no"),
        ({"enum": ["Berlin", "Paris"]}, "Rome", "Berlin | Paris"),
        (FORM, '{"size": "huge", "gift": true}', "$.size"),
        ({"type": "number"}, "NaN", "a number"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wanted(schema: dict[str, Any], text: str, said: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_answer(text, Question("input-1", "?", schema))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("NO", False), ("true", True), ('{"approved": false}', {"approved": False})]
)
def test_an_approval_takes_yes_and_no(text: str, value: object) -> None:
    assert parse_answer(text, APPROVAL) == value


def test_an_approval_shows_the_tool_and_its_arguments_and_no_control_characters() -> None:
    text = question_text(APPROVAL)
    assert text.startswith("Allow send_mail\n  tool: send_mail\n    to = bob\n    text = hi[2J\n  until 2026-01-0")
    assert "\x1b" not in text


def test_the_parts_of_a_form_are_asked_for_one_by_one() -> None:
    parts = parts_of(FORM)
    assert [(part.name, part.required) for part in parts] == [("size", True), ("count", False), ("gift", True)]
    hints = [what_to_type(part.schema, FORM) for part in parts]
    assert hints == ["small | large", "a whole number from 1", "yes | no (wrap it)"]


def test_a_schema_cannot_hang_the_terminal_or_fetch_anything() -> None:
    assert not problem_of("a" * 40 + "!", {"type": "string", "pattern": "^(a+)+$"})
    assert not problem_of(1, {"$ref": "http://127.0.0.1:9/schema"})
    assert not problem_of(1, {"$ref": "#"})
