"""``SchemaTool``: a tool whose arguments are described by a JSON Schema at hand, not by a function's signature.

For tools that come from elsewhere, such as an MCP server's. Agents' own are made by ``@tool``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from carrel.errors import InvalidConfigurationError, ToolArgumentsError
from carrel.frozen import JSON, FrozenDict, thaw
from carrel.tools import Tool, ToolFunction

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

__all__ = ["MAX_SCHEMA_BYTES", "SchemaTool"]

MAX_SCHEMA_BYTES: Final = 64 * 1024
_MAX_PROBLEMS: Final = 10
# Matching a pattern of a stranger's can take for ever, in the service's only loop: patterns are the server's to check.
_WITH_PATTERNS: Final = ("pattern", "patternProperties")
# They match names against the patterns of patternProperties.
_BESIDE_PATTERNS: Final = ("additionalProperties", "unevaluatedProperties")


@dataclass(frozen=True)
class SchemaTool(Tool):
    """A tool with a given schema, an object's. Its ``func`` takes the context first when ``wants_context``, then the
    arguments by name.

    Arguments are checked against the schema, except for regular expressions, and pass unchanged: no defaults are
    filled in and no values converted. A schema refers to itself only; nothing is fetched. ``server_tool``: what the
    tool is called where it comes from.
    """

    schema: Mapping[str, JSON] = field(default_factory=FrozenDict)
    server_tool: str = ""

    def bound_to(self, func: ToolFunction) -> SchemaTool:
        """The same tool with another body."""
        bound = dataclasses.replace(self, func=func)
        # What was made of the schema is dear, and the same.
        bound.__dict__.update(
            {name: self.__dict__[name] for name in ("_validator", "input_schema") if name in vars(self)}
        )
        return bound

    @functools.cached_property
    def input_schema(self) -> Mapping[str, JSON]:
        """The schema as it was given.

        Raises:
            InvalidConfigurationError: It is no JSON Schema of an object, or too large.
        """
        _ = self._validator
        return self.schema

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, when they fit the schema.

        Raises:
            ToolArgumentsError: They do not; ``fields`` names what is wrong, values are never quoted.
        """
        if not isinstance(arguments, Mapping):
            raise ToolArgumentsError(f"{self.name}: arguments must be a JSON object", tool_name=self.name)
        plain: dict[str, Any] = thaw(arguments)
        try:
            errors = list(itertools.islice(self._validator.iter_errors(plain), _MAX_PROBLEMS))
        except Exception as error:  # noqa: BLE001  (a reference that leads nowhere, or in a circle: many types say so)
            problem = f"its schema cannot be applied ({type(error).__name__})"
            raise ToolArgumentsError(f"{self.name}: {problem}", tool_name=self.name) from None
        if errors:
            fields = dict(item for error in errors for item in _told(error))
            summary = "; ".join(f"{name}: {problem}" for name, problem in sorted(fields.items()))
            raise ToolArgumentsError(f"{self.name}: {summary}", fields=fields, tool_name=self.name)
        return plain

    @functools.cached_property
    def _validator(self) -> Validator:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, extend, validator_for
        from referencing import Registry

        schema: dict[str, Any] = thaw(self.schema)
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise self._wrong(f"is larger than {MAX_SCHEMA_BYTES} bytes")
        base: Any = validator_for(schema, default=Draft202012Validator)
        try:
            base.check_schema(schema)
        except (SchemaError, RecursionError) as error:
            raise self._wrong("is not valid JSON Schema") from error
        if schema.get("type", "object") != "object":
            raise self._wrong("is not of an object")
        unchecked = _WITH_PATTERNS + (_BESIDE_PATTERNS if '"patternProperties"' in text else ())
        narrowed: Any = extend  # untyped in its package
        made: Validator = narrowed(base, dict.fromkeys(unchecked, _anything))(schema, registry=Registry())
        return made

    def _wrong(self, problem: str) -> InvalidConfigurationError:
        return InvalidConfigurationError(
            f"tool {self.name}: the schema of its arguments {problem}", advice="correct it where the tool is offered"
        )


def _anything(*_args: object) -> Iterator[ValidationError]:
    return iter(())


def _told(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Where and what, without the values given: the schema's words only."""
    where = ".".join(str(part)[:64] for part in itertools.islice(error.absolute_path, 8)) or "arguments"
    rule, expected = str(error.validator), error.validator_value
    if rule == "required" and isinstance(error.instance, Mapping) and isinstance(expected, list):
        prefix = "" if where == "arguments" else f"{where}."
        yield from ((f"{prefix}{name}", "is required") for name in expected if name not in error.instance)
    elif rule == "additionalProperties" and isinstance(error.instance, Mapping) and isinstance(error.schema, Mapping):
        known = error.schema.get("properties", {})
        prefix = "" if where == "arguments" else f"{where}."
        yield from ((f"{prefix}{str(name)[:64]}", "is not known") for name in error.instance if name not in known)
    elif rule == "type":
        kinds = expected if isinstance(expected, list) else [expected]
        yield where, f"must be of type {' or '.join(str(kind) for kind in kinds)}"
    else:
        yield where, f"breaks the rule {rule} {_short(expected)}"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."
