"""A data folder that is read-only or full, at the start and in the middle of the work. On a small tmpfs: needs root.

Nothing that was acknowledged is lost, what cannot be stored is refused, and with room again everything goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from carrel.client import Event, Position
from carrel.ids import new_id
from tests.conftest import Eventually
from tests.support.identity import identity
from tests.support.stack import RunningStack, clean_environment, running_stack

_PROBES: Final = Path(__file__).parents[1] / "security" / "probe_agents.py"
_SIZE_MIB: Final = 24
# A store that failed is looked at again after 30 s; tests have no such patience.
_SETTINGS: Final = {"CARREL_BRIDGE_PROBE_INTERVAL_S": "0.5", "CARREL_BRIDGE_FAILED_PROBE_INTERVAL_S": "0.5"}


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs on the folder for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _start(service: str, module: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    keys = folder / "keys"
    jwks, _, key = identity().write(keys)
    own = {
        "CARREL_TICKET_JWKS": str(jwks),
        f"CARREL_{service.upper()}_LISTEN": "127.0.0.1:0",
        "CARREL_DOWNSTREAM_WAIT_SECONDS": "0.3",
    }
    if service == "execution":
        own["CARREL_EXECUTION_TICKET_KEY"] = str(key)
    return subprocess.run(
        [sys.executable, "-P", "-m", module],
        env=clean_environment(own | settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


_STORES: Final = (
    ("bridge", "services.bridge", "CARREL_BRIDGE_LOG__PATH", "events.db"),
    ("execution", "services.execution", "CARREL_EXECUTION_DATA_DIR", ""),
)


@pytest.mark.parametrize(("service", "module", "setting", "name"), _STORES)
@pytest.mark.parametrize("broken", ["read-only", "full"])
def test_a_start_on_a_folder_that_cannot_be_written(
    broken: str, service: str, module: str, setting: str, name: str, tmp_path: Path
) -> None:
    with _mounted(tmp_path / "data", "ro,size=1m" if broken == "read-only" else "size=64k") as data:
        if broken == "full":
            with contextlib.suppress(OSError):
                (data / "ballast").write_bytes(b"x" * (1 << 20))
        ended = _start(service, module, tmp_path, **{setting: str(data / name)})
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"{service} could not start" in ended.stderr
    assert "INTEGRATION" in ended.stderr
    assert str(data) in ended.stderr
    assert "to do" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[RunningStack]:
    """A whole stack whose state folder is on a small disk of its own."""
    with (
        _mounted(tmp_path / "state", f"size={_SIZE_MIB}m,mode=0700"),
        running_stack(tmp_path, agents=[str(_PROBES)], environment=_SETTINGS) as running,
    ):
        yield running


def _fill(folder: Path) -> Path:
    """Take the last byte of the folder's disk; the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(folder).f_bavail == 0
    return ballast


@pytest.fixture
async def small_log(tmp_path: Path) -> AsyncIterator[tuple[RunningStack, Path]]:
    """A stack whose event log alone is on a small disk, and that disk."""
    disk = tmp_path / "disk"
    with _mounted(disk, "size=4m"):
        settings = {**_SETTINGS, "CARREL_BRIDGE_LOG__PATH": str(disk / "events.db")}
        with running_stack(tmp_path, agents=[str(_PROBES)], environment=settings) as running:
            yield running, disk


async def _execute(http: aiohttp.ClientSession, message: str, prefer: str = "") -> tuple[int, dict[str, Any]]:
    body = {"message": message, "agent_name": "echo"}
    async with http.post("/api/agents/execute", json=body, headers={"Prefer": prefer}) as response:
        return response.status, await response.json()


async def test_a_disk_that_fills_up_refuses_new_work_and_goes_on_with_room(
    small: RunningStack, eventually: Eventually
) -> None:
    user = new_id("user")
    headers = {"Authorization": f"Bearer {small.token(user)}"}
    timeout = aiohttp.ClientTimeout(40)
    async with aiohttp.ClientSession(small.url, headers=headers, timeout=timeout) as http:
        before = await _execute(http, "before")
        assert (before[0], before[1]["status"]) == (200, "SUCCEEDED")
        pids = {name: small.pid(name) for name in ("execution", "bridge", "gateway")}
        ballast = _fill(small.state.root)
        refused: list[dict[str, Any]] = []

        async def is_refused() -> bool:
            # The stores have some pages of their own to write into before they need the disk.
            status, answer = await _execute(http, "x" * 60_000, "respond-async")
            if status == 503:
                refused.append(answer["error"])
            return bool(refused)

        await eventually(is_refused, within=25, what="a request is refused for want of room")
        error = refused[0]
        assert (error["code"], error["retryable"]) == ("STORE_UNAVAILABLE", True)
        assert error["message"]
        assert error["advice"]
        ballast.unlink()

        async def works() -> bool:
            status, answer = await _execute(http, "after", "wait=5")
            return (status, answer.get("status")) == (200, "SUCCEEDED")

        await eventually(works, within=25, what="requests succeed again")
        assert {name: small.pid(name) for name in pids} == pids, "no process had to be restarted"
        await _check_everything(small, user, http)


async def test_a_log_that_is_full_holds_the_end_of_a_run_back_until_there_is_room(
    small_log: tuple[RunningStack, Path], eventually: Eventually
) -> None:
    stack, disk = small_log
    user = new_id("user")
    headers = {"Authorization": f"Bearer {stack.token(user)}"}
    async with aiohttp.ClientSession(stack.url, headers=headers, timeout=aiohttp.ClientTimeout(40)) as http:
        ballast = _fill(disk)
        # Each run brings more events than the pages that the log's file still has; not one may end without them.
        waiting: list[str] = []

        async def is_held_up() -> bool:
            status, answer = await _execute(http, "x" * 8_000, "wait=1")
            assert status in {200, 202}, answer
            if status == 202:
                waiting.append(answer["run_id"])
            return bool(waiting)

        await eventually(is_held_up, within=25, what="a run waits for the log")
        async with http.get(f"/api/runs/{waiting[0]}") as response:
            run = await response.json()
        assert run["status"] in {"RUNNING", "FINISHING"}, "no terminal status before its terminal event is in the log"
        ballast.unlink()

        async def has_ended() -> bool:
            async with http.get(f"/api/runs/{waiting[0]}") as response:
                found: bool = (await response.json())["status"] == "SUCCEEDED"
                return found

        await eventually(has_ended, within=25, what="the run ends once there is room")
        await _check_everything(stack, user, http)


async def _check_everything(stack: RunningStack, user: str, http: aiohttp.ClientSession) -> None:
    """Every run that was ever admitted has ended, and the log has all of it, in order and once."""
    async with asyncio.timeout(30):
        while True:
            async with http.get("/api/runs", params={"page_size": "200"}) as response:
                runs = (await response.json())["runs"]
            if all(run["status"] in {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"} for run in runs):
                break
            await asyncio.sleep(0.05)
    open_runs = {run["run_id"] for run in runs}
    events: list[Event] = []
    async with asyncio.timeout(20), stack.client(user, resume=Position()) as client:
        async for event in client.events():
            events.append(event)
            if event.terminal:
                open_runs.discard(event.run_id)
            if not open_runs:
                break
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    assert len({event.event_id for event in events}) == len(events)
    for run in runs:
        kinds = [event.event_type for event in events if event.run_id == run["run_id"]]
        assert kinds[0] == "run_accepted"
        assert kinds.count("run_completed") == 1
        assert kinds[-1] == "run_completed"
