"""Finds agent classes: in the entry-point group ``carrel.agents``, a module, ``module:attribute`` or a Python file.

Not the registry, which judges what is found here. Loading runs an author's module, so whatever goes wrong inside it is
turned into an error that names the source.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from carrel.agents import Agent
from carrel.errors import CarrelError, StartupError

__all__ = ["ENTRY_POINTS", "ENTRY_POINT_GROUP", "LoadedClass", "load_classes"]

ENTRY_POINT_GROUP: Final = "carrel.agents"
# In the setting, this word stands for everything that installed packages contribute.
ENTRY_POINTS: Final = "entry-points"


class LoadedClass(NamedTuple):
    """An agent class, the source that named it, and the file that defines it."""

    cls: type[Agent]
    source: str
    file: str


def load_classes(sources: Sequence[str]) -> tuple[LoadedClass, ...]:
    """The agent classes of every source in order, each class once; the entry points' when no source is given.

    Args:
        sources: ``module``, ``module:attribute``, a path that ends in ``.py``, or ``entry-points``.

    Raises:
        StartupError: A source cannot be loaded or holds no agent; the message names all such sources.
    """
    found: dict[type[Agent], LoadedClass] = {}
    problems: list[StartupError] = []
    for source in sources or (ENTRY_POINTS,):
        try:
            loaded = _from_entry_points() if source == ENTRY_POINTS else _from_source(source)
        except StartupError as error:
            problems.append(error)
            continue
        for item in loaded:
            found.setdefault(item.cls, item)
    if problems:
        raise _joined(problems)
    return tuple(found.values())


def _from_entry_points() -> list[LoadedClass]:
    loaded: list[LoadedClass] = []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
        source = f"entry point {point.name} ({point.value})"
        value = _guarded(source, point.load)
        loaded += _classes(value, source)
    return loaded


def _from_source(source: str) -> list[LoadedClass]:
    if source.endswith(".py"):
        return _classes(_load_file(source), source)
    module_name, _, attribute = source.partition(":")
    module = _guarded(source, lambda: importlib.import_module(module_name))
    if not attribute:
        return _classes(module, source)
    value: Any = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
        if value is None:
            raise _cannot(source, f"module {module_name} has no attribute {attribute}", "name an attribute it has")
    return _classes(value, source)


def _load_file(source: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise _cannot(source, f"there is no file {path}", "give the path of a Python file that defines agents")
    # Unique by path: two files of one name, or one called like a library, must not replace each other.
    name = f"carrel_agents_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _cannot(source, f"{path} is no Python source file", "give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        # Last, so that a neighbour called like one of our packages cannot shadow it.
        sys.path.append(folder)
    loader = spec.loader
    try:
        _guarded(source, lambda: loader.exec_module(module))
    except StartupError:
        del sys.modules[name]
        raise
    return module


def _guarded(source: str, load: Any) -> Any:
    try:
        return load()
    except StartupError:
        raise
    except CarrelError as error:
        # A class statement that declares something wrong: the library's own message names the class and the fault.
        raise _cannot(source, error.message, error.advice or "correct the declaration") from error
    except (Exception, SystemExit) as error:
        where = _innermost(error)
        problem = f"loading it raised {type(error).__name__}: {str(error)[:500]}{where}"
        missing = isinstance(error, ModuleNotFoundError)
        advice = "install the package that it needs" if missing else "make `python -c 'import …'` of it work first"
        raise _cannot(source, problem, advice) from error


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""


def _classes(value: Any, source: str) -> list[LoadedClass]:
    if isinstance(value, ModuleType):
        declared = getattr(value, "agents", None)
        value = _defined_in(value) if declared is None or isinstance(declared, ModuleType) else declared
    if inspect.isfunction(value):
        value = _guarded(source, value)
    candidates = [value] if inspect.isclass(value) else value
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        raise _cannot(source, f"it gives a {type(value).__name__}", "give an Agent class or a list of them")
    loaded = [_loaded(item, source) for item in candidates]
    if not loaded:
        raise _cannot(source, "it defines no Agent class with a name", "add `class MyAgent(Agent): name = '…'`")
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
        raise _cannot(source, f"{item!r:.100} is no subclass of carrel.Agent", "list Agent classes only, not instances")
    return LoadedClass(item, source, _file_of(item))


def _file_of(cls: type) -> str:
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return f"<{cls.__module__}>"


def _cannot(source: str, problem: str, advice: str) -> StartupError:
    return StartupError(f"agents from {source}: {problem}", advice=advice, phase="CONFIGURATION", what=source)


def _joined(problems: list[StartupError]) -> StartupError:
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  - {problem.message} ({problem.advice})" for problem in problems)
    what = ", ".join(problem.what for problem in problems)
    return StartupError(
        f"{len(problems)} sources of agents cannot be loaded:{lines}",
        advice="correct each of them",
        phase="CONFIGURATION",
        what=what,
    )
