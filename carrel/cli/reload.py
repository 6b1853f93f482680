"""``carrel up --reload``: agent_instance is started anew when a file of the agents changes. For development only.

Runs under way there end with an error: their agents' code is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from carrel.cli.output import Printer
from carrel.cli.stack import PACKAGED, Stack, StackOptions
from carrel.errors import StartupError

__all__ = ["check_reload", "reloading", "watched_paths"]

_LOOK_MS: Final = 500


def watched_paths(agents: Sequence[str]) -> list[Path]:
    """Files and packages' folders that the agents come from.

    Raises:
        StartupError: There is nothing to watch, or one of them can't be found.
    """
    named = [name for name in agents if name != PACKAGED]
    if not named:
        raise StartupError("--reload has nothing to watch", advice="name your agents with --agents FILE.py or MODULE")
    return [_place_of(name) for name in named]


def _place_of(name: str) -> Path:
    if name.endswith(".py"):
        path = Path(name)
        if path.is_file():
            return path.resolve()
        raise StartupError(f"there is no file {name}", advice="mend the path given with --agents")
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name.partition(":")[0])
        if spec is not None and spec.origin and spec.origin != "frozen":
            origin = Path(spec.origin).resolve()
            return origin.parent if origin.name == "__init__.py" else origin
    raise StartupError(
        f"there is no module {name.partition(':')[0]}", advice="mend the name given with --agents, or its PYTHONPATH"
    )


def check_reload(options: StackOptions) -> None:
    """Look before anything is started whether it will be possible.

    Raises:
        StartupError: The extra is missing, or there is nothing to watch.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise StartupError(
            "--reload needs the package watchfiles",
            advice=f"{sys.executable} -m pip install 'carrel[reload]', or start without --reload",
        )
    watched_paths(options.agents)


@asynccontextmanager
async def reloading(options: StackOptions, stack: Stack, printer: Printer) -> AsyncIterator[None]:
    """Watch for the length of the block. ``check_reload`` has been called.

    Raises:
        StartupError: A file is gone.
    """
    paths = watched_paths(options.agents)
    task = asyncio.create_task(_watch(paths, stack, printer), name="watch the agents' files")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(paths: Sequence[Path], stack: Stack, printer: Printer) -> None:
    from watchfiles import PythonFilter, awatch

    # A folder, never a file: editors replace files, and a watch on the old one would see nothing more.
    folders = {path if path.is_dir() else path.parent for path in paths}
    begun = False
    # It says nothing of its beginning but by its first timeout.
    async for changes in awatch(*folders, watch_filter=PythonFilter(), rust_timeout=_LOOK_MS, yield_on_timeout=True):
        if not begun:
            begun = True
            printer.line("carrel", "watching " + ", ".join(str(path) for path in paths))
        changed = {Path(name) for _, name in changes}
        ours = [path for path in changed if any(path == place or place in path.parents for place in paths)]
        if ours:
            names = ", ".join(sorted(path.name for path in ours))
            printer.line("carrel", f"{names} changed; starting agent_instance anew")
            for process in stack.copies("agent_instance"):
                await stack.supervisor.restart(process)
