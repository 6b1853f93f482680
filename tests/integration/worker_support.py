"""Worker processes over a real zygote, driven as a turn drives them. Not a test module."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carrel import Request, UserContextFactory
from carrel.agent_codec import decode, encode
from carrel.agent_messages import EmitEvent, EventAccepted, Failure, Result, Start
from carrel.errors import CarrelError, from_dict
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.workers.plant import open_workers
from services.agent_instance.workers.process import ProcessExecutor

AGENTS = Path(__file__).with_name("worker_agents.py")


@dataclass
class Attempt:
    """One worker under way."""

    executor: AgentExecutor
    thoughts: list[str]

    async def end(self, *, kill: bool = True) -> dict[str, Any] | CarrelError:
        """Its result; or its failure, or its loss."""
        found: dict[str, Any] | CarrelError
        while (message := await self.step()) is not None:
            if isinstance(message, Result):
                found = dict(message.result)
                break
            if isinstance(message, Failure):
                found = from_dict(message.error)
                break
        else:
            found = self.executor.loss
        if kill:
            await self.executor.kill()
        return found

    async def step(self) -> Any:
        """Its next message; events are accepted."""
        data = await self.executor.receive()
        if data is None:
            return None
        message = decode(data)
        if isinstance(message, EmitEvent):
            self.thoughts.append(str(message.data.get("text", "")))
            await self.executor.send(encode(EventAccepted(message.call_id)))
        return message


@dataclass
class Plant:
    """Makes attempts."""

    make: ExecutorFactory
    registry: AgentClassRegistry
    folder: Path

    async def worker(self) -> ProcessExecutor:
        executor = self.make()
        await executor.start()
        assert isinstance(executor, ProcessExecutor)
        return executor

    async def start(
        self, do: str = "nothing", *, agent: str = "behaves", environment: dict[str, str] | None = None, **params: Any
    ) -> Attempt:
        executor = await self.worker()
        await executor.initialize(self.registry.entry(agent))
        context = UserContextFactory.from_request("alice")
        request = Request("hello", {"do": do, **params})
        await executor.send(encode(Start(context.to_dict(), agent, request.to_dict(), (), environment or {})))
        return Attempt(executor, [])

    async def run(self, do: str = "nothing", **options: Any) -> dict[str, Any]:
        """The result of an attempt that has one."""
        found = await (await self.start(do, **options)).end()
        assert isinstance(found, dict), found
        return found

    async def fail(self, do: str, **options: Any) -> CarrelError:
        """How an attempt failed."""
        found = await (await self.start(do, **options)).end()
        assert isinstance(found, CarrelError), found
        return found

    @property
    def folders(self) -> list[Path]:
        """Temporary folders of workers there are."""
        return [path for path in self.folder.glob("carrel-*/workers-*/*") if path.name != ".lock"]


@asynccontextmanager
async def plant(folder: Path, *agents: Path, **settings: Any) -> AsyncIterator[Plant]:
    """Worker processes for these files of agents, with their folders in ``folder``."""
    workers = {"temp_dir": folder / "temp", **settings.pop("workers", {})}
    values = {"agents": tuple(str(path) for path in agents or (AGENTS,)), "workers": workers, **settings}
    configured = AgentInstanceSettings.model_validate({"state_dir": folder / "state", **values})
    registry = AgentClassRegistry.load(configured.agents)
    async with open_workers(configured, registry) as make:
        yield Plant(make, registry, folder / "temp")


def children(pid: int | None = None) -> dict[int, str]:
    """Processes below this one (or ``pid``), and their states."""
    found: dict[int, str] = {}
    todo = [pid or os.getpid()]
    while todo:
        parent = todo.pop()
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                for child in (task / "children").read_text().split():
                    with suppress(OSError):
                        stat = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                        found[int(child)] = stat[0]
                        todo.append(int(child))
    return found


def gone(pid: int) -> bool:
    """Whether there is no such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


needs_landlock = pytest.mark.skipif(
    __import__("services.agent_instance.workers.kernel", fromlist=["landlock_abi"]).landlock_abi() < 6,
    reason="this kernel has no Landlock with scopes (Linux 6.12)",
)
