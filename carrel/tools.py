"""``@tool``: an async function that an agent may call by name, with its permission, time limit and argument schema.

Not the dispatcher: checking, auditing and running a call is the host's work. The schema comes from the function's
signature by way of pydantic, which is loaded when a schema is first needed.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from carrel.errors import InvalidConfigurationError, ToolArgumentsError
from carrel.frozen import JSON

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["DEFAULT_TIMEOUT_S", "Tool", "tool"]

DEFAULT_TIMEOUT_S: Final = 30.0
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_PERMISSION: Final = re.compile(r"[!-.0-~]{1,128}")

ToolFunction = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Tool:
    """A declared tool. Made by ``@tool``; still callable like the function it wraps, which skips every check.

    ``wants_context``: the body's first parameter is the ``AgentContext`` of the call, passed by the runtime and not
    part of the arguments. ``host``: the body runs in the service, out of the worker's reach. ``approval``: the user is
    asked before each call, and the run waits for the answer. ``server``: the MCP server that offers it; empty for an
    agent's own.
    """

    name: str
    description: str
    permission: str | None
    timeout_s: float
    host: bool
    wants_context: bool
    func: ToolFunction
    approval: bool = False
    server: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        return self.func(*args, **kwargs)

    @functools.cached_property
    def input_schema(self) -> Mapping[str, JSON]:
        """JSON Schema of the arguments: an object with one property per parameter, nothing else allowed.

        Raises:
            InvalidConfigurationError: An annotation cannot be described; use the types of JSON, or pydantic's.
        """
        schema: dict[str, Any] = self._model.model_json_schema()
        schema.pop("title", None)
        return schema

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the body takes them: defaults filled in, values converted to the annotated types.

        Raises:
            ToolArgumentsError: Some are missing, unknown or wrong; ``fields`` names each, values are never quoted.
        """
        from pydantic import ValidationError

        if not isinstance(arguments, Mapping):
            raise ToolArgumentsError(f"{self.name}: arguments must be a JSON object", tool_name=self.name)
        try:
            model = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            fields = {
                ".".join(str(part) for part in item["loc"]) or "arguments": item["msg"]
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            }
            summary = "; ".join(f"{name}: {problem}" for name, problem in sorted(fields.items()))
            raise ToolArgumentsError(f"{self.name}: {summary}", fields=fields, tool_name=self.name) from None
        return {name: getattr(model, f"p_{name}") for name in self._parameters}

    @functools.cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return _parameters(self.func, skip_context=self.wants_context)

    @functools.cached_property
    def _model(self) -> type[BaseModel]:
        from pydantic import ConfigDict, Field, create_model
        from pydantic.errors import PydanticUserError

        try:
            hints = typing.get_type_hints(self.func, include_extras=True)
            # Fields are prefixed, so that a parameter may have any name (``schema``, ``_id``…); the alias is its own.
            fields: dict[str, Any] = {
                f"p_{name}": (
                    hints.get(name, Any),
                    Field(default=... if parameter.default is parameter.empty else parameter.default, alias=name),
                )
                for name, parameter in self._parameters.items()
            }
            model: type[BaseModel] = create_model(
                self.name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
            )
            model.model_json_schema()
        except (PydanticUserError, NameError, TypeError) as error:
            raise InvalidConfigurationError(
                f"tool {self.name}: its parameters' annotations give no JSON Schema ({type(error).__name__})",
                advice="annotate parameters with JSON types, dataclasses or pydantic models",
            ) from error
        return model


@overload
def tool(function: ToolFunction, /) -> Tool: ...
@overload
def tool(
    *,
    permission: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    host: bool = False,
    approval: Literal["user"] | None = None,
    description: str | None = None,
    name: str | None = None,
) -> Callable[[ToolFunction], Tool]: ...


def tool(
    function: ToolFunction | None = None,
    /,
    *,
    permission: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    host: bool = False,
    approval: Literal["user"] | None = None,
    description: str | None = None,
    name: str | None = None,
) -> Tool | Callable[[ToolFunction], Tool]:
    """Declare an async function as a tool, with or without parentheses.

    Args:
        permission: What the user must be allowed, for example ``trace:read``; None for nothing.
        timeout_s: Seconds one call may take.
        host: Run the body in the service. For what guards data or credentials; a worker cannot reach around it.
        approval: ``"user"``: ask the user before each call; the run waits, holding nothing, until there is an answer.
        description: For people and models; the docstring's first paragraph by default.
        name: The function's name by default.

    Raises:
        InvalidConfigurationError: The function is not async, takes ``*args`` or ``**kwargs``, or a setting is wrong.
    """

    def declare(func: ToolFunction) -> Tool:
        label = str(name or getattr(func, "__name__", "tool"))
        _check_declaration(func, label, permission, timeout_s)
        if approval not in (None, "user"):
            raise InvalidConfigurationError(f"tool {label[:64]} has an approval other than 'user' or None")
        wants_context = _wants_context(func)
        _parameters(func, skip_context=wants_context)
        text = description if description is not None else (inspect.getdoc(func) or "").split("\n\n", 1)[0]
        return Tool(
            label, " ".join(text.split()), permission, float(timeout_s), host, wants_context, func, approval == "user"
        )

    return declare if function is None else declare(function)


def _check_declaration(func: object, label: str, permission: object, timeout_s: object) -> None:
    problem = ""
    if not inspect.iscoroutinefunction(func):
        problem = "must be an async function (async def); put blocking work inside it into asyncio.to_thread"
    elif not _NAME.fullmatch(label):
        problem = "must have a name of letters, digits, '_', '.' and '-', beginning with a letter, at most 64 long"
    elif permission is not None and not (isinstance(permission, str) and _PERMISSION.fullmatch(permission)):
        problem = "has a permission that is not printable ASCII without space and '/'"
    elif isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        problem = "needs a timeout_s above 0"
    if problem:
        raise InvalidConfigurationError(f"tool {label[:64]} {problem}")


def _wants_context(func: ToolFunction) -> bool:
    first = next(iter(inspect.signature(func).parameters.values()), None)
    if first is None:
        return False
    annotation = first.annotation
    # By name, because the annotation is a string under `from __future__ import annotations` and may be imported
    # for type checking only.
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.rpartition(".")[2] == "AgentContext" or (annotation is first.empty and first.name == "ctx")


def _parameters(func: ToolFunction, *, skip_context: bool) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for index, (name, parameter) in enumerate(inspect.signature(func).parameters.items()):
        if skip_context and index == 0:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidConfigurationError(
                f"tool {getattr(func, '__name__', '')}: parameter {name} cannot be given by name",
                advice="declare each argument as an ordinary parameter; *args, **kwargs and '/' have no schema",
            )
        found[name] = parameter
    return found
