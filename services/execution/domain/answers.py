"""Questions to a person: what may be asked, and whether an answer fits. Pure; no store, no run.

Both the schema and the answer come from outside, and are checked in the loop that all runs share. So the work is
counted and timed, patterns are matched by an engine that takes linear time, and nothing is ever fetched.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import SchemaError
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from pydantic_core import ValidationError as PatternMismatch
from referencing import Registry
from referencing.exceptions import Unresolvable

from carrel.errors import AgentFailedError, InvalidInputError
from carrel.frozen import MAX_NESTING, nests_too_deep
from services.execution.models_steps import Question

__all__ = ["check_answer", "check_question", "parse_answer"]

# Together they fit into the event that asks.
_MAX_SCHEMA_BYTES: Final = 16_384
_MAX_PROMPT_BYTES: Final = 8_192
_MAX_STEPS: Final = 10_000
# Of this thread's processor time: a step can be long (a large list compared, a pattern made).
_MAX_SECONDS: Final = 0.25
# Linear is not fast: a pattern of many parts takes microseconds for each character.
_MAX_MATCHED: Final = 10_000
_MAX_TEXT: Final = 300
# Both match names of properties with patterns of Python's engine, which may take exponential time.
_REFUSED: Final = frozenset({"patternProperties", "unevaluatedProperties"})
_ADVICE: Final = "have the agent's author correct the question's schema"


class _TooMuchWorkError(Exception):
    """The schema takes more steps than an answer is worth."""


def check_question(question: Question, agent_name: str) -> None:
    """Refuse what nobody could answer.

    Raises:
        AgentFailedError: The schema is no JSON Schema, or one that is not taken; or the prompt is too long.
    """
    problem = _problem(question)
    if len(question.prompt.encode()) > _MAX_PROMPT_BYTES:
        problem = f"prompt of more than {_MAX_PROMPT_BYTES} bytes"
    elif problem:
        problem = f"schema that {problem}"
    if problem:
        raise AgentFailedError(
            f"{agent_name} asked with a {problem}",
            advice="have the agent's author correct the question",
            agent_name=agent_name,
            input_id=question.input_id,
        )


def parse_answer(value_json: bytes) -> Any:
    """The answer as a JSON value.

    Raises:
        InvalidInputError: It is no JSON, or nests too deep.
    """
    try:
        value = orjson.loads(value_json)
    except orjson.JSONDecodeError:
        raise InvalidInputError(
            "the answer is no JSON value", advice="send one JSON value, for example true or {}", where="$"
        ) from None
    if nests_too_deep(value):
        raise InvalidInputError(
            f"the answer nests more than {MAX_NESTING} levels deep", advice="send a flatter value", where="$"
        )
    return value


def check_answer(schema: bytes, value: Any) -> None:
    """Check an answer against its question's schema.

    Raises:
        InvalidInputError: It does not fit; ``where`` is the JSON path of what does not.
    """
    parsed = orjson.loads(schema)
    try:
        error = next(iter(_validator(parsed).iter_errors(value)), None)
    except (_TooMuchWorkError, RecursionError):
        raise InvalidInputError("the answer is too large to be checked", advice="send less", where="$") from None
    except (Unresolvable, PatternError, AttributeError, TypeError):  # the last two: a reference to what is no schema
        raise InvalidInputError("the question's schema can't be applied", advice=_ADVICE, where="$") from None
    if error is not None:
        told = error.message if len(error.message) <= _MAX_TEXT else error.message[:_MAX_TEXT] + "…"
        raise InvalidInputError(
            f"the answer does not fit at {error.json_path}: {told}",
            advice="answer as the question's schema says",
            where=error.json_path,
        )


def _problem(question: Question) -> str:
    if len(question.schema) > _MAX_SCHEMA_BYTES:
        return f"is larger than {_MAX_SCHEMA_BYTES} bytes"
    try:
        schema = orjson.loads(question.schema)
    except orjson.JSONDecodeError:
        return "is no JSON"
    if not isinstance(schema, dict | bool):
        return "is no JSON object"
    if nests_too_deep(schema):
        return f"nests more than {MAX_NESTING} levels deep"
    try:
        Draft202012Validator.check_schema(schema)
        _check_keywords(schema, _Time())
    except SchemaError as error:
        return f"is no JSON Schema: {error.message[:_MAX_TEXT]}"
    except PatternError:
        return "has a pattern with look-around, back references or an error, which can't be matched in linear time"
    except (_TooMuchWorkError, RecursionError):
        return "takes too much work to be checked: use fewer patterns, and simpler ones"
    except ValueError as error:
        return str(error)
    return ""


class _Time:
    """What one check may take; ``spent`` is called between its steps."""

    def __init__(self) -> None:
        self._end = time.thread_time() + _MAX_SECONDS

    def spent(self) -> None:
        if time.thread_time() > self._end:
            raise _TooMuchWorkError


def _check_keywords(schema: Any, within: _Time) -> None:
    """Walk a schema, and what only looks like one too: refusing a little more than needed does no harm here."""
    if isinstance(schema, list):
        for item in schema:
            _check_keywords(item, within)
    if not isinstance(schema, dict):
        return
    if found := _REFUSED & schema.keys():
        raise ValueError(f"uses {min(found)}, which is not taken")
    if isinstance(schema.get("pattern"), str):
        _pattern(schema["pattern"])
        within.spent()
    reference = schema.get("$ref", "#")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ValueError("refers to another document; nothing is fetched")
    for item in schema.values():
        _check_keywords(item, within)


def _validator(schema: Any) -> Any:
    steps, within = 0, _Time()

    def counted(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def run(validator: Any, value: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            nonlocal steps
            steps += 1
            if steps > _MAX_STEPS:
                raise _TooMuchWorkError
            within.spent()
            yield from check(validator, value, instance, whole) or ()

        return run

    keywords = {**Draft202012Validator.VALIDATORS, "pattern": _matches, "uniqueItems": _unique}
    extend: Callable[..., Any] = validators.extend
    made = extend(Draft202012Validator, {name: counted(check) for name, check in keywords.items()})
    return made(schema, registry=Registry())


def _matches(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str):
        return
    if len(instance) > _MAX_MATCHED:
        raise _TooMuchWorkError
    try:
        _pattern(pattern).validate_python(instance)
    except PatternMismatch:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    if wanted is True and isinstance(instance, list):
        told = {orjson.dumps(item, option=orjson.OPT_SORT_KEYS) for item in instance}
        if len(told) != len(instance):
            yield ValidationError("the items are not all different")


@functools.lru_cache(maxsize=16)  # one may be of 10 MB
def _pattern(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))
