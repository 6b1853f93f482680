"""Questions and answers: what may be asked, what fits, and that neither can hold up the loop that all runs share."""

import time
from typing import Any

import orjson
import pytest

from carrel.errors import AgentFailedError, InvalidInputError
from services.execution.domain.answers import check_answer, check_question, parse_answer
from services.execution.models_steps import Question

FORM = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]+$"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


def question(schema: Any) -> Question:
    return Question("q1", "where to?", schema if isinstance(schema, bytes) else orjson.dumps(schema))


@pytest.mark.parametrize("schema", [{}, True, FORM, {"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a"}])
def test_json_schema_may_be_asked_with(schema: Any) -> None:
    check_question(question(schema), "asker")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (b"{", "is no JSON"),
        ([1], "no JSON object"),
        ({"type": "city"}, "no JSON Schema"),
        ({"pattern": "(?=a)"}, "linear time"),
        ({"properties": {"a": {"pattern": "("}}}, "'regex'"),
        ({"$ref": "http://example.com/schema"}, "nothing is fetched"),
        ({"items": {"patternProperties": {"^a": {}}}}, "patternProperties"),
        ({"description": "x" * 20_000}, "larger than"),
    ],
)
def test_schema_that_nobody_could_answer_is_the_agents_failure(schema: Any, why: str) -> None:
    with pytest.raises(AgentFailedError, match=why) as raised:
        check_question(question(schema), "asker")
    assert raised.value.details["agent_name"] == "asker"


def test_prompt_that_no_event_would_carry_is_the_agents_failure() -> None:
    with pytest.raises(AgentFailedError, match="prompt"):
        check_question(Question("q1", "é" * 5_000, b"{}"), "asker")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"city": "Paris", "days": 0}, "$.days"),
        ({"city": "paris"}, "$.city"),
        ({"days": 2}, "$"),
        ({"city": "Paris", "more": 1}, "$"),
        ("Paris", "$"),
    ],
)
def test_answer_that_does_not_fit_is_told_where(value: Any, where: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        check_answer(orjson.dumps(FORM), value)
    assert raised.value.details["where"] == where


def test_answer_that_fits_is_taken() -> None:
    check_answer(orjson.dumps(FORM), {"city": "Paris", "days": 3})
    check_answer(b"true", None)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 200 + b"]" * 200])
def test_answer_that_is_no_json_value_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_answer(raw)


def _doubling(depth: int, last: dict[str, Any] | None = None) -> dict[str, Any]:
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": defs | {f"a{depth}": last or {"type": "string"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"pattern": rf"(\w|\d|[a-z]){{0,100}}{number}"} for number in range(300)]},
        {"pattern": "(" * 2000 + ")" * 2000},
    ],
)
def test_patterns_that_take_long_to_make_are_refused_soon(schema: Any) -> None:
    began = time.process_time()
    with pytest.raises(AgentFailedError, match="too much work"):
        check_question(question(schema), "asker")
    assert time.process_time() - began < 1.0


def test_reference_to_what_is_no_schema_is_told() -> None:
    with pytest.raises(InvalidInputError, match="can't be applied"):
        check_answer(b'{"title":"abc","$ref":"#/title"}', 1)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 50_000 + "b"),
        (_doubling(25), "x"),
        ({"$ref": "#"}, "x"),
        ({"items": {"type": "string"}}, [1] * 100_000),
        ({"items": {"type": "integer"}}, [1] * 100_000),
        (_doubling(9, {"uniqueItems": True}), list(range(10_000))),
        (_doubling(9, {"pattern": r"(\w|\d){0,50}x"}), "a" * 9_000),
        ({"pattern": r"(\w|\d|[a-z]){0,80}x"}, "a" * 200_000),
    ],
)
def test_neither_schema_nor_answer_can_hold_up_the_loop(schema: Any, value: Any) -> None:
    check_question(question(schema), "asker")
    began = time.process_time()
    with pytest.raises(InvalidInputError):
        check_answer(orjson.dumps(schema), value)
    assert time.process_time() - began < 0.5


def test_items_are_compared_as_json_values() -> None:
    schema = b'{"uniqueItems":true}'
    check_answer(schema, [{"a": 1}, {"a": 2}])
    with pytest.raises(InvalidInputError):
        check_answer(schema, [{"a": 1, "b": 2}, {"b": 2, "a": 1}])
