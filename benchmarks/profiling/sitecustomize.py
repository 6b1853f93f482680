"""Put on the path of benchmarks' services when one of them is to be profiled: ``BENCH_PROFILE=execution make bench``.

Python imports it at the start of every process; it profiles the one whose module was named, and writes its figures to
``/tmp/bench-<service>-<pid>.prof`` (for ``python -m pstats``) when that process ends in order.
"""
# ruff: noqa: INP001 -- no package: it is found by its name on the path

from __future__ import annotations

import atexit
import cProfile
import os
import sys
import tempfile
from pathlib import Path


def _begin() -> None:
    service = os.environ.get("BENCH_PROFILE", "")
    module = next((name for flag, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if flag == "-m"), "")
    if not service or module.rpartition(".")[2] != service:
        return
    owner, profile = os.getpid(), cProfile.Profile()

    def write() -> None:
        if os.getpid() == owner:
            profile.disable()
            profile.dump_stats(Path(tempfile.gettempdir()) / f"bench-{service}-{owner}.prof")

    atexit.register(write)
    profile.enable()


_begin()
