"""An agent class made of another library's agent: where that is found, and what the class declares.

Not the running of it: each library's own module gives the ``run``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Generic, TypedDict, TypeVar

from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.errors import InvalidConfigurationError
from carrel.frozen import JSON
from carrel.tools import Tool

__all__ = ["Declarations", "Run", "Source", "declare", "extra"]

T = TypeVar("T")
Run = Callable[[AgentContext, Request], Awaitable[Mapping[str, JSON]]]

_NEEDS_MODEL: Final = ("llm",)


class Declarations(TypedDict, total=False):
    """What else an agent class may declare, as in docs/agents.md. ``dependencies``: ``("llm",)`` unless given."""

    requires: tuple[str, ...]
    tools: tuple[Tool, ...]
    mcp: tuple[str, ...]
    fallback: str | None
    dependencies: tuple[str, ...]
    processes: bool
    preload: tuple[str, ...]
    idle_timeout_s: float | None
    timeout_s: float | None


@contextmanager
def extra(name: str, *packages: str) -> Iterator[None]:
    """Around the imports of a library: when one of its packages is missing, the error names the extra that has it.

    Raises:
        InvalidConfigurationError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        raise InvalidConfigurationError(
            f"{error.name} is not installed, which agents of this kind need",
            advice=f"pip install 'carrel[{name}]'",
            extra=name,
        ) from error


class Source(Generic[T]):
    """Where the library's agent comes from: itself, ``"module:attribute"``, or a function without arguments.

    The last two are looked up in the worker, at each attempt: what is made there finds ``OPENAI_BASE_URL`` and
    ``OPENAI_API_KEY`` in its environment, as clients want them that look for them when they are made.

    Args:
        kind: What the library's agents are instances of.

    Raises:
        InvalidConfigurationError: It is none of these.
    """

    def __init__(self, given: object, kind: type[T] | tuple[type[T], ...]) -> None:
        self._given = given
        self._kind = kind
        if isinstance(given, str):
            module, _, attribute = given.partition(":")
            if not module or not attribute:
                raise self._wrong(f"{given!r} does not name one", "write 'module:attribute'")
        elif not isinstance(given, kind) and not callable(given):
            raise self._wrong(f"a {type(given).__name__} is none", "give the agent, 'module:attribute', or a function")

    def get(self) -> T:
        """The agent.

        Raises:
            InvalidConfigurationError: There is none where it should be.
        """
        found: object = self._given
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part, None)
        if not isinstance(found, self._kind) and callable(found):
            found = found()
        if not isinstance(found, self._kind):
            told = self._given if isinstance(self._given, str) else "the function"
            raise self._wrong(f"{told} gives a {type(found).__name__}", "correct what it names or returns")
        return found

    def _wrong(self, problem: str, advice: str) -> InvalidConfigurationError:
        kinds = self._kind if isinstance(self._kind, tuple) else (self._kind,)
        return InvalidConfigurationError(
            f"an adapter needs a {kinds[0].__module__.partition('.')[0]} agent: {problem}", advice=advice
        )


def declare(run: Run, name: str, description: str, declarations: Declarations) -> type[Agent]:
    """The agent class, defined in the module that called the caller of this.

    Raises:
        InvalidConfigurationError: A declaration is wrong.
    """
    if unknown := set(declarations) - set(Declarations.__annotations__):
        raise InvalidConfigurationError(
            f"an adapted agent cannot declare {', '.join(sorted(unknown))}",
            advice=f"what it may: {', '.join(Declarations.__annotations__)}",
        )

    async def run_it(self: Agent, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        return await run(ctx, request)

    namespace: dict[str, Any] = {
        "name": name,
        "description": description,
        "dependencies": _NEEDS_MODEL,
        **declarations,
        "run": run_it,
        # As for any class: who loads an author's module takes those that are defined in it.
        "__module__": sys._getframe(2).f_globals.get("__name__", __name__),  # noqa: SLF001
        "__doc__": description or None,
    }
    title = "".join(part.capitalize() for part in name.replace("-", "_").split("_")) or "Adapted"
    return type(title, (Agent,), namespace)
