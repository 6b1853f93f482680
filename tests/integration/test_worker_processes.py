"""Worker processes over a real zygote: lives and deaths, limits, what is printed, what is left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import CarrelError, ProtocolError, StartupError, WorkerLimitError, WorkerLostError
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.workers.plant import check_memory, worker_environment
from tests.conftest import Eventually
from tests.integration.worker_support import AGENTS, Plant, children, gone, plant
from tests.support.awake import Awake


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Plant]:
    async with plant(tmp_path) as opened:
        yield opened


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def zygote_of(here: Plant) -> int:
    worker = await here.worker()
    pid = worker._host.pid
    await worker.kill()
    assert pid is not None
    return pid


async def test_an_agent_runs_in_a_process_of_its_own_and_nothing_is_left(here: Plant) -> None:
    _ = await here.run()  # what the first one opens for good is not counted
    before, alive = descriptors(), children()
    first = await here.run()
    second = await here.run()
    assert first["pid"] != second["pid"]
    assert first["seen"] == second["seen"] == ["alice"], "nothing of one attempt is seen in the next"
    assert descriptors() == before
    assert set(children()) == set(alive)
    assert here.folders == []


async def test_the_environment_of_an_attempt_is_its_own(here: Plant) -> None:
    told = await here.run("environment", environment={"OPENAI_BASE_URL": "http://localhost:1"})
    assert told["environment"]["OPENAI_BASE_URL"] == "http://localhost:1"
    assert told["environment"]["OMP_NUM_THREADS"] == "1"
    assert told["environment"]["TMPDIR"] == told["environment"]["HOME"] == told["cwd"]
    assert not Path(told["cwd"]).exists()
    again = await here.run("environment")
    assert "OPENAI_BASE_URL" not in again["environment"]
    assert again["cwd"] != told["cwd"]


def test_workers_see_an_allow_list_of_variables() -> None:
    environ = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "CARREL_TICKET_KEY": "x", "MINE": "y"}
    seen = worker_environment(environ, ["MINE", "ABSENT"])
    assert {name for name in seen if not name.endswith("THREADS")} == {"PATH", "MINE"}


async def test_an_exit_is_told_with_its_code_and_the_last_words(here: Plant) -> None:
    attempt = await here.start("exit")
    lost = await attempt.end(kill=False)
    assert isinstance(lost, WorkerLostError)
    assert "exit code 3" in lost.message
    assert attempt.executor.output == b"last words\n"
    await attempt.executor.kill()
    assert attempt.executor.output == b"last words\n"


async def test_a_crash_is_told_with_its_signal_and_where(here: Plant) -> None:
    attempt = await here.start("segfault")
    lost = await attempt.end()
    assert isinstance(lost, WorkerLostError)
    assert "SIGSEGV" in lost.message
    assert b"do_segfault" in attempt.executor.output


async def test_a_kill_from_outside_is_a_loss_at_once(here: Plant) -> None:
    attempt = await here.start("wait")
    await attempt.step()
    with Awake() as took:
        os.kill(int(attempt.thoughts[0]), signal.SIGKILL)
        lost = await attempt.end()
    assert took.seconds < 0.2
    assert isinstance(lost, WorkerLostError)
    assert lost.retryable
    assert "SIGKILL" in lost.message


async def test_killing_ends_an_agent_that_never_yields_and_may_be_done_twice(here: Plant) -> None:
    attempt = await here.start("loop")
    await attempt.step()
    pid = int(attempt.thoughts[0])
    await asyncio.gather(attempt.executor.kill(), attempt.executor.kill(), attempt.executor.aclose(1.0))
    assert gone(pid)
    assert await attempt.executor.receive() is None
    await attempt.executor.send(b"{}")
    await attempt.executor.join()
    with pytest.raises(WorkerLostError):
        await attempt.executor.initialize(here.registry.entry("behaves"))


async def test_kill_is_legal_before_and_during_a_start(here: Plant) -> None:
    before, alive = descriptors(), children()
    never = here.make()
    await never.kill()
    with pytest.raises(WorkerLostError):
        await never.start()
    during = here.make()
    starting = asyncio.create_task(during.start())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await during.kill()
    with pytest.raises(WorkerLostError):
        await starting
    cancelled = here.make()
    starting = asyncio.create_task(cancelled.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    await cancelled.kill()
    await here.run()
    await here.run()
    assert set(children()) == set(alive)
    assert descriptors() == before
    assert here.folders == []


async def test_memory_is_bounded_by_the_kernel_first(tmp_path: Path) -> None:
    async with plant(tmp_path, workers={"memory_mb": 256}) as here:
        error = await here.fail("allocate")
        assert isinstance(error, WorkerLimitError)
        assert (error.limit, error.limit_value) == ("memory", 256 << 20)
        assert not error.retryable
        assert await here.run()


async def test_shared_memory_counts_too(tmp_path: Path) -> None:
    async with plant(tmp_path, workers={"memory_mb": 128}) as here:
        error = await here.fail("share_memory")
        assert isinstance(error, WorkerLimitError)
        assert error.limit == "memory"


@pytest.mark.parametrize("do", ["burn", "burn_stubbornly"])
async def test_processor_time_is_bounded(tmp_path: Path, do: str) -> None:
    async with plant(tmp_path, workers={"cpu_seconds": 1}) as here:
        error = await here.fail(do)
        assert isinstance(error, WorkerLimitError)
        assert error.limit == "cpu"


async def test_files_are_bounded_one_by_one_and_in_all(tmp_path: Path) -> None:
    async with plant(tmp_path, workers={"temp_mb": 8}) as here:
        error = await here.fail("fill")
        assert isinstance(error, WorkerLimitError)
        assert error.limit == "files"
        assert here.folders == []


async def test_a_folder_is_removed_whatever_its_modes(here: Plant) -> None:
    left = await here.run("leave_files")
    assert not Path(left["folder"]).exists()
    assert here.folders == []


async def test_what_is_printed_is_drained_and_bounded(here: Plant) -> None:
    attempt = await here.start("print", mb=100)
    assert await attempt.end() == {}
    output = attempt.executor.output
    assert output.startswith(b"first\n")
    assert output.endswith(b"last\n")
    assert b"bytes left out" in output
    assert len(output) < 70 * 1024


async def test_a_worker_that_closes_its_descriptors_is_ended(here: Plant) -> None:
    lost = await here.fail("close_everything")
    assert isinstance(lost, WorkerLostError)
    assert "closed its connection" in lost.message


async def test_a_frame_over_the_bound_ends_that_worker_only(here: Plant) -> None:
    beside = await here.start("wait")
    await beside.step()
    assert isinstance(await here.fail("garble"), ProtocolError)
    os.kill(int(beside.thoughts[0]), 0)
    await beside.executor.kill()


async def test_a_dead_zygote_is_replaced_and_its_workers_are_lost(here: Plant, eventually: Eventually) -> None:
    attempt = await here.start("wait")
    await attempt.step()
    zygote = await zygote_of(here)
    os.kill(zygote, signal.SIGKILL)
    lost = await attempt.end()
    assert isinstance(lost, WorkerLostError)
    assert gone(int(attempt.thoughts[0]))
    assert await here.run(), "another zygote serves"
    assert await zygote_of(here) != zygote
    assert "Z" not in children().values()


async def test_a_stopped_service_leaves_no_process(tmp_path: Path) -> None:
    alive = children()
    async with plant(tmp_path) as here:
        attempt = await here.start("loop")
        await attempt.step()
    assert gone(int(attempt.thoughts[0]))
    await attempt.executor.kill()
    assert set(children()) == set(alive)
    assert not list((tmp_path / "temp").glob("*/*"))


async def test_a_killed_service_takes_its_workers_along(tmp_path: Path, eventually: Eventually) -> None:
    program = f"""
import asyncio
from pathlib import Path
from tests.integration.worker_support import plant
async def main():
    async with plant(Path({str(tmp_path)!r})) as here:
        attempt = await here.start("loop")
        await attempt.step()
        print(await asyncio.to_thread(lambda: attempt.thoughts[0]), attempt.executor._host.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(item) for item in (await process.stdout.readline()).split()]
    process.kill()
    await process.wait()
    await eventually(lambda: all(_ended(pid) for pid in pids))
    left = list((tmp_path / "temp").glob("*/workers-*"))
    assert left
    async with plant(tmp_path):
        assert not left[0].exists(), "the next one removes what it left"


def _ended(pid: int) -> bool:
    # Where nobody reaps for the container, a zombie is all there is to see.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


LEAVES = {
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n",
    # Closed at the end, or the interpreter would complain of it there.
    "socket": "import atexit, socket\nkept = socket.socket()\natexit.register(kept.close)\n",
}


@pytest.mark.parametrize("kind", LEAVES)
async def test_a_module_that_leaves_something_behind_is_named_and_loaded_by_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    leaver = tmp_path / f"leaves_a_{kind}.py"
    leaver.write_text(
        LEAVES[kind] + "from carrel import Agent\nclass Leaver(Agent):\n    name = 'leaver'\n"
        "    async def run(self, ctx, request):\n        return {'ran': True}\n"
    )
    async with plant(tmp_path, AGENTS, leaver) as here:
        (told,) = [vars(record)["fields"] for record in caplog.records if record.levelno == logging.WARNING]
        assert told["module"] == str(leaver)
        assert kind in told["left"]
        assert "imported" in told["advice"]
        assert (await here.run(agent="leaver"))["ran"]
        assert (await here.run())["pid"]


async def test_the_zygote_loads_no_grpc(here: Plant) -> None:
    loaded = Path(f"/proc/{await zygote_of(here)}/maps").read_text()
    assert "orjson" in loaded
    assert "cygrpc" not in loaded


async def test_a_class_that_declares_processes_may_have_them_and_they_end_with_it(here: Plant) -> None:
    sibling = await here.start("wait")
    await sibling.step()
    told = await here.run("", agent="breeds", sibling=int(sibling.thoughts[0]))
    assert told["said"] == "child\n"
    assert told["killed"] == -signal.SIGKILL
    assert told["all"] == "PermissionError"
    assert gone(told["left"])
    await sibling.executor.kill()


async def test_idle_workers_are_warm_and_one_that_dies_is_replaced(here: Plant, eventually: Eventually) -> None:
    pool = ResourcePool(here.make, warm=3)
    errors: list[CarrelError] = []
    refill = asyncio.create_task(pool.keep_filled(errors.append))
    await eventually(lambda: pool.idle == 3)
    victim = next(iter(pool._waiting))
    assert victim._watched is not None  # type: ignore[attr-defined]
    os.kill(victim._watched.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    await eventually(lambda: pool.created == 4 and pool.idle == 3)
    with Awake() as took:
        part = await pool.acquire()
    assert part.warm
    assert took.seconds < 0.1
    await part.executor.kill()
    refill.cancel()
    await asyncio.wait({refill})
    await pool.aclose()
    assert (pool.idle, errors) == (0, [])
    assert here.folders == []


def _settings(**changes: Any) -> AgentInstanceSettings:
    return AgentInstanceSettings.model_validate({"max_workers": 4, **changes})


def test_more_workers_than_memory_are_refused_in_production_with_what_to_write() -> None:
    workers = {"memory_mb": 1024, "max_children": 0}
    check_memory(_settings(workers=workers, environment="production", tls={"mode": "mesh"}), 4 << 30)
    with pytest.raises(StartupError) as caught:
        check_memory(_settings(workers=workers, environment="production", tls={"mode": "mesh"}), 3 << 30)
    assert "4096 MB" in caught.value.message
    for name in ("MAX_WORKERS", "WORKERS__MEMORY_MB", "WORKERS__ALLOW_OVERCOMMIT=true"):
        assert name in caught.value.advice
    check_memory(_settings(workers=workers), 3 << 30)
    check_memory(
        _settings(workers={**workers, "allow_overcommit": True}, environment="production", tls={"mode": "mesh"}),
        3 << 30,
    )
    with pytest.raises(StartupError):
        check_memory(_settings(workers={**workers, "allow_overcommit": False}), 3 << 30)
