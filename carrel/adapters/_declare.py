"""An agent class made of another library's agent: where that is found, and what the class declares.

Not the running of it: each library's own module gives the ``run``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypedDict, TypeVar

from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.errors import InvalidConfigurationError
from carrel.frozen import JSON
from carrel.tools import Tool

__all__ = ["Declarations", "Run", "Source", "declare", "need"]

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


def need(extra: str, *packages: str) -> None:
    """Look whether a library is installed, without loading it.

    Raises:
        InvalidConfigurationError: It is not; the error names the extra that has it.
    """
    for package in packages:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise InvalidConfigurationError(
                f"{package} is not installed, which agents of this kind need",
                advice=f"pip install 'carrel[{extra}]'",
                extra=extra,
            )


class Source(Generic[T]):
    """Where the library's agent comes from: itself, ``"module:attribute"``, or a function without arguments.

    The last two are looked up in the worker, at each attempt: what is made there finds ``OPENAI_BASE_URL`` and
    ``OPENAI_API_KEY`` in its environment, as clients want them that look for them when they are made; and the service
    itself need not load the library.

    Args:
        library: What the agent is of, for errors.
        kind: Gives what the library's agents are instances of; loads the library.

    Raises:
        InvalidConfigurationError: It is none of these.
    """

    def __init__(self, given: object, library: str, kind: Callable[[], type[T]]) -> None:
        self._given = given
        self._library = library
        self._kind = kind
        if isinstance(given, str):
            module, _, attribute = given.partition(":")
            if not module or not attribute:
                raise self._wrong(f"{given!r} does not name one", "write 'module:attribute'")
        elif isinstance(given, type) or not (callable(given) or isinstance(given, kind())):
            told = given.__name__ if isinstance(given, type) else f"a {type(given).__name__}"
            raise self._wrong(f"{told} is none", "give the agent, 'module:attribute', or a function that makes it")

    def get(self) -> T:
        """The agent.

        Raises:
            InvalidConfigurationError: There is none where it should be.
        """
        kind = self._kind()
        found: object = self._given
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part, None)
        if not isinstance(found, kind) and callable(found) and not isinstance(found, type):
            found = found()
        if not isinstance(found, kind):
            told = self._given if isinstance(self._given, str) else "the function"
            raise self._wrong(f"{told} gives a {type(found).__name__}", "correct what it names or returns")
        return found

    def _wrong(self, problem: str, advice: str) -> InvalidConfigurationError:
        return InvalidConfigurationError(f"this needs an agent of {self._library}: {problem}", advice=advice)


def declare(run: Run, name: str, description: str, declarations: Declarations, *preload: str) -> type[Agent]:
    """The agent class, defined in the module that called the caller of this.

    Args:
        preload: The modules that load the library: once for all workers.

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
        "preload": (*preload, *declarations.get("preload", ())),
        "run": run_it,
        # As for any class: who loads an author's module takes those that are defined in it.
        "__module__": sys._getframe(2).f_globals.get("__name__", __name__),  # noqa: SLF001
        "__doc__": description or None,
    }
    title = "".join(part.capitalize() for part in name.replace("-", "_").split("_")) or "Adapted"
    return type(title, (Agent,), namespace)
