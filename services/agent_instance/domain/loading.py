"""Finds agent classes: in the entry-point group ``carrel.agents``, a module, ``module:attribute`` or a Python file.

Not the registry, which judges what is found here. Loading runs an author's module, so whatever goes wrong inside it is
turned into a problem that names the source. Problems are collected, so that an author reads all of them at once.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, NamedTuple

from carrel.agents import Agent, collect_wrong_classes
from carrel.errors import CarrelError, InvalidRequestError

__all__ = ["ENTRY_POINTS", "ENTRY_POINT_GROUP", "Found", "LoadedClass", "Problem", "load_classes", "wrong_sources"]

ENTRY_POINT_GROUP: Final = "carrel.agents"
# In the setting, this word stands for everything that installed packages contribute.
ENTRY_POINTS: Final = "entry-points"


class LoadedClass(NamedTuple):
    """An agent class, the source that named it, and the file that defines it."""

    cls: type[Agent]
    source: str
    file: str


class Problem(NamedTuple):
    """What is wrong with a source or a class, and what to do about it (empty when ``text`` says so itself)."""

    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What loading gave.

    Args:
        classes: The agent classes, each once; those that declare something wrong are among them.
        problems: A source that could not be loaded, or holds no agent, each.
    """

    classes: tuple[LoadedClass, ...]
    problems: tuple[Problem, ...] = ()


class _SourceError(Exception):
    """A source that gives no agents; it never leaves this module."""

    def __init__(self, source: str, text: str, advice: str) -> None:
        super().__init__(text)
        self.problem = Problem(f"agents from {source}: {text}", advice)


def load_classes(sources: Sequence[str]) -> Found:
    """The agent classes of every source in order; the entry points' when no source is given.

    Args:
        sources: ``module``, ``module:attribute``, a path that ends in ``.py``, or ``entry-points``.
    """
    found: dict[type[Agent], LoadedClass] = {}
    problems: list[Problem] = []
    for source in _expanded(sources or (ENTRY_POINTS,)):
        loaded: list[LoadedClass] = []
        with collect_wrong_classes() as wrong:
            try:
                loaded = _classes(source.load(), source.name)
            except _SourceError as error:
                problems.append(error.problem)
        # A wrong class counts though no list names it: nobody else would tell its author.
        for item in [*loaded, *(_loaded(cls, source.name) for cls in wrong)]:
            found.setdefault(item.cls, item)
    return Found(tuple(found.values()), tuple(problems))


def wrong_sources(sources: Sequence[str]) -> list[Problem]:
    """What is wrong with sources as far as it shows without running any of an author's code: the rest is loading's.

    Args:
        sources: As for ``load_classes``.
    """
    problems: list[Problem] = []
    for source in sources:
        try:
            if source.endswith(".py"):
                path = _file_of_source(source)
                _ = _guarded(source, partial(_compiled, path))
            elif source != ENTRY_POINTS:
                # Of a name with dots, looking for more than the first part would run what that part is.
                top = source.partition(":")[0].partition(".")[0]
                if importlib.util.find_spec(top) is None:
                    raise _no_module(source, top)
        except _SourceError as error:
            problems.append(error.problem)
        except ValueError:
            continue  # no name at all, or a module without a spec: told by whoever loads it
    return problems


def _compiled(path: Path) -> object:
    return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)


class _Source(NamedTuple):
    name: str
    load: Callable[[], Any]


def _expanded(sources: Sequence[str]) -> Iterator[_Source]:
    for source in sources:
        if source == ENTRY_POINTS:
            for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
                name = f"entry point {point.name} ({point.value})"
                yield _Source(name, partial(_guarded, name, point.load, point.module))
        else:
            yield _Source(source, partial(_from_source, source))


def _from_source(source: str) -> Any:
    if source.endswith(".py"):
        return _load_file(source)
    module_name, _, attribute = source.partition(":")
    value: Any = _guarded(source, lambda: importlib.import_module(module_name), module_name)
    for part in attribute.split(".") if attribute else ():
        value = getattr(value, part, None)
        if value is None:
            raise _SourceError(source, f"module {module_name} has no attribute {attribute}", "name one that it has")
    return value


def _file_of_source(source: str) -> Path:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise _SourceError(source, f"there is no file {path}", "give the path of a Python file that defines agents")
    return path


def _load_file(source: str) -> ModuleType:
    path = _file_of_source(source)
    # Unique by path: two files of one name, or one called like a library, must not replace each other.
    name = f"carrel_agents_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _SourceError(source, f"{path} is no Python source file", "give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        # Last, so that a neighbour called like one of our packages cannot shadow it.
        sys.path.append(folder)
    loader = spec.loader
    try:
        _guarded(source, lambda: loader.exec_module(module))
    except _SourceError:
        del sys.modules[name]
        raise
    return module


def _guarded(source: str, load: Callable[[], Any], module: str = "") -> Any:
    """What ``load`` gives; ``module`` is the module that the source itself names."""
    try:
        return load()
    except _SourceError:
        raise
    except CarrelError as error:
        # A tool or an error class that declares something wrong: the library's own message names it and the fault.
        raise _SourceError(source, f"{error.message}{_where(error)}", _advice_of(error)) from error
    except ModuleNotFoundError as error:
        where, missing = _where(error), error.name or ""
        if not where and (module == missing or module.startswith(f"{missing}.")):
            raise _no_module(source, missing) from error
        problem = f"loading it raised ModuleNotFoundError: there is no module {missing}{where}"
        raise _SourceError(source, problem, f"install the package that has {missing}, or correct the import") from error
    except (Exception, SystemExit) as error:
        told = error.msg if isinstance(error, SyntaxError) else str(error)[:500]
        problem = f"loading it raised {type(error).__name__}: {told}{_where(error)}"
        try_it = f"python -c 'import {module}'" if module else f"python {source}"
        advice = f"correct it; `{try_it}` shows where it fails" if module or source.endswith(".py") else "correct it"
        raise _SourceError(source, problem, advice) from error


def _no_module(source: str, name: str) -> _SourceError:
    advice = "correct the name, or install the package, or add its folder to PYTHONPATH"
    return _SourceError(source, f"there is no module {name}", advice)


def _advice_of(error: CarrelError) -> str:
    # What stands there by default is for who sent a request, not for who wrote a file.
    return error.advice if error.advice not in {"", InvalidRequestError.default_advice} else "correct the declaration"


def _where(error: BaseException) -> str:
    """The author's own line: the innermost in the folder of the file that was loaded, not in what it called."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__) if _own(frame)]
    folders = [Path(file).parent for file, _ in lines]
    own = [line for line, folder in zip(lines, folders, strict=True) if folder == folders[0]]
    return f" ({own[-1][0]}:{own[-1][1]})" if own else ""


def _own(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module != __name__ and module.partition(".")[0] != "importlib"


def _classes(value: Any, source: str) -> list[LoadedClass]:
    if isinstance(value, ModuleType):
        declared = getattr(value, "agents", None)
        value = _defined_in(value) if declared is None or isinstance(declared, ModuleType) else declared
    if inspect.isfunction(value):
        value = _guarded(source, value)
    candidates = [value] if inspect.isclass(value) else value
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        raise _SourceError(source, f"it gives a {type(value).__name__}", "give an Agent class or a list of them")
    loaded = [_loaded(item, source) for item in candidates]
    if not loaded:
        raise _SourceError(
            source, "it defines no Agent class with a name", "add `class MyAgent(Agent): name = 'my_agent'`"
        )
    return loaded


def _defined_in(module: ModuleType) -> list[type[Agent]]:
    return [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Agent)
        and item.__module__ == module.__name__
        and "name" in item.__dict__
    ]


def _loaded(item: object, source: str) -> LoadedClass:
    if not inspect.isclass(item) or not issubclass(item, Agent):
        problem = f"{item!r:.100} is no subclass of carrel.Agent"
        raise _SourceError(source, problem, "list Agent classes only, not instances")
    return LoadedClass(item, source, _file_of(item, source))


def _file_of(cls: type, source: str) -> str:
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):  # its module could not be loaded to the end, and is gone
        return source
