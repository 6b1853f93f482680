"""A worker process from its fork to its end: it confines itself, serves one attempt, and dies.

Nothing here is trusted by the host. What runs before the agent's code is ours, and so is the order: the sandbox is
complete before a line of the agent's runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final, NoReturn

from carrel.agent_runtime import WorkerSession
from services.agent_instance.workers import kernel
from services.agent_instance.workers.catalogue import Catalogue
from services.agent_instance.workers.port import Port, flush
from services.agent_instance.workers.sandbox import Sandbox

__all__ = ["work"]

_CONNECTION: Final = 3
_BEYOND_ALL: Final = 1 << 20


def work(catalogue: Catalogue, sandbox: Sandbox, zygote: int, connection: int, output: int, folder: str) -> NoReturn:
    """Be a worker, in the process that the zygote has just forked. Never returns."""
    kernel.die_with_parent(zygote)
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Path(folder).mkdir(0o700)
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
    _say_hello(connection)
    sandbox.put_on(folder)
    # From here on there is nothing of the zygote's but its memory: no path, no socket, no pipe.
    os.dup2(connection, _CONNECTION)
    os.closerange(_CONNECTION + 1, _BEYOND_ALL)
    _reseed()
    # The loop is made while nobody waits for it yet.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(_serve(Port(socket.socket(fileno=_CONNECTION)), catalogue, sandbox))
        flush()
        os._exit(0)
    raise AssertionError


def _say_hello(connection: int) -> None:
    """Hand the host what it watches this process by. Nobody else may open these, not even the host."""
    memory = os.open("/proc/self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
    me = os.pidfd_open(os.getpid())
    with socket.socket(fileno=os.dup(connection)) as sock:
        socket.send_fds(sock, [b"+"], [memory, me])
    os.close(memory)
    os.close(me)


def _reseed() -> None:
    """Random numbers of one worker must not be another's: these were seeded before the fork."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


async def _serve(port: Port, catalogue: Catalogue, sandbox: Sandbox) -> None:
    asked = await port.frame()
    if asked is None:
        return
    sandbox.fit_to(processes=bool(json.loads(asked)["processes"]))
    await WorkerSession(port, catalogue.agent).serve()
