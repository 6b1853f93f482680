"""``open_workers``: everything that worker processes need, from the settings: zygote, watch, and the factory over them.

Also what is checked before the first worker: that the memory of this machine, or of the cgroup, holds them all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from carrel.errors import StartupError, WorkerLostError
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.executor import AgentExecutor
from services.agent_instance.domain.loading import ENTRY_POINT_GROUP, ENTRY_POINTS
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.workers import kernel
from services.agent_instance.workers.datagrams import Setup, WorkerLimits
from services.agent_instance.workers.folders import TemporaryRoot
from services.agent_instance.workers.host import ZygoteHost
from services.agent_instance.workers.process import ProcessExecutor
from services.agent_instance.workers.watch import WorkerWatch

__all__ = ["Workers", "check_memory", "open_workers", "worker_environment"]

_log: Final = get_logger("agent_instance.workers")
_MIB: Final = 1 << 20
# What a worker sees of the service's environment. Nothing that could be a secret: it is a list of what may pass.
_ALLOWED: Final = (
    *("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TZDIR", "PYTHONPATH", "PYTHONHASHSEED"),
    *(
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ),
)
_ONE_THREAD: Final = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)
_CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Workers:
    """An ``ExecutorFactory`` of worker processes, which also knows what those that serve use."""

    host: ZygoteHost
    watch: WorkerWatch
    output_bytes: int

    def __call__(self) -> AgentExecutor:
        """A new one, not started."""
        return ProcessExecutor(self.host, self.watch, output_bytes=self.output_bytes)

    async def memory(self) -> list[int]:
        """Bytes of each that serves, its share of what it has in common with others counted."""
        return await self.watch.memory()


@asynccontextmanager
async def open_workers(settings: AgentInstanceSettings, registry: AgentClassRegistry) -> AsyncIterator[Workers]:
    """Makes worker processes for the length of the block; leaving it ends all of them.

    Raises:
        StartupError: They may need more memory than there is, or cannot be started.
    """
    check_memory(settings)
    chosen = settings.workers
    limits = WorkerLimits(chosen.memory_mb * _MIB, chosen.cpu_seconds, chosen.open_files, chosen.file_mb * _MIB)
    # Other processes of this user must not read our environment and memory, where keys may be.
    kernel.refuse_inspection()
    try:
        temporary = TemporaryRoot(chosen.temp_dir / f"carrel-{os.geteuid()}")
    except OSError as error:
        problem = f"no temporary folder for workers can be made in {chosen.temp_dir}: {error.strerror or error}"
        advice = "name a folder that can be written in CARREL_AGENT_INSTANCE_WORKERS__TEMP_DIR"
        raise StartupError(problem, advice=advice) from None
    host = ZygoteHost(_setup(settings, registry, limits), worker_environment(os.environ, chosen.env_allow), temporary)
    watch = WorkerWatch(limits, chosen.temp_mb * _MIB)

    async with TaskOwner() as tasks:
        try:
            try:
                await host.start(chosen.zygote_timeout)
            except WorkerLostError as error:
                raise StartupError(error.message, advice=error.advice) from None
            _ = tasks.start(watch.run(), "watch over workers")
            yield Workers(host, watch, chosen.output_kb * 1024)
        finally:
            await host.aclose()


def worker_environment(environ: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """The part of the service's environment that its workers see."""
    kept = {name: environ[name] for name in (*_ALLOWED, *allowed) if name in environ}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1")}


def check_memory(settings: AgentInstanceSettings, available: int | None = None) -> None:
    """Refuse more workers than there is memory for, or say that it may run out.

    Args:
        available: Bytes there are; looked up when None.

    Raises:
        StartupError: They do not fit, and nobody said that they need not.
    """
    there = _memory() if available is None else available
    workers, each = settings.max_workers + settings.workers.max_children, settings.workers.memory_mb
    if workers * each * _MIB <= there:
        return
    fit = max(1, there // (each * _MIB))
    problem = (
        f"{workers} workers of up to {each} MB ({settings.max_workers} and {settings.workers.max_children} for "
        f"sub-agents) may need {workers * each} MB, and there are {there // _MIB} MB"
    )
    own, section = "CARREL_AGENT_INSTANCE_", "CARREL_AGENT_INSTANCE_WORKERS__"
    advice = (
        f"set {own}MAX_WORKERS and {section}MAX_CHILDREN to {fit} together, or {section}MEMORY_MB to "
        f"{max(64, there // _MIB // workers)}, or {section}ALLOW_OVERCOMMIT=true to rely on agents using less"
    )
    allowed = settings.workers.allow_overcommit
    if allowed is None:
        allowed = not settings.production
    if not allowed:
        raise StartupError(problem, advice=advice)
    _log.info("workers may need more memory than there is", needed_mb=workers * each, memory_mb=there // _MIB)


def _memory() -> int:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            there = min(there, int(text))
    return there


def _setup(settings: AgentInstanceSettings, registry: AgentClassRegistry, limits: WorkerLimits) -> Setup:
    chosen = settings.workers
    preload = dict.fromkeys((*chosen.preload, *(name for entry in registry.values() for name in entry.preload)))
    return Setup(
        sources=tuple(_expanded(settings.sources)),
        lazy=(),
        preload=tuple(preload),
        read_paths=(*_folders(registry), *chosen.read_paths),
        hidden=(str(settings.state_dir.absolute()), *chosen.hide_paths),
        limits=limits,
        extra_path=tuple(path for path in sys.path if path),
    )


def _expanded(sources: Iterable[str]) -> Iterable[str]:
    """Sources that can be loaded one by one, so that one which leaves something behind can be told from the others."""
    for source in sources:
        if source == ENTRY_POINTS:
            yield from (point.value for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name))
        else:
            yield str(Path(source).expanduser().resolve()) if source.endswith(".py") else source


def _folders(registry: AgentClassRegistry) -> Iterable[str]:
    files = (Path(entry.file) for entry in registry.values())
    return dict.fromkeys(str(file.resolve().parent) for file in files if file.is_absolute())
