"""``AgentClassRegistry``: every agent class this process can run, checked once at the start and frozen from then on.

Not the loading of modules (``loading``), and no instances: those are made anew for every attempt.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from carrel.agents import Agent, Isolation, declaration_problems
from carrel.doctor_names import DOCTOR_AGENT
from carrel.errors import CarrelError, StartupError, UnknownAgentError
from carrel.tools import Tool
from services.agent_instance.domain.loading import Found, LoadedClass, Problem, load_classes, wrong_sources

__all__ = ["AgentClassRegistry", "AgentEntry"]


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """One agent class with its declarations as they were at the start; later changes to the class do not count."""

    name: str
    cls: type[Agent]
    source: str
    file: str
    description: str
    requires: tuple[str, ...]
    tools: Mapping[str, Tool]
    """Its own; those of ``servers`` are theirs to say, and may change while the process lives."""
    servers: tuple[str, ...]
    """MCP servers whose tools it gets too."""
    fallback: str | None
    dependencies: tuple[str, ...]
    isolation: Isolation
    processes: bool
    preload: tuple[str, ...]
    plans: bool
    idle_timeout_s: float | None
    timeout_s: float | None


class AgentClassRegistry(Mapping[str, AgentEntry]):
    """An immutable mapping from an agent's name to its entry. Make it with ``load`` or ``of``."""

    __slots__ = ("_digest", "_entries")
    _digest: str
    _entries: Mapping[str, AgentEntry]

    def __init__(self, found: Found, servers: Mapping[str, str] | None = None) -> None:
        """Check and freeze.

        Args:
            servers: The MCP servers there are, each with a hash of how it is set up.

        Raises:
            StartupError: A source could not be loaded, or a class breaks a rule. All problems at once, each with its
                class, file and what to do.
        """
        known = dict(sorted((servers or {}).items()))
        entries, problems = _judged(found, tuple(known))
        if problems:
            raise _startup_error(problems)
        object.__setattr__(self, "_entries", MappingProxyType(entries))
        object.__setattr__(self, "_digest", _digest(entries.values(), known))

    @classmethod
    def load(cls, sources: Sequence[str] = (), servers: Mapping[str, str] | None = None) -> AgentClassRegistry:
        """Load the sources (see ``loading.load_classes``) and freeze what they define.

        Args:
            servers: The MCP servers there are, each with a hash of how it is set up.

        Raises:
            StartupError: A source cannot be loaded, or a class breaks a rule.
        """
        return cls(load_classes(sources), servers)

    @staticmethod
    def check(sources: Sequence[str]) -> None:
        """Look for what is wrong with sources without loading them, for whoever must not run an author's code.

        Raises:
            StartupError: What ``load`` would raise, of files that are not there or not Python and unknown modules.
        """
        if problems := wrong_sources(sources):
            raise _startup_error(problems)

    @classmethod
    def of(cls, *classes: type[Agent], servers: Mapping[str, str] | None = None) -> AgentClassRegistry:
        """A registry of classes at hand, for tests and embedding."""
        return cls(Found(tuple(LoadedClass(c, c.__module__, inspect.getfile(c)) for c in classes)), servers)

    @property
    def digest(self) -> str:
        """A hash over declarations and source files: two processes with the same one run the same agents.

        MCP servers count with how they are set up, not with the tools they offer, which are theirs to change.
        """
        return self._digest

    def entry(self, name: str) -> AgentEntry:
        """The entry called ``name``.

        Raises:
            UnknownAgentError: There is none.
        """
        found = self._entries.get(name)
        if found is None:
            known = ", ".join(self._entries)
            raise UnknownAgentError(
                f"there is no agent {name[:64]!r}", advice=f"use one of {known}", agent_name=name[:64]
            )
        return found

    def __getitem__(self, name: str) -> AgentEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _refuse(self, *args: object) -> NoReturn:
        raise TypeError("the agent registry is frozen once it is loaded; restart the process to change it")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse


def _judged(found: Found, servers: tuple[str, ...]) -> tuple[dict[str, AgentEntry], list[Problem]]:
    """The entries by name, in order, and everything that is wrong."""
    problems = list(found.problems)
    entries: dict[str, AgentEntry] = {}
    wrong: set[str] = set()
    for item in sorted(found.classes, key=lambda item: str(getattr(item.cls, "name", ""))):
        if of_class := [Problem(text) for text in _class_problems(item, servers)]:
            problems += of_class
            wrong.add(str(getattr(item.cls, "name", "")))
        else:
            entries.setdefault(item.cls.name, _entry(item, servers))
    problems += [Problem(text) for text in _name_problems(found.classes)]
    if not problems and not any(name != DOCTOR_AGENT for name in entries):
        problems.append(
            Problem("no agent is registered", "install one, or name a file or module in the setting `agents`")
        )
    if not found.problems:
        # Otherwise agents are missing, and links to them are not their authors' mistake.
        problems += [Problem(text) for entry in entries.values() for text in _link_problems(entry, entries, wrong)]
    return entries, problems


def _entry(item: LoadedClass, servers: tuple[str, ...]) -> AgentEntry:
    cls = item.cls
    return AgentEntry(
        name=cls.name,
        cls=cls,
        source=item.source,
        file=item.file,
        description=cls.description or _first_line(cls),
        requires=tuple(cls.requires),
        tools=MappingProxyType({tool.name: tool for tool in cls.tools}),
        servers=servers if "*" in cls.mcp else tuple(cls.mcp),
        fallback=cls.fallback,
        dependencies=tuple(cls.dependencies),
        isolation=cls.isolation,
        processes=cls.processes,
        preload=tuple(cls.preload),
        plans=cls.plans,
        idle_timeout_s=cls.idle_timeout_s,
        timeout_s=cls.timeout_s,
    )


def _first_line(cls: type[Agent]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _class_problems(item: LoadedClass, servers: tuple[str, ...]) -> Iterator[str]:
    cls = item.cls
    where = f"class {cls.__qualname__} ({item.file})"
    if not hasattr(cls, "name"):
        yield f'{where} has no name; write name = "…" in its body'
        return
    yield from (f"{where}: {problem}" for problem in declaration_problems(cls))
    if missing := [name for name in _strings(cls.mcp) if name != "*" and name not in servers]:
        known = f"there are {', '.join(servers)}" if servers else "none is set up"
        yield (
            f"{where} wants tools of the MCP server {', '.join(missing)}, and {known}; correct `mcp`, or set it up in "
            "CARREL_AGENT_INSTANCE_MCP"
        )
    if cls.run is Agent.run:
        yield f"{where} has no run; write `async def run(self, ctx, request)`"
    try:
        inspect.signature(cls).bind()
    except (TypeError, ValueError):
        yield f"{where} cannot be made without arguments; give every parameter of __init__ a default"
    # Whatever a wrong class has there: that it is wrong has been said above.
    tools: Any = cls.tools
    for tool in tools if isinstance(tools, tuple) else ():
        try:
            _ = tool.input_schema if isinstance(tool, Tool) else None
        except CarrelError as error:
            yield f"{where}: {error.message}; {error.advice}"


def _strings(value: object) -> Iterator[str]:
    """What of a perhaps wrong declaration are names."""
    yield from (item for item in (value if isinstance(value, tuple) else ()) if isinstance(item, str))


def _name_problems(items: Sequence[LoadedClass]) -> Iterator[str]:
    first: dict[str, LoadedClass] = {}
    for item in items:
        name = getattr(item.cls, "name", None)
        if not isinstance(name, str):
            continue
        other = first.setdefault(name, item)
        if other is not item:
            yield (
                f"class {item.cls.__qualname__} ({item.file}) has the name {name!r} of class "
                f"{other.cls.__qualname__} ({other.file}); rename one of them"
            )


def _link_problems(entry: AgentEntry, entries: Mapping[str, AgentEntry], wrong: Set[str]) -> Iterator[str]:
    """What is wrong with the names of others that an agent gives; those of ``wrong`` classes are left alone."""
    where = f"class {entry.cls.__qualname__} ({entry.file})"
    for name in entry.requires:
        if name not in entries and name not in wrong:
            yield f"{where} requires {name!r}, which is not registered; register it or correct `requires`"
    if cycle := _cycle(entry.name, entries):
        yield f"{where} requires itself through {' → '.join(cycle)}; break the circle in `requires`"
    if entry.fallback is not None and entry.fallback not in wrong:
        yield from (f"{where}: {problem}" for problem in _fallback_problems(entry, entries))


def _fallback_problems(entry: AgentEntry, entries: Mapping[str, AgentEntry]) -> Iterator[str]:
    fallback = entries.get(entry.fallback or "")
    if fallback is None:
        yield f"its fallback {entry.fallback!r} is not registered; register it or correct `fallback`"
        return
    seen = [entry.name]
    link: AgentEntry | None = fallback
    while link is not None and link.name not in seen:
        seen.append(link.name)
        link = entries.get(link.fallback or "")
    if link is not None and link.name == entry.name:
        yield f"its fallbacks go round in a circle, {' → '.join([*seen, entry.name])}; break it in `fallback`"
    if fallback.plans != entry.plans:
        yield f"its fallback {fallback.name!r} must {'' if entry.plans else 'not '}be a planner (`plans`), as it is"
    if missing := set(fallback.requires) - _closure(entry.name, entries):
        names = ", ".join(sorted(missing))
        yield f"its fallback {fallback.name!r} requires {names}, which need not have run; add it to `requires`"


def _closure(name: str, entries: Mapping[str, AgentEntry]) -> set[str]:
    known: set[str] = set()
    open_names = [name]
    while open_names:
        for required in entries[open_names.pop()].requires:
            if required not in known and required in entries:
                known.add(required)
                open_names.append(required)
    return known


def _cycle(start: str, entries: Mapping[str, AgentEntry]) -> list[str]:
    """A way along ``requires`` from ``start`` back to it; empty when there is none."""
    stack = [[start]]
    seen: set[str] = set()
    while stack:
        path = stack.pop()
        for name in entries[path[-1]].requires:
            if name == start:
                return [*path, start]
            if name in entries and name not in seen:
                seen.add(name)
                stack.append([*path, name])
    return []


def _startup_error(problems: Sequence[Problem]) -> StartupError:
    if len(problems) == 1:
        message, advice = problems[0]
    else:
        lines = (f"{text} ({advice})" if advice else text for text, advice in problems)
        message = f"{len(problems)} things are wrong with the agents:" + "".join(f"\n  - {line}" for line in lines)
        advice = ""
    return StartupError(
        message,
        advice=advice or "correct the agent classes named and start again",
        phase="CONFIGURATION",
        what="agent classes that can be loaded",
    )


def _digest(entries: Iterable[AgentEntry], servers: Mapping[str, str]) -> str:
    described: list[dict[str, Any]] = []
    for entry in entries:
        tools = [
            [
                tool.name,
                tool.permission or "",
                tool.host,
                tool.approval,
                tool.timeout_s,
                tool.description,
                dict(tool.input_schema),
            ]
            for tool in entry.tools.values()
        ]
        described.append(
            {
                "name": entry.name,
                "class": entry.cls.__qualname__,
                "requires": entry.requires,
                "tools": tools,
                "servers": [[name, servers[name]] for name in entry.servers],
                "links": [entry.fallback, entry.dependencies, entry.isolation, entry.processes, entry.plans],
                "times": [entry.idle_timeout_s, entry.timeout_s],
                "source": _source_hash(entry.file),
            }
        )
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _source_hash(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""
