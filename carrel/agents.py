"""What an agent author writes: ``Agent`` and the values that go in and out of its ``run``.

Not the running of it: ``carrel.agent_context`` is what ``run`` is given, ``carrel.agent_runtime`` calls it, and
services decide when.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from carrel.errors import InvalidConfigurationError, InvalidRequestError, PlanError
from carrel.frozen import JSON, FrozenDict, freeze_map, thaw
from carrel.tools import Tool

if TYPE_CHECKING:
    from carrel.agent_context import AgentContext

__all__ = [
    "DEPENDENCIES",
    "MAX_STAGES",
    "Agent",
    "Isolation",
    "Message",
    "Plan",
    "Request",
    "check_agent_name",
    "collect_wrong_classes",
    "declaration_problems",
]

MAX_STAGES: Final = 64
DEPENDENCIES: Final = frozenset({"llm", "tools", "database"})
Isolation = Literal["process", "task"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_SERVER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# Where wrong classes go instead of being refused, while somebody collects them.
_wrong_classes: ContextVar[list[type[Agent]] | None] = ContextVar("carrel_wrong_agent_classes", default=None)


def check_agent_name(name: object) -> str:
    """Return ``name`` when it can name an agent: ``[a-z][a-z0-9_-]*``, at most 64 characters.

    Raises:
        InvalidRequestError: It cannot.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    problem = "must be 1 to 64 characters of a-z, 0-9, '_' and '-', beginning with a letter"
    raise InvalidRequestError(f"an agent's name {problem}", fields={"agent_name": problem})


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the thread's conversation so far."""

    role: Literal["user", "assistant"]
    text: str
    run_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"role": self.role, "text": self.text, "run_id": self.run_id}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """What ``to_dict`` gave.

        Raises:
            InvalidRequestError: The role or the text is wrong.
        """
        role, text = data.get("role"), data.get("text")
        if (role != "user" and role != "assistant") or not isinstance(text, str):  # noqa: PLR1714  (narrows the type)
            raise InvalidRequestError("a message of the history needs a role (user, assistant) and a text")
        return cls(role, text, str(data.get("run_id", "")))


@dataclass(frozen=True, slots=True)
class Request:
    """What an agent is asked: the user's words, parameters, and the results of the stages before it.

    All maps are read-only copies, and lists in them tuples (``carrel.frozen.thaw`` copies out). ``attempt`` is
    above 1 when a stage is tried again: side effects may have happened.
    """

    message: str
    params: Mapping[str, JSON] = field(default_factory=FrozenDict)
    results: Mapping[str, Mapping[str, JSON]] = field(default_factory=FrozenDict)
    history: tuple[Message, ...] = ()
    attempt: int = 1

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "params", freeze_map(self.params, "params"))
        put(self, "results", freeze_map(self.results, "results"))
        put(self, "history", tuple(self.history))
        message: object = self.message
        if not isinstance(message, str) or type(self.attempt) is not int or self.attempt < 1:
            raise InvalidRequestError("a request needs a message (text) and an attempt from 1")

    def to_dict(self) -> dict[str, Any]:
        """As mutable JSON values."""
        return {
            "message": self.message,
            "params": thaw(self.params),
            "results": thaw(self.results),
            "history": [message.to_dict() for message in self.history],
            "attempt": self.attempt,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        """What ``to_dict`` gave, checked again."""
        history = tuple(Message.from_dict(item) for item in data.get("history", ()))
        return cls(
            data.get("message", ""), data.get("params", {}), data.get("results", {}), history, data.get("attempt", 1)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a planning agent (the supervisor) returns: the stages to run, in order.

    ``params`` are merged into the request's for these stages; ``reason`` says in a sentence why this plan.

    Raises:
        PlanError: No stages, too many, one twice, or a name that can be no agent's.
    """

    stages: tuple[str, ...]
    params: Mapping[str, JSON] = field(default_factory=FrozenDict)
    reason: str = ""

    def __post_init__(self) -> None:
        given: object = self.stages
        if not isinstance(given, list | tuple):
            raise PlanError("stages must be a list of agents' names")
        stages = tuple(given)
        if not 1 <= len(stages) <= MAX_STAGES:
            raise PlanError(f"a plan has 1 to {MAX_STAGES} stages, not {len(stages)}")
        try:
            for stage in stages:
                check_agent_name(stage)
            params = freeze_map(self.params, "params")
        except InvalidRequestError as error:
            raise PlanError(error.message, fields=dict(error.fields)) from None
        if len(set(stages)) != len(stages):
            raise PlanError("a plan names one stage twice", advice="name each agent once")
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "params", params)

    def to_dict(self) -> dict[str, Any]:
        """As mutable JSON values."""
        return {"stages": list(self.stages), "params": thaw(self.params), "reason": self.reason}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """What ``to_dict`` gave, checked again.

        Raises:
            PlanError: It is no plan.
        """
        return cls(data.get("stages", ()), data.get("params", {}), str(data.get("reason", "")))


class Agent:
    """Base of every agent class. An instance serves one attempt of one stage and is never shared.

    Class attributes declare it; ``run`` does the work::

        class DataAgent(Agent):
            name = "data"
            tools = (load_trace,)

            async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
                await ctx.thinking("Profiling the trace")
                return await ctx.call_tool("load_trace", path=request.params["trace"])

    A class that gives ``name`` is checked where it is defined.

    Raises:
        InvalidConfigurationError: From the class statement, when a declaration is wrong; the message says which.
    """

    name: ClassVar[str]
    """Unique in the registry: ``[a-z][a-z0-9_-]*``."""
    description: ClassVar[str] = ""
    """One sentence for people and planners."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Names of the agents whose results this one needs; they run before it."""
    tools: ClassVar[tuple[Tool, ...]] = ()
    """The tools it may call."""
    mcp: ClassVar[tuple[str, ...]] = ()
    """Names of MCP servers, as the operator has set them up, whose tools it may call too; ``"*"`` for all there are."""
    fallback: ClassVar[str | None] = None
    """The agent that answers when this one fails."""
    dependencies: ClassVar[tuple[str, ...]] = ()
    """Of ``llm``, ``tools``, ``database``: what must be there before an instance is created."""
    isolation: ClassVar[Isolation] = "process"
    """``process``: a process of its own, which ends with the attempt; ``task``: in the service's loop, for those who
    want density: one that blocks its thread holds up every other task. ``ListAgents`` says what is in effect."""
    processes: ClassVar[bool] = False
    """Whether its process may start others (subprocess, multiprocessing, fork); they end with it. Otherwise refused."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports only when it runs, and that take long: imported once, ahead of need, for all its
    processes. One that is not installed is passed over; one that starts threads cannot be loaded so, and is named."""
    plans: ClassVar[bool] = False
    """Whether the result is a ``Plan``, which execution checks and runs."""
    idle_timeout_s: ClassVar[float | None] = None
    """Seconds without an event, tool or model activity; None for the operator's default."""
    timeout_s: ClassVar[float | None] = None
    """Seconds one attempt may take on the wall; None for the operator's default."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _check_class(cls)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON] | Plan:
        """Do the work and return the result: a JSON object, or a ``Plan`` where ``plans`` is set."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")


@contextmanager
def collect_wrong_classes() -> Iterator[list[type[Agent]]]:
    """While the block lasts, wrong agent classes are put into the list instead of ending the module that defines them.

    For who loads modules and wants to tell every mistake at once (``declaration_problems``), not only the first.
    """
    found: list[type[Agent]] = []
    token = _wrong_classes.set(found)
    try:
        yield found
    finally:
        _wrong_classes.reset(token)


def declaration_problems(cls: type[Agent]) -> list[str]:
    """What is wrong with a class's declarations, each with what to write; empty when nothing is."""
    return [problem for name, check in _CHECKS.items() if (problem := check(cls, getattr(cls, name, None)))]


def _check_class(cls: type[Agent]) -> None:
    problems = declaration_problems(cls)
    if not problems:
        return
    if (collected := _wrong_classes.get()) is not None:
        collected.append(cls)
        return
    raise InvalidConfigurationError(
        f"agent class {cls.__qualname__}: {'; '.join(problems)}", advice="correct the class where it is defined"
    )


def _bad_name(cls: type[Agent], value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return ""
    return "name must be 1 to 64 characters of a-z, 0-9, '_' and '-', beginning with a letter"


def _bad_names(field_name: str, value: object) -> str:
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        return f"{field_name} must be a tuple of names; for one name write ('name',)"
    return f"{field_name} names something twice" if len(set(value)) != len(value) else ""


def _bad_requires(cls: type[Agent], value: object) -> str:
    problem = _bad_names("requires", value)
    return problem or ("it requires itself" if getattr(cls, "name", None) in cls.requires else "")


def _bad_dependencies(cls: type[Agent], value: object) -> str:
    problem = _bad_names("dependencies", value)
    if problem or DEPENDENCIES.issuperset(cls.dependencies):
        return problem
    return f"dependencies may be {', '.join(sorted(DEPENDENCIES))}"


def _bad_tools(cls: type[Agent], value: object) -> str:
    if not isinstance(value, tuple) or not all(isinstance(item, Tool) for item in value):
        return "tools must be a tuple of functions decorated with @tool; for one tool write (my_tool,)"
    names = [item.name for item in value]
    return "two tools have one name" if len(set(names)) != len(names) else ""


def _bad_servers(cls: type[Agent], value: object) -> str:
    problem = _bad_names("mcp", value)
    if problem or all(name == "*" or _SERVER_NAME.fullmatch(name) for name in cls.mcp):
        return problem
    return "mcp must hold names of MCP servers (a-z, 0-9, '_' and '-', beginning with a letter), or '*' for all"


def _bad_seconds(cls: type[Agent], value: object) -> str:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")):
        return ""
    return "idle_timeout_s and timeout_s must be a positive number of seconds, or None"


_CHECKS: Final[Mapping[str, Callable[[type[Agent], object], str]]] = {
    "name": _bad_name,
    "requires": _bad_requires,
    "dependencies": _bad_dependencies,
    "tools": _bad_tools,
    "mcp": _bad_servers,
    "processes": lambda cls, value: "" if isinstance(value, bool) else "processes must be True or False",
    "preload": lambda cls, value: _bad_names("preload", value),
    "isolation": lambda cls, value: "" if value in ("process", "task") else "isolation must be 'process' or 'task'",
    "fallback": lambda cls, value: (
        "" if value is None or (isinstance(value, str) and value != cls.name) else "fallback must name another agent"
    ),
    "idle_timeout_s": _bad_seconds,
    "timeout_s": _bad_seconds,
    "run": lambda cls, value: (
        "" if inspect.iscoroutinefunction(value) else "run is not async; write `async def run(self, ctx, request)`"
    ),
}
