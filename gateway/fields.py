"""Fields of a JSON object that a client sent: which there may be, which must be there, of what kind. Told all at once.

Not for values' meaning beyond their form, and never quoting a value: messages name fields only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from carrel.errors import InvalidRequestError
from carrel.frozen import MAX_NESTING, nests_too_deep

__all__ = ["ID", "OBJECT", "TEXT", "Rule", "check_fields"]

E = TypeVar("E", bound=InvalidRequestError)

_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "an array of strings",
    object: "any JSON value",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One field: its kind, whether it must be there, the longest text or list, its only values when it has few."""

    kind: type
    required: bool = False
    longest: int = 0
    least: int = 0
    choices: tuple[str, ...] = ()

    def problem(self, value: object) -> str:
        """What is wrong with the value; empty when nothing is."""
        if self.kind is object:
            return ""
        if type(value) is not self.kind:
            return f"must be {_NAMES[self.kind]}"
        if isinstance(value, list) and not all(type(item) is str and item for item in value):
            return "must be an array of strings, none of them empty"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, str | list):
            return self._length_problem(value)
        return f"must be {self.least} or more" if isinstance(value, int) and value < self.least else ""

    def _length_problem(self, value: str | list[Any]) -> str:
        unit = "characters" if isinstance(value, str) else "items"
        if len(value) < self.least:
            return "must not be empty" if self.least == 1 else f"needs {self.least} {unit} or more"
        if self.longest and len(value) > self.longest:
            return f"has {len(value)} {unit}; at most {self.longest} are allowed"
        return ""


TEXT: Final = Rule(str)
ID: Final = Rule(str, longest=128, least=1)
OBJECT: Final = Rule(dict)


def check_fields(
    body: object, rules: Mapping[str, Rule], what: str, error: type[E] | type[InvalidRequestError] = InvalidRequestError
) -> dict[str, Any]:
    """The fields of ``body`` that are not null, after checking all of them.

    Args:
        body: What was parsed from the client's JSON.
        rules: Every field that there may be.
        what: What the object is, for the message.
        error: The class to raise.

    Raises:
        InvalidRequestError: It is no object, or a field is unknown, missing or wrong; ``fields`` names each.
    """
    if not isinstance(body, dict):
        raise error(f"{what} must be a JSON object")
    problems: dict[str, str] = {}
    for name in body:
        if name not in rules:
            # A name is the client's text: shown only as far as it can be one of ours misspelled.
            problems[name[:40]] = "is not known here"
    for name, rule in rules.items():
        value = body.get(name)
        if value is None:
            if rule.required:
                problems[name] = "is required"
        elif problem := rule.problem(value):
            problems[name] = problem
    if problems:
        listed = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        known = ", ".join(rules) or "none"
        raise error(f"{what}: {listed}", advice=f"fields of {what} are: {known}", fields=problems)
    deep = [name for name, value in body.items() if nests_too_deep(value)]
    if deep:
        problem = f"nests more than {MAX_NESTING} levels deep"
        raise InvalidRequestError(
            f"{what}: {deep[0]} {problem}",
            advice="send flatter values, or the inner ones as JSON text",
            fields=dict.fromkeys(deep, problem),
        )
    return {name: value for name, value in body.items() if value is not None}
