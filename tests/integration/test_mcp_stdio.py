"""MCP servers that speak on their standard streams, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from carrel.errors import ToolFailedError, ToolUnavailableError
from services.agent_instance.workers import kernel
from tests.conftest import Eventually, disinherit
from tests.integration.mcp_support import ROOT, Caller, cancelled_in, children, logged, opened, stdio
from tests.support.awake import Awake


async def test_tools_are_listed_with_the_servers_own_schemas() -> None:
    async with opened({"notes": stdio(exclude=["secret"])}) as servers:
        tools = Caller(servers, "notes").mine.tools(Caller(servers, "notes").entry)
        assert "notes__secret" not in tools
        add = tools["notes__add"]
        assert add.description == "Add two points."
        assert set(add.input_schema["properties"]) == {"a", "b"}
        assert (add.host, add.server, add.permission, add.timeout_s) == (True, "notes", "mcp:notes:add", 30.0)


async def test_values_structures_pictures_and_errors_come_back() -> None:
    async with opened({"notes": stdio()}) as servers:
        call = Caller(servers, "notes")
        assert (await call("notes__add", a={"x": 1, "y": 2}, b={"x": 3, "y": 4}))["structured"] == {"x": 4, "y": 6}
        picture = await call("notes__picture")
        assert picture["files"][0]["artifact"]["media_type"] == "image/png"
        assert list(call.artifacts.stored.values()) == [b"\x89PNG picture"]
        with pytest.raises(ToolFailedError, match="tool notes__fail: "):
            await call("notes__fail", reason="because")
        # The session is as it was.
        assert await call.value("notes__remember", text="a") == 1


async def test_a_run_sees_nothing_of_another_runs_session(eventually: Eventually) -> None:
    async with opened({"notes": stdio()}) as servers:
        one, other = Caller(servers, "notes"), Caller(servers, "notes")
        assert await one.value("notes__remember", text="mine") == 1
        assert await one.value("notes__remember", text="mine too") == 2
        assert await other.value("notes__recall") == []
        assert await one.value("notes__pid") != await other.value("notes__pid")
        await one.mine.aclose()
        await other.mine.aclose()
        await eventually(lambda: not children(), what="no process of an ended attempt")


async def test_a_stateless_server_serves_all_from_one_process(eventually: Eventually) -> None:
    async with opened({"notes": stdio(stateless=True)}) as servers:
        pids = {await Caller(servers, "notes").value("notes__pid") for _ in range(3)}
        assert len(pids) == 1
        os.kill(pids.pop(), signal.SIGKILL)
        # It comes back by itself.
        call = Caller(servers, "notes")

        async def again() -> object:
            try:
                return await call.value("notes__pid")
            except ToolUnavailableError:
                return None

        await eventually(again, within=10)
        assert len(children()) == 1
    await eventually(lambda: not children())


async def test_the_process_sees_the_declared_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_SECRET", "hush")
    monkeypatch.setenv("ALLOWED", "yes")
    async with opened({"notes": stdio(env_allow=["ALLOWED"])}) as servers:
        seen = (await Caller(servers, "notes")("notes__environment"))["structured"]
    assert set(seen) <= {"PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "ALLOWED", "LC_CTYPE"}
    assert seen["ALLOWED"] == "yes"


async def test_a_server_killed_in_the_middle_fails_its_calls_typed_and_comes_back_empty(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with opened({"notes": stdio(tmp_path / "log")}) as servers:
        call, other = Caller(servers, "notes"), Caller(servers, "notes")
        await other.value("notes__remember", text="of another run")
        await call.value("notes__remember", text="lost with the process")
        under_way = [asyncio.create_task(call("notes__sleep", seconds=30)) for _ in range(2)]
        await logged(tmp_path / "log", "sleep", eventually)
        pid = await call.value("notes__pid")
        with Awake() as took:
            os.kill(pid, signal.SIGKILL)
            for task in under_way:
                with pytest.raises(ToolUnavailableError, match="killed by signal 9; a call under way may have had"):
                    await task
        assert took.seconds < 2
        with pytest.raises(ToolUnavailableError) as raised:
            await call("notes__recall")
        assert (raised.value.code, raised.value.retryable) == ("TOOL_UNAVAILABLE", True)
        await asyncio.sleep(raised.value.retry_after_s or 0)
        assert await call.value("notes__recall") == []
        # Nothing happened to the other run's.
        assert await other.value("notes__recall") == ["of another run"]
        assert not psutil.pid_exists(pid)


async def test_a_server_that_dies_of_every_call_waits_longer_each_time() -> None:
    async with opened({"notes": stdio(backoff=0.5, backoff_max=2.0)}) as servers:
        call = Caller(servers, "notes")
        pauses = []
        for _ in range(2):
            with pytest.raises(ToolUnavailableError, match="killed by signal 9"):
                await call("notes__die")
            with pytest.raises(ToolUnavailableError, match="started again") as raised:
                await call("notes__die")
            pauses.append(raised.value.retry_after_s or 0)
            await asyncio.sleep(pauses[-1])
        assert pauses[0] <= 0.5 < pauses[1] <= 1.0


async def test_a_cancelled_call_is_free_at_once_and_the_server_is_told(tmp_path: Path, eventually: Eventually) -> None:
    async with opened({"notes": stdio(tmp_path / "log")}) as servers:
        call = Caller(servers, "notes")
        task = asyncio.create_task(call("notes__sleep", seconds=30))
        await logged(tmp_path / "log", "sleep", eventually)
        assert await cancelled_in(task) < 0.1
        assert "slept" not in await logged(tmp_path / "log", "cancelled", eventually)
        assert await call.value("notes__remember", text="still there") == 1


async def test_a_server_that_hangs_is_left_at_once_and_killed_with_the_attempt(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with opened({"notes": stdio(tmp_path / "log")}) as servers:
        call = Caller(servers, "notes")
        task = asyncio.create_task(call("notes__freeze"))
        await logged(tmp_path / "log", "freeze", eventually)
        assert await cancelled_in(task) < 0.1
        waiting = asyncio.create_task(call("notes__recall"))
        await asyncio.sleep(0)
        assert await cancelled_in(waiting) < 0.1
        await call.mine.aclose()
        await eventually(lambda: not children() and servers.sessions("notes") == 0, within=10)


async def test_lines_that_are_no_messages_are_passed_over_and_too_many_end_the_session() -> None:
    async with opened({"notes": stdio()}) as servers:
        call = Caller(servers, "notes")
        assert await call.value("notes__garbage", lines=50) == "written"
        assert await call.value("notes__remember", text="a") == 1
        with pytest.raises(ToolUnavailableError, match="no messages to its standard output"):
            await call("notes__garbage", lines=100)


async def test_a_result_over_the_bounds_becomes_an_artifact_or_fails_that_call_alone() -> None:
    async with opened({"notes": stdio(max_message_bytes=1024 * 1024, max_result_bytes=10_000)}) as servers:
        call = Caller(servers, "notes")
        assert len(await call.value("notes__big", size=1000)) == 1000
        assert (await call("notes__big", size=50_000))["too_large"] > 50_000
        other = asyncio.create_task(call.value("notes__sleep", seconds=0.3))
        with pytest.raises(ToolFailedError, match="the answer is larger than 1048576 bytes"):
            await call("notes__big", size=3_000_000)
        assert await other == "slept"
        assert await call.value("notes__recall") == []


@pytest.mark.parametrize(
    ("command", "args", "told"),
    [
        ("no-such-program", [], "it ended with status 127"),
        (sys.executable, ["-c", "print('hello')"], "it ended with status 0"),
        ("sleep", ["30"], r"no answer within 0\.5 s"),
        ("yes", [], "no messages to its standard output"),
    ],
)
async def test_what_is_no_server_is_unavailable_and_leaves_no_process(
    command: str, args: list[str], told: str, eventually: Eventually
) -> None:
    settings = {"command": command, "args": args, "start_timeout": 0.5 if command == "sleep" else 10, "backoff": 20}
    before = set(psutil.Process().children())
    async with opened({"notes": settings}) as servers:
        server, call = servers._servers["notes"], Caller(servers, "notes")
        assert call.mine.tools(call.entry) == {}
        assert isinstance(call.mine.missing(call.entry, "notes__x"), ToolUnavailableError)
        with pytest.raises(ToolUnavailableError, match="it cannot be reached"):
            await server.open()
        server._backoff.succeeded()
        with pytest.raises(ToolUnavailableError, match=told):
            await server.open()
        # Other tests' servers may be this process's children, too.
        await eventually(lambda: set(psutil.Process().children()) <= before)


@pytest.mark.parametrize("heir", [False, True], ids=["", "heir of orphans"])
async def test_what_a_server_left_in_its_group_ends_with_it(tmp_path: Path, eventually: Eventually, heir: bool) -> None:
    if heir:  # as agent_instance is
        kernel.become_subreaper()
    # It holds the server's streams open, too.
    script = f"sleep 300 & echo $! > {tmp_path}/pid; exec {sys.executable} -m tests.support.mcp_server"
    async with opened({"notes": {**stdio(), "command": "sh", "args": ["-c", script]}}) as servers:
        call = Caller(servers, "notes")
        with pytest.raises(ToolUnavailableError, match="killed by signal 9"):
            await call("notes__die")
        left = int((tmp_path / "pid").read_text(encoding="ascii"))
        if heir:
            await eventually(lambda: not psutil.pid_exists(left))
            disinherit()
        else:
            await eventually(
                lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
            )


async def test_sessions_that_come_and_go_leave_no_process_and_no_descriptor(eventually: Eventually) -> None:
    async with opened({"notes": stdio()}) as servers:

        async def one() -> None:
            call = Caller(servers, "notes")
            await call.value("notes__pid")
            await call.mine.aclose()

        await one()
        await eventually(lambda: not children())
        before = psutil.Process().num_fds()
        await asyncio.gather(*(one() for _ in range(4)))
        await eventually(lambda: not children())
        await eventually(lambda: psutil.Process().num_fds() <= before)


_PARENT = """
import asyncio, sys
from tests.integration.mcp_support import Caller, opened, stdio
async def main():
    async with opened({"notes": stdio()}) as servers:
        print(await Caller(servers, "notes").value("notes__pid"), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_server_ends_with_a_service_that_is_killed(eventually: Eventually) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not psutil.pid_exists(pid))
