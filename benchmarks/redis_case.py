"""Events from Emit to 100 users' sockets, as the case ``events``, with the log in Redis."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.events_case import events_under

__all__ = ["redis_events", "redis_server"]

# BENCH_REDIS=redis://host:port/db make bench …: that server, instead of one that is started and ended here.
_GIVEN: Final = "BENCH_REDIS"
_START_S: Final = 10.0


async def redis_events() -> dict[str, float]:
    """The fields of ``events``; the server writes an append-only file, flushed each second."""
    with redis_server() as url:
        return await events_under({"CARREL_BRIDGE_LOG__URL": url})


@contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a server for the length of the block."""
    if given := os.environ.get(_GIVEN):
        yield given
        return
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError(f"redis-server is not installed; install it, or name a server in {_GIVEN}")
    with tempfile.TemporaryDirectory(prefix="carrel-bench-redis-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes"]
        server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
