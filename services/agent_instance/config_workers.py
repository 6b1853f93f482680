"""Settings of worker processes: ``CARREL_AGENT_INSTANCE_WORKERS__<FIELD>``. Sizes are MiB, durations seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field

from servicekit.settings import Section

__all__ = ["WorkerSettings"]


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


class WorkerSettings(Section):
    """What a worker process may use and see, and how many there may be."""

    memory_mb: int = Field(1024, ge=64, le=1_048_576, description="private memory of one worker")
    cpu_seconds: int = Field(600, ge=1, le=86_400, description="processor time of one worker")
    open_files: int = Field(1024, ge=64, le=1_048_576, description="descriptors of one worker")
    file_mb: int = Field(256, ge=1, le=1_048_576, description="largest file that a worker may write")
    temp_mb: int = Field(512, ge=1, le=1_048_576, description="all files in a worker's temporary folder")
    output_kb: int = Field(64, ge=1, le=8192, description="KiB kept of what a worker prints")
    env_allow: tuple[str, ...] = Field((), description="names of variables that workers see beside the usual ones")
    read_paths: tuple[str, ...] = Field((), description="files and folders that agents may read, beside their own")
    hide_paths: tuple[str, ...] = Field((), description="files and folders that agents may not read, wherever they are")
    preload: tuple[str, ...] = Field((), description="modules to import once for all workers, beside the agents'")
    temp_dir: Path = Field(default_factory=_temporary, description="folder for workers' temporary folders")
    start_timeout: float = Field(10.0, gt=0, le=600, description="how long one worker may take to start")
    zygote_timeout: float = Field(60.0, gt=0, le=600, description="how long loading the agents may take")
    max_children: int = Field(50, ge=0, le=10_000, description="workers of sub-agents at once, beside max_workers")
    max_waiting: int = Field(1000, ge=0, le=100_000, description="attempts that wait for a worker")
    max_waiting_per_user: int = Field(100, ge=0, le=100_000, description="attempts of one user that wait for a worker")
    wait: float = Field(60.0, gt=0, le=3600, description="how long an attempt waits for a worker")
    allow_overcommit: bool | None = Field(
        None,
        description="start although all workers at their limit need more memory than there is; "
        "by default outside production only",
    )
