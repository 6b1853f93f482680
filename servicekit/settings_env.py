"""From environment variables to a settings object and back to a table: the work behind ``servicekit.settings``.

Every problem is collected before anything is raised. Values of secrets appear nowhere.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from carrel.errors import StartupError
from servicekit.settings import DOCUMENTS_NAMES, SERVICES, SharedSettings, alias_env

__all__ = ["SettingRow", "Variable", "describe", "read_environment", "variables"]

S = TypeVar("S", bound=SharedSettings)
_PREFIX: Final = "CARREL_"
_DOCUMENTS_PREFIX: Final = "WEBSOCKET_"
# Of a documents' name without its prefix: one or two letters wrong, missing, too many or exchanged.
_NEARLY: Final = 0.85
_COLLECTIONS: Final = (list, tuple, set, frozenset)
_MASK: Final = "********"
_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]+)(?=@)")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable that a service reads: ``path`` leads to its field."""

    name: str
    alias: str
    path: tuple[str, ...]
    field: FieldInfo
    secret: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it goes by."""
        return (self.name, self.alias) if self.alias else (self.name,)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of ``carrel config``; values are texts, secrets masked."""

    name: str
    value: str
    default: str
    doc: str


def variables(cls: type[SharedSettings], service: str) -> list[Variable]:
    """Every variable of a service's settings class, shared ones first."""
    found: list[Variable] = []
    for field_name, field in cls.model_fields.items():
        shared = field_name in SharedSettings.model_fields
        head = _PREFIX if shared else f"{_PREFIX}{service.upper()}_"
        found += _expand(head + field_name.upper(), (field_name,), field)
    return found


def read_environment(cls: type[S], service: str, environ: Mapping[str, str]) -> S:
    """Build the settings object, or raise one StartupError that lists every problem."""
    if service.upper() not in SERVICES:
        raise ValueError(f"{service} is none of {', '.join(SERVICES)}")
    known = variables(cls, service)
    problems = [*_unknown(known, service.upper(), environ), *_mistyped(environ)]
    values: dict[str, Any] = {}
    for variable in known:
        try:
            text = _text_of(variable, environ)
            if text:
                _put(values, variable.path, _parse(variable, text))
        except ValueError as error:
            problems.append(str(error))
    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        problems += _explain(error, known, environ)
    else:
        if not problems:
            return settings
    raise _refusal(service, sorted(set(problems)))


def describe(settings: SharedSettings, service: str = "") -> list[SettingRow]:
    """The effective settings as rows (environment name, value, default, what it is), secrets masked."""
    rows = []
    for variable in variables(type(settings), service or _service_of(settings)):
        value: Any = settings
        for part in variable.path:
            value = getattr(value, part)
        name = f"{variable.name} ({variable.alias})" if variable.alias else variable.name
        rows.append(
            SettingRow(name, _shown(value, variable.secret), _default_of(variable), variable.field.description or "")
        )
    return rows


def _service_of(settings: SharedSettings) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(settings).__name__.removesuffix("Settings")).upper()


def _expand(name: str, path: tuple[str, ...], field: FieldInfo) -> Iterator[Variable]:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for inner_name, inner in kind.model_fields.items():
            yield from _expand(f"{name}__{inner_name.upper()}", (*path, inner_name), inner)
        return
    alias = next((mark.name for mark in field.metadata if isinstance(mark, alias_env)), "")
    yield Variable(name, alias, path, field, any(map(_is_secret, _leaves(kind))))


def _is_secret(kind: Any) -> bool:
    # A type of ours says so itself: text in which secrets may be among other things.
    return kind in (SecretStr, SecretBytes) or getattr(kind, "holds_secrets", False) is True


def _leaves(kind: Any) -> Iterator[Any]:
    parts = get_args(kind) if get_origin(kind) is not Literal else ()
    if not parts:
        yield kind
    for part in parts:
        yield from _leaves(part)


def _unknown(known: Iterable[Variable], own: str, environ: Mapping[str, str]) -> Iterator[str]:
    names = {name for variable in known for name in variable.names}
    others = tuple(f"{_PREFIX}{service}_" for service in SERVICES if service != own)
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in names or name.startswith(others):
            continue
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "remove it; `carrel config` lists the names there are"
        yield f"{name} is not a setting: {hint}"


def _mistyped(environ: Mapping[str, str]) -> Iterator[str]:
    ends = [name.removeprefix(_DOCUMENTS_PREFIX) for name in DOCUMENTS_NAMES]
    for name in sorted(environ):
        end = name.removeprefix(_DOCUMENTS_PREFIX)
        if end == name or end in ends:
            continue
        # Without the prefix, which would make any two of them alike.
        if close := difflib.get_close_matches(end, ends, n=1, cutoff=_NEARLY):
            yield f"{name} is not a setting: did you mean {_DOCUMENTS_PREFIX}{close[0]}?"


def _text_of(variable: Variable, environ: Mapping[str, str]) -> str:
    given = {name: environ[name].strip() for name in variable.names if environ.get(name, "").strip()}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"{variable.name} and {variable.alias} are two names of one setting and differ: set one of them"
        )
    return next(iter(given.values()), "")


def _parse(variable: Variable, text: str) -> Any:
    kinds = {get_origin(kind) or kind for kind in _alternatives(variable.field.annotation)}
    if kinds & {dict, Mapping} or (kinds & set(_COLLECTIONS) and text.startswith("[")):
        try:
            return orjson.loads(text)
        except ValueError:
            raise ValueError(f"{variable.name} is not JSON: write e.g. {_example(kinds)}") from None
    if kinds & set(_COLLECTIONS):
        return [part.strip() for part in text.split(",") if part.strip()]
    if text.lower() == "none" and type(None) in kinds:
        return None
    return text


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _example(kinds: set[Any]) -> str:
    return '{"name": "value"}' if kinds & {dict, Mapping} else '["one", "two"]'


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _explain(error: ValidationError, known: Iterable[Variable], environ: Mapping[str, str]) -> Iterator[str]:
    by_path = {variable.path: variable for variable in known}
    for problem in error.errors(include_url=False, include_context=False):
        location = tuple(part for part in problem["loc"] if isinstance(part, str))
        variable = next((by_path[location[:n]] for n in range(len(location), 0, -1) if location[:n] in by_path), None)
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be ", "write ", 1)
        if problem["type"] == "default_factory_not_called":
            continue  # follows from another one that is in the list
        if variable is None:
            yield message
        elif problem["type"] == "missing":
            yield f"{variable.name} is required: {variable.field.description or 'set it'}"
        else:
            yield _wrong(variable, message, environ)


def _wrong(variable: Variable, message: str, environ: Mapping[str, str]) -> str:
    name = next((name for name in variable.names if environ.get(name, "").strip()), variable.name)
    given = _MASK if variable.secret else _shown(environ.get(name, ""), secret=False)[:80]
    default = _default_of(variable)
    example = f", for example {default}" if default and not variable.secret else ""
    return f"{name}={given} is wrong: {message}{example}"


def _default_of(variable: Variable) -> str:
    field = variable.field
    if field.is_required() or field.default_factory is not None:
        return ""
    return _shown(field.default, variable.secret)


def _shown(value: Any, secret: bool) -> str:
    if value is None:
        return ""
    if secret:
        return _MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _COLLECTIONS):
        return ",".join(_shown(item, secret) for item in value)
    if isinstance(value, Mapping):
        return orjson.dumps({str(k): str(v) for k, v in value.items()}).decode()
    return _PASSWORD_IN_URL.sub(rf"\1:{_MASK}", str(value))


def _refusal(service: str, problems: list[str]) -> StartupError:
    count = "1 setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
    return StartupError(
        f"{count}:\n" + "\n".join(f"  - {problem}" for problem in problems),
        advice=f"correct what is listed; `carrel config` shows every setting of {service.lower()} and its default",
        phase="CONFIGURATION",
        what="settings that are all known and valid",
        problems=problems,
    )
