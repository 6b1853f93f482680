"""A run's question as a person reads it, and what they type as the answer that its schema wants. Pure: no terminal.

The check here spares a person a round trip. What counts is execution's, which checks every answer again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from carrel.cli.render import clean
from carrel.client.models import Question

__all__ = ["Part", "parse_answer", "parse_part", "parts_of", "problem_of", "question_text", "what_to_type"]

_YES: Final = frozenset({"yes", "y", "true"})
_NO: Final = frozenset({"no", "n", "false"})
_LONGEST: Final = 2000
_SHORT: Final = 200


@dataclass(frozen=True, slots=True)
class Part:
    """A property of an answer that is an object: asked for by itself."""

    name: str
    schema: Mapping[str, Any]
    required: bool


def question_text(question: Question) -> str:
    """The question in words: its prompt; for an approval the tool and its arguments; else what may be answered."""
    lines = [clean(question.prompt or "the run waits for an answer", _LONGEST)]
    if question.approval:
        lines.append(f"  tool: {clean(question.tool_name)}")
        lines += [f"    {clean(name)} = {_shown(value, _LONGEST)}" for name, value in question.arguments.items()]
    elif parts := parts_of(question.schema):
        lines += [f"  {clean(part.name)}: {what_to_type(part.schema, question.schema)}" for part in parts]
    if question.expires_at is not None:
        lines.append(f"  until {question.expires_at.astimezone():%Y-%m-%d %H:%M %Z}")
    return "\n".join(lines)


def what_to_type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """What a value of the schema looks like, in a few words."""
    schema = _plain(schema, root)
    if choices := _choices(schema):
        return " | ".join(_shown(choice) for choice in choices)
    kind = schema.get("type")
    bounds = [
        f"{words} {_shown(schema[name])}"
        for name, words in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if name in schema
    ]
    words = {"boolean": "yes | no", "integer": "a whole number", "number": "a number", "string": "text"}
    said = words.get(kind, "JSON") if isinstance(kind, str) else "JSON or text"
    described = clean(schema.get("description") or "", _SHORT)
    return " ".join([said, *bounds]) + (f" ({described})" if described else "")


def parts_of(schema: Mapping[str, Any]) -> list[Part]:
    """The properties of an answer that is an object; empty when it is something else."""
    plain = _plain(schema, schema)
    properties, required = plain.get("properties"), plain.get("required")
    if plain.get("type") != "object" or not isinstance(properties, Mapping):
        return []
    needed = required if isinstance(required, list) else []
    return [Part(name, part if isinstance(part, Mapping) else {}, name in needed) for name, part in properties.items()]


def parse_answer(text: str, question: Question) -> Any:
    """What somebody typed as an answer: JSON or plain text, ``yes`` and ``no`` where true or false is wanted.

    Raises:
        ValueError: It is no answer to this question; the message says why.
    """
    if question.approval and (word := text.strip().lower()) in _YES | _NO:
        return word in _YES
    return parse_part(text, question.schema, question.schema)


def parse_part(text: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The first of the things that the text can mean which fits the schema.

    Args:
        text: What was typed.
        schema: Of the value.
        root: The whole schema, to which references within it lead.

    Raises:
        ValueError: None fits; the message says why.
    """
    problem = ""
    for value in _meanings(text, _plain(schema, root)):
        found = problem_of(value, {**schema, "$defs": root.get("$defs", {})})
        if not found:
            return value
        problem = problem or found
    raise ValueError(f"{problem}; expected: {what_to_type(schema, root)}")


def problem_of(value: Any, schema: Mapping[str, Any]) -> str:
    """Why a value does not fit; empty when it does. A schema that can't be applied here fits everything."""
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # Patterns are left to execution, whose engine takes linear time: a schema must not hang this terminal.
    extend: Any = validators.extend
    validator = extend(Draft202012Validator, {"pattern": None})(dict(schema), registry=Registry())
    try:
        error = best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError, TypeError, ValueError):
        return ""
    if error is None:
        return ""
    where = "" if error.json_path == "$" else f"{error.json_path}: "
    return clean(where + error.message, _SHORT)


def _meanings(text: str, schema: Mapping[str, Any]) -> Iterator[Any]:
    stripped = text.strip()
    word = stripped.lower()
    if schema.get("type") == "boolean" and word in _YES | _NO:
        yield word in _YES
    with contextlib.suppress(ValueError):
        yield json.loads(stripped, parse_constant=_no_constant)
    yield stripped
    choices = _choices(schema)
    yield from (choice for choice in choices if isinstance(choice, str) and choice.lower() == word)


def _plain(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference within the root, and of what may be null the other half."""
    for _ in range(8):
        reference, either = schema.get("$ref"), schema.get("anyOf")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            found = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
            if not isinstance(found, Mapping):
                return schema
            schema = found
        elif isinstance(either, Sequence):
            others = [one for one in either if isinstance(one, Mapping) and one.get("type") != "null"]
            if len(others) != 1:
                return schema
            schema = others[0]
        else:
            return schema
    return schema


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    choices = schema.get("enum")
    return choices if isinstance(choices, list) else []


def _shown(value: object, longest: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return clean(text, longest)


def _no_constant(name: str) -> Any:
    raise ValueError(name)
