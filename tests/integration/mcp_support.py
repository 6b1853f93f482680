"""Real MCP servers for tests: processes on standard streams, and one that listens on HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from carrel.agent_context import ArtifactRef
from carrel.agents import Agent
from services.agent_instance.client_mcp import open_servers
from services.agent_instance.config_mcp import McpServers
from services.agent_instance.domain.mcp_servers import McpAttemptTools, McpToolServers
from services.agent_instance.domain.registry import AgentClassRegistry
from tests.conftest import Eventually
from tests.support.awake import Awake

ROOT = Path(__file__).resolve().parent.parent.parent
# Short pauses; and a start that is slow only because the machine is busy is no failure.
QUICK = {"backoff": 0.1, "backoff_max": 0.4, "start_timeout": 40}


class Noter(Agent):
    name = "noter"
    mcp = ("*",)

    async def run(self, ctx: Any, request: Any) -> Any: ...


def stdio(log: Path | str = "", **settings: Any) -> dict[str, Any]:
    """A server on standard streams."""
    args = ["-m", "tests.support.mcp_server", "--log", str(log)]
    return {"command": sys.executable, "args": args, "env": {"PYTHONPATH": str(ROOT)}, **QUICK, **settings}


class Http:
    """A server on HTTP, in a process that can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self._ready = folder / "ready"
        self.log = folder / "log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.support.mcp_server", "--http", str(self.port)]
        command += ["--ready", str(self._ready), "--log", str(self.log)]
        self._process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    async def up(self, eventually: Eventually) -> None:
        await eventually(self._ready.exists, within=40)
        self.port = int(self._ready.read_text(encoding="ascii"))

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"url": f"http://127.0.0.1:{self.port}/mcp", **QUICK, **more}


@contextmanager
def http_server(folder: Path) -> Iterator[Http]:
    server = Http(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def opened(settings: Mapping[str, Any]) -> McpToolServers:
    """The servers as the service has them."""
    return open_servers(McpServers.parse(settings), first_lists_s=60)


class Artifacts:
    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    async def put(self, name: str, data: bytes, media_type: str) -> ArtifactRef:
        self.stored[name] = data
        return ArtifactRef(name, media_type, len(data), "0" * 64, f"/api/{name}")


class Caller:
    """Calls the tools of one attempt as the dispatcher does, without its checks and events."""

    def __init__(self, servers: McpToolServers, *names: str) -> None:
        self.mine: McpAttemptTools = servers.for_attempt()
        self.entry = AgentClassRegistry.of(Noter, servers=dict.fromkeys(names, "1"))["noter"]
        self.artifacts = Artifacts()
        # What a body sees of its context.
        self.tool_call_id, self.attempt = "call-0-1", 1

    async def __call__(self, name: str, **arguments: Any) -> Any:
        tool = self.mine.tools(self.entry)[name]
        return await tool.func(self, **tool.check_arguments(arguments))

    async def value(self, name: str, **arguments: Any) -> Any:
        return (await self(name, **arguments))["structured"]["result"]


def children() -> list[int]:
    """Processes that this one has started and that are servers of these tests, or zombies."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() == psutil.STATUS_ZOMBIE or "tests.support.mcp_server" in child.cmdline():
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def logged(log: Path, line: str, eventually: Eventually) -> list[str]:
    """The log's lines, once this one is among them."""

    def lines() -> list[str] | None:
        found = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return found if any(item.startswith(line) for item in found) else None

    found = await eventually(lines, within=40, what=f"{line!r} in the server's log")
    assert found is not None
    return found


async def cancelled_in(task: asyncio.Task[Any]) -> float:
    """Seconds until a cancelled task has ended."""
    with Awake() as took:
        task.cancel()
        await asyncio.wait({task})
    return took.seconds
