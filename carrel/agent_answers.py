"""What ``ctx.ask`` makes of the type it is given: a JSON Schema for the question, and the answer as that type.

Used by ``AgentContext``; whether an answer fits a plain schema is execution's to check, before it takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from carrel.errors import InvalidInputError, InvalidRequestError

__all__ = ["answer_schema"]


def answer_schema(
    schema: type[Any] | Mapping[str, Any] | None, choices: Sequence[str] | None
) -> tuple[Mapping[str, Any], Callable[[Any], Any]]:
    """The question's JSON Schema, and what makes the answer of what comes back.

    Raises:
        InvalidRequestError: Both are given, or one is none that can be asked for.
    """
    if choices is not None:
        words = [] if isinstance(choices, str) else list(choices)
        if schema is not None or not words or not all(isinstance(word, str) for word in words):
            raise _wrong("choices must be a list of strings, and in the place of a schema")
        return {"type": "string", "enum": words}, _same
    if schema is None:
        return {"type": "string"}, _same
    if isinstance(schema, Mapping):
        return schema, _same
    return _of_type(schema)


def _of_type(schema: Any) -> tuple[Mapping[str, Any], Callable[[Any], Any]]:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        described = adapter.json_schema()
    except (PydanticUserError, TypeError, NameError):
        raise _wrong("it must be a JSON Schema, or a type that pydantic can describe") from None

    def convert(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            fields = {
                ".".join(str(part) for part in item["loc"]) or "answer": item["msg"]
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            }
            raise InvalidInputError("the answer does not fit the question's type", fields=fields) from None

    return described, convert


def _same(value: Any) -> Any:
    return value


def _wrong(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"the schema of a question: {problem}", fields={"schema": problem})
