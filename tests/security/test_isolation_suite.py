"""Agents that do their worst, in worker processes of a real stack: each hurts its own run, and no other notices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from carrel.client.http import GatewayHttp
from tests.conftest import Eventually
from tests.integration.worker_support import children, gone, needs_landlock
from tests.support.stack import RunningStack, running_stack

_AGENTS: Final = Path(__file__).parents[1] / "integration" / "worker_agents.py"
_PROBES: Final = Path(__file__).with_name("probe_agents.py")
_CANARY: Final = "canary-of-the-service-0b7c"
_USERS: Final = 50

# What each does, and how its run may end. Where a process is no more, either word may tell; and on a busy machine the
# agent's silence may be told before the limit that it runs into.
_WORKER: Final = {"WORKER_LOST", "WORKER_LIMIT"}
_ANY: Final = _WORKER | {"AGENT_IDLE_TIMEOUT"}
_WORST: Final[dict[str, set[str]]] = {
    "loop": _ANY,
    "ignore_cancel": {"AGENT_IDLE_TIMEOUT"},
    "allocate": _ANY,
    "exit": _WORKER,
    "segfault": _WORKER,
    "close_everything": _WORKER,
    "garble": _WORKER | {"PROTOCOL"},
    "burn": _ANY,
    "fill": _ANY,
    "print": {""},
    "fork": {""},
    "write_globals": {""},
    "monkeypatch": {""},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack whose agent_instance holds a secret in its environment, and whose limits are tight."""
    folder = tmp_path_factory.mktemp("isolation")
    settings = {
        "SOME_SERVICES_KEY": _CANARY,
        "CARREL_AGENT_INSTANCE_MAX_WORKERS": "100",
        "CARREL_AGENT_INSTANCE_TIMES__IDLE": "8",
        "CARREL_AGENT_INSTANCE_TIMES__GRACE": "0.3",
        "CARREL_AGENT_INSTANCE_WORKERS__MEMORY_MB": "256",
        "CARREL_AGENT_INSTANCE_WORKERS__CPU_SECONDS": "2",
        "CARREL_AGENT_INSTANCE_WORKERS__TEMP_MB": "16",
        "CARREL_AGENT_INSTANCE_WORKERS__TEMP_DIR": str(folder),
    }
    with running_stack(folder, agents=[str(_AGENTS), str(_PROBES)], environment=settings) as running:
        yield running


class Users:
    """Users over REST, each with a connection of their own."""

    def __init__(self, stack: RunningStack, opened: AsyncExitStack) -> None:
        self._stack = stack
        self._opened = opened
        self._known: dict[str, GatewayHttp] = {}

    async def run(self, user: str, agent: str, message: str = "hello", **params: Any) -> dict[str, Any]:
        """A run at its end."""
        if user not in self._known:
            self._known[user] = await self._opened.enter_async_context(self._stack.http(user))
        return await self._known[user].post(
            "/api/agents/execute", {"agent_name": agent, "message": message, "params": params}
        )


@pytest.fixture
async def users(stack: RunningStack) -> AsyncIterator[Users]:
    async with AsyncExitStack() as opened:
        yield Users(stack, opened)


def _code(run: dict[str, Any]) -> str:
    return str((run.get("error") or {}).get("code", ""))


def _secrets(stack: RunningStack) -> list[Path]:
    return [path for path in stack.state.root.rglob("*") if path.is_file() and path.name != "tickets.jwks.json"]


@pytest.mark.timeout(150)
async def test_each_hurts_its_own_run_and_fifty_users_notice_nothing(
    stack: RunningStack, users: Users, eventually: Eventually
) -> None:
    pids = {name: stack.pid(name) for name in ("gateway", "execution", "agent_instance", "emitter", "bridge")}
    before = set(children(pids["agent_instance"]))

    async def quiet(number: int) -> bool:
        words = f"{number} asks"
        run = await users.run(f"quiet-{number}", "echo", words)
        assert run["status"] == "SUCCEEDED", run
        return bool(run["result"]["answer"] == words)

    async with asyncio.TaskGroup() as tasks:
        worst = {do: tasks.create_task(users.run(f"worst-{do}", "behaves", do=do, mb=100)) for do in _WORST}
        others = [tasks.create_task(quiet(number)) for number in range(_USERS)]
    assert all(task.result() for task in others)
    ended = {do: task.result() for do, task in worst.items()}
    assert {do: run.get("error") for do, run in ended.items() if _code(run) not in _WORST[do]} == {}
    assert {run["status"] for run in ended.values()} == {"SUCCEEDED", "FAILED"}
    assert {name: stack.pid(name) for name in pids} == pids, "no service was started again"
    after = await users.run("later", "behaves", do="nothing")
    assert after["result"]["seen"] == ["later"]
    assert after["result"]["patched"] is False
    # The zygote and as many that wait as before; none that is no more and none that nobody waits for.
    await eventually(lambda: len(children(pids["agent_instance"])) <= len(before), within=10)
    assert "Z" not in children(pids["agent_instance"]).values()
    roots = [path for path in stack.folder.glob("carrel-*/workers-*") if path.is_dir()]
    folders = [path for root in roots for path in root.iterdir() if path.is_dir()]
    assert len(folders) <= len(before)


async def test_signals_reach_nobody(stack: RunningStack, users: Users) -> None:
    service = stack.pid("agent_instance")
    assert service is not None
    beside = asyncio.create_task(users.run("beside", "behaves", do="nap"))
    sibling = max(children(service))
    told = (await users.run("shooter", "behaves", do="kill", service=service, sibling=sibling))["result"]
    assert told["self"] == "done"
    assert {told[name] for name in ("all", "parent", "service", "sibling", "group", "pidfd")} == {"PermissionError"}
    assert (await beside)["status"] == "SUCCEEDED"
    assert stack.pid("agent_instance") == service
    for name in ("gateway", "execution", "emitter", "bridge"):
        assert not gone(stack.pid(name) or 0)


@needs_landlock
async def test_no_secret_is_found(stack: RunningStack, users: Users) -> None:
    service = stack.pid("agent_instance")
    assert service is not None
    nap = asyncio.create_task(users.run("napper", "behaves", do="nap"))
    sibling = max(children(service))
    files = [str(path) for path in _secrets(stack)] + [str(stack.log_path), "/etc/shadow"]
    assert any("login.secret" in path for path in files)
    run = await users.run("thief", "behaves", do="look", service=service, sibling=sibling, files=files)
    told = run["result"]
    assert told["files"] == []
    assert told["found"] == []
    assert _CANARY not in str(told)
    assert not any(name.startswith("CARREL_") for name in told["environment"])
    for pid in {process["pid"] for process in stack.facts["processes"].values()} - {service}:
        again = await users.run("thief", "behaves", do="look", service=pid, sibling=os.getpid(), files=[])
        assert again["result"]["found"] == []
    half = len(_CANARY) // 2
    run = await users.run("thief", "behaves", do="look", service=1, sibling=1, half=_CANARY[:half], rest=_CANARY[half:])
    assert run["result"]["canary"] is False
    assert (await nap)["status"] == "SUCCEEDED"
