"""Put on the path of benchmarks' services when one of them is to be profiled: ``BENCH_PROFILE=execution make bench``.

Python imports it at the start of every process; it profiles the one whose module was named, each thread for itself
where Python can (3.11), and writes the figures to ``/tmp/bench-<service>-<pid>-<thread>.prof``, for ``python -m
pstats``, when that process ends in order.
"""
# ruff: noqa: INP001 -- no package: it is found by its name on the path

from __future__ import annotations

import atexit
import cProfile
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def _begin() -> None:
    service = os.environ.get("BENCH_PROFILE", "")
    module = next((name for flag, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if flag == "-m"), "")
    if not service or module.rpartition(".")[2] != service:
        return
    owner = os.getpid()
    profiles: dict[str, cProfile.Profile] = {}

    def profiled(name: str, work: Callable[[], None]) -> None:
        profile = profiles[f"{name}-{len(profiles)}"] = cProfile.Profile()
        with suppress(ValueError):  # Python 3.12 and later profile one thread only
            profile.enable()
        work()

    def write() -> None:
        if os.getpid() != owner:
            return
        for name, profile in profiles.items():
            profile.disable()
            profile.dump_stats(Path(tempfile.gettempdir()) / f"bench-{service}-{owner}-{name.replace('/', '_')}.prof")

    run = threading.Thread.run
    threading.Thread.run = lambda self: profiled(self.name, lambda: run(self))  # type: ignore[method-assign]
    atexit.register(write)
    profiled("main", lambda: None)


_begin()
