"""`kill -9` of execution in the middle of runs, and starts that must fail: as a process of its own."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import pytest

from carrel.v1 import execution_pb2 as pb
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.rpc.channel import open_channel
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.execution import Attempt, LogEmitter, ScriptedAgents, Up, World, answer, neighbours, result, stuck
from tests.support.identity import identity, session_context

# Processes take long to start on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def around() -> AsyncIterator[tuple[ScriptedAgents, str, LogEmitter, str]]:
    async with neighbours() as them:
        yield them


def environment(folder: Path, agents_at: str, emitter_at: str) -> dict[str, str]:
    jwks, _, key = identity().write(folder / "keys")
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CARREL_STATE_DIR": str(folder),
        "CARREL_TICKET_JWKS": str(jwks),
        "CARREL_READY_FILE": str(folder / "ready"),
        "CARREL_DOWNSTREAM_WAIT_SECONDS": "3",
        "CARREL_DRAIN_SECONDS": "1",
        "CARREL_EXECUTION_LISTEN": "127.0.0.1:0",
        "CARREL_EXECUTION_AGENT_INSTANCE": agents_at,
        "CARREL_EXECUTION_EMITTER": emitter_at,
        "CARREL_EXECUTION_TICKET_KEY": str(key),
        "CARREL_EXECUTION_DATA_DIR": str(folder / "data"),
    }


async def start(env: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "services.execution",
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def process(
    folder: Path,
    around: tuple[ScriptedAgents, str, LogEmitter, str],
    eventually: Eventually,
    **changes: str,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, World]]:
    """execution in a process of its own, killed at the end if it still lives."""
    agents, agents_at, emitter, emitter_at = around
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    child = await start(environment(folder, agents_at, emitter_at) | changes)
    assert child.stderr is not None
    drained = asyncio.create_task(child.stderr.read())
    try:
        await eventually(lambda: ready.exists() or child.returncode is not None, within=60)
        assert child.returncode is None, (await drained).decode()
        address = ready.read_text().strip()
        async with open_channel(address) as channel:
            yield child, World(agents, emitter, pb_grpc.ExecutionServiceStub(channel), address, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        await drained


async def test_runs_of_a_killed_execution_go_on_within_five_seconds_of_its_restart(
    tmp_path: Path, around: tuple[ScriptedAgents, str, LogEmitter, str], eventually: Eventually
) -> None:
    agents, _, emitter, _ = around
    agents.scripts |= {"data": stuck, "optimization": stuck}
    async with process(tmp_path, around, eventually) as (child, world):
        running = (await world.execute(pipeline=["data"])).run.run_id
        await eventually(lambda: agents.attempt("data"))
        agents.scripts["data"] = answer({"rows": 3})
        second = (await world.execute(user="bob", pipeline=["data", "optimization"])).run.run_id
        await eventually(lambda: agents.attempt("optimization"))
        agents.scripts["data"] = stuck
        emitter.hold = lambda event: event.event_type == "run_completed"
        finishing = (await world.execute(user="carol", pipeline=["data"])).run.run_id
        await world.cancel(finishing, "carol")
        emitter.hold = lambda event: True  # from here on not even an admission reaches the log
        unheard = (await world.execute(user="dave", pipeline=["data"])).run.run_id
        child.send_signal(signal.SIGKILL)
        await child.wait()
    await eventually(lambda: all(attempt.closed for attempt in agents.attempts))  # losing the stream kills it
    emitter.hold = lambda event: False
    emitter.released.set()
    former = len(agents.attempts)
    agents.scripts |= {"data": answer({"rows": 4}), "optimization": answer({})}
    async with process(tmp_path, around, eventually) as (_, world):
        with Awake() as took:  # how long a start takes on a busy machine is not what is tested here
            for run_id, user in ((running, "alice"), (second, "bob"), (unheard, "dave")):
                run = await world.ended(run_id, user)
                assert run.state == pb.RUN_STATE_SUCCEEDED
                assert emitter.kinds(run_id, user) == ["run_accepted", "run_attempt", "run_completed"]
                told = emitter.log(run_id, user)[1][1]
                assert (told["attempt"], told["reason"]) == (2, "execution_restarted")
        assert took.seconds < 5
        again = {attempt.start.agent_name for attempt in agents.attempts[former:] if attempt.context.user_id == "bob"}
        assert again == {"optimization"}, "a checkpointed stage ran again"
        latest = agents.attempt("optimization")
        assert latest is not None
        assert orjson.loads(latest.start.results_json["data"]) == {"rows": 3}
        assert (await world.ended(finishing, "carol")).state == pb.RUN_STATE_CANCELLED
        assert emitter.kinds(finishing, "carol") == ["run_accepted", "agent_error", "run_completed"]
        for _ in range(2):  # every engine is free again
            await world.execute(pipeline=["data"])


async def test_second_process_on_the_same_data_folder_is_refused(
    tmp_path: Path, around: tuple[ScriptedAgents, str, LogEmitter, str], eventually: Eventually
) -> None:
    async with process(tmp_path, around, eventually):
        second = await start(environment(tmp_path, around[1], around[3]))
        _, errors = await second.communicate()
    assert second.returncode == 1
    assert b"another execution process" in errors


async def test_start_without_agent_instance_fails_and_says_what_to_do(
    tmp_path: Path, around: tuple[ScriptedAgents, str, LogEmitter, str]
) -> None:
    env = environment(tmp_path, "127.0.0.1:1", around[3]) | {"CARREL_DOWNSTREAM_WAIT_SECONDS": "0.5"}
    child = await start(env)
    _, errors = await child.communicate()
    assert child.returncode == 1
    assert b"INTEGRATION" in errors
    assert b"agent_instance at 127.0.0.1:1" in errors


async def test_sigterm_lets_runs_end_and_refuses_new_ones(
    tmp_path: Path, around: tuple[ScriptedAgents, str, LogEmitter, str], eventually: Eventually
) -> None:
    go = asyncio.Event()

    async def patient(attempt: Attempt) -> AsyncIterator[Up]:
        await go.wait()
        yield result({})

    around[0].agents["other"] = ((), False)
    around[0].scripts |= {"data": stuck, "other": patient}
    # Long enough that the second run ends in it however slow the machine is; the first one never does.
    async with process(tmp_path, around, eventually, CARREL_DRAIN_SECONDS="4") as (child, world):
        run_id = (await world.execute(pipeline=["data"])).run.run_id
        ending = (await world.execute(user="bob", pipeline=["other"])).run.run_id
        watch = world.stub.WatchRun(pb.WatchRunRequest(context=session_context("bob"), run_id=ending), timeout=20)
        assert (await watch.read()).run.state == pb.RUN_STATE_RUNNING
        await eventually(lambda: len(around[0].attempts) == 2)
        with Awake() as took:
            child.terminate()
            await asyncio.sleep(0.2)  # it drains
            go.set()
            states = []
            while (response := await watch.read()) is not grpc.aio.EOF:
                states.append(response.run.state)
            assert states[-1] == pb.RUN_STATE_SUCCEEDED
            assert await child.wait() == 0
        assert took.seconds < 10
    around[0].scripts["data"] = answer({})
    async with process(tmp_path, around, eventually) as (_, world):
        assert (await world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        with pytest.raises(grpc.aio.AioRpcError):
            await world.watched("run-none")
