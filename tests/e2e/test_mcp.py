"""MCP servers through the whole stack: an agent in a worker process, its server a process of agent_instance's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from carrel.client import SocketClient
from tests.conftest import Eventually
from tests.e2e.checks import check_run, until_end
from tests.support.stack import ROOT, RunningStack, clean_environment, running_stack

AGENTS = [str(Path(__file__).with_name("mcp_agents.py"))]
SERVER = {
    "command": sys.executable,
    "args": ["-m", "tests.support.mcp_server"],
    "env": {"PYTHONPATH": str(ROOT)},
    "start_timeout": 40,
    # The permissions that a token of a test's user has are the packaged agents'.
    "permission": {"secret": "notes:secret", "*": "trace:read"},
    "approval": ["picture"],
}


@pytest.fixture(scope="module")
def noting_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "mcp.json").write_text(json.dumps({"notes": SERVER}), encoding="utf-8")
    environment = {"CARREL_AGENT_INSTANCE_MCP": str(folder / "mcp.json")}
    with running_stack(folder, agents=AGENTS, environment=environment) as running:
        # The stack does not wait for servers that are slow to start.
        deadline = time.monotonic() + 60
        while "tools are listed" not in running.log():
            assert time.monotonic() < deadline, running.log()[-2000:]
            time.sleep(0.1)
        yield running


def _servers(stack: RunningStack) -> list[int]:
    pid = stack.pid("agent_instance")
    assert pid is not None
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "tests.support.mcp_server" in process.cmdline():
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def _noted(client: SocketClient, text: str) -> list[Any]:
    """A run's events; its question is answered with yes."""
    run = await client.execute(text, pipeline=["noter"])
    before = []
    async for event in client.events():
        before.append(event)
        if event.event_type == "input_required":
            assert event.data["tool_name"] == "notes__picture"
            await client.provide_input(run.run_id, event.data["input_id"], {"approved": True})
            break
    return check_run([*before, *await until_end(client, run.run_id)], run.run_id)


async def test_an_agent_uses_a_servers_tools_across_a_wait_for_approval(
    noting_stack: RunningStack, eventually: Eventually
) -> None:
    async with noting_stack.client("ida") as client, asyncio.timeout(50):
        events = await _noted(client, "of ida")
    assert events[-1].data["status"] == "SUCCEEDED", events[-1].data
    result = events[-1].data["result"]
    # From the journal: the session that kept it ended with the attempt that asked.
    assert result["found"]["structured"]["result"] == ["of ida"]
    assert result["refused"] == "TOOL_PERMISSION"
    artifact = result["picture"]["files"][0]["artifact"]
    async with noting_stack.http("ida") as http:
        (stored,) = [item for item in await http.artifacts(events[0].run_id) if item.name == artifact["name"]]
        assert await http.artifact_data(stored) == b"\x89PNG picture"
    called = [event.data["tool_name"] for event in events if event.event_type == "tool_executing"]
    assert called == ["notes__remember", "notes__recall", "notes__picture"]
    await eventually(lambda: not _servers(noting_stack), within=10)


async def test_users_at_once_see_nothing_of_one_another(noting_stack: RunningStack) -> None:
    async def one(user: str) -> None:
        async with noting_stack.client(user) as client:
            events = await _noted(client, f"of {user}")
            assert events[-1].data["result"]["found"]["structured"]["result"] == [f"of {user}"]

    async with asyncio.timeout(55):
        await asyncio.gather(one("jo"), one("kim"))


def test_a_wrong_setting_stops_the_start_and_shows_no_secret() -> None:
    setting = '{"notes": {"url": "http://localhost:1/", "headers": {"Authorization": "hush\\n"}, "timeot": 3}}'
    done = subprocess.run(
        [sys.executable, "-m", "services.agent_instance"],
        env=clean_environment({"CARREL_AGENT_INSTANCE_MCP": setting}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "notes.timeot: is not known" in said
    assert "hush" not in said
