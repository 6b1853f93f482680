"""A service as a process: it starts or says why not, ends in order on a signal, and never takes longer than it said."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import StartupError, UnavailableError
from carrel.v1 import bridge_pb2, bridge_pb2_grpc
from servicekit.contracts import Phase
from servicekit.lifecycle import Starter, failure_block
from servicekit.rpc.channel import open_channel
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.identity import identity, session_context

PROGRAM = Path(__file__).with_name("demo_service.py")
ROOT = Path(__file__).parents[3]


@dataclass
class Demo:
    """The demo service as a child process."""

    process: asyncio.subprocess.Process
    ready_file: Path
    trace: Path

    @property
    def address(self) -> str:
        return self.ready_file.read_text().strip()

    def events(self) -> list[str]:
        return self.trace.read_text().split("\n")[:-1] if self.trace.exists() else []

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """The exit code and everything on stderr."""
        _, stderr = await asyncio.wait_for(self.process.communicate(), 40)
        assert self.process.returncode is not None
        return self.process.returncode, stderr.decode()


@pytest.fixture
async def start(tmp_path: Path, eventually: Eventually) -> AsyncIterator[Any]:
    """`await start(fault="task")` starts the demo; with `ready=True` it waits until it is ready."""
    identity().write(tmp_path / "keys")
    demos: list[Demo] = []

    async def run(*, ready: bool = False, environ: dict[str, str] | None = None, **settings: Any) -> Demo:
        number = len(demos)
        trace, ready_file = tmp_path / f"trace-{number}", tmp_path / f"ready-{number}"
        own = {f"CARREL_BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "GRPC_VERBOSITY": "NONE",
            "CARREL_STATE_DIR": str(tmp_path),
            "CARREL_READY_FILE": str(ready_file),
            "CARREL_BRIDGE_TRACE": str(trace),
            **own,
            **(environ or {}),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(PROGRAM), env=environment, stderr=asyncio.subprocess.PIPE
        )
        demo = Demo(process, ready_file, trace)
        demos.append(demo)
        if ready:
            await eventually(lambda: demo.ready_file.exists() or process.returncode is not None, within=40)
        return demo

    yield run
    for demo in demos:
        if demo.process.returncode is None:
            demo.process.kill()
            await demo.process.wait()


def logged(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


async def test_service_tells_its_address_and_ends_in_order_on_sigterm(start: Any) -> None:
    demo = await start(ready=True)
    assert int(demo.address.removeprefix("127.0.0.1:")) > 0
    demo.send()
    code, stderr = await demo.end()
    assert code == 0
    assert demo.events() == ["store opened", "draining", "server gone", "store closed"]
    events = [line["event"] for line in logged(stderr)]
    assert [e for e in events if e != "phase part done"] == ["ready", "stopping", "draining", "drained", "stopped"]
    assert logged(stderr)[0]["address"] == demo.address


async def test_address_goes_to_a_file_descriptor_too(tmp_path: Path) -> None:
    identity().write(tmp_path / "keys")
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(PROGRAM),
        env={"PYTHONPATH": str(ROOT), "CARREL_STATE_DIR": str(tmp_path), "CARREL_READY_FD": str(writer)},
        pass_fds=[writer],
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = await asyncio.to_thread(pipe.read)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert told.startswith("127.0.0.1:")
    assert told.endswith("\n")


async def test_wrong_settings_end_the_start_with_78_and_one_block(start: Any) -> None:
    demo = await start(listn="x", environ={"CARREL_LOG_LEVEL": "loud"})
    code, stderr = await demo.end()
    assert code == 78
    lines = stderr.splitlines()
    assert lines[0] == "bridge could not start"
    assert lines[1] == "  phase    CONFIGURATION"
    assert "did you mean CARREL_BRIDGE_LISTEN?" in stderr
    assert "CARREL_LOG_LEVEL=loud is wrong" in stderr
    assert lines[-1].startswith("  to do    ")
    assert "Traceback" not in stderr


async def test_missing_keys_are_a_matter_of_configuration(start: Any) -> None:
    demo = await start(environ={"CARREL_TICKET_JWKS": "/nowhere/keys.json"})
    code, stderr = await demo.end()
    assert code == 78
    assert "needed   the public keys of who mints tickets" in stderr
    assert "/nowhere/keys.json cannot be read: No such file or directory" in stderr


async def test_absent_downstream_service_ends_the_start(start: Any) -> None:
    demo = await start(downstream="127.0.0.1:1", environ={"CARREL_DOWNSTREAM_WAIT_SECONDS": "0.3"})
    code, stderr = await demo.end()
    assert code == 1
    assert "  phase    INTEGRATION\n  needed   the emitter at 127.0.0.1:1\n" in stderr
    assert "the emitter was not ready within 0.3 s" in stderr
    assert demo.events() == ["store opened", "store closed"]


async def test_port_in_use_ends_the_start_and_says_so(start: Any) -> None:
    first = await start(ready=True)
    second = await start(listen=first.address)
    code, stderr = await second.end()
    assert code == 1
    assert "  phase    READINESS\n" in stderr
    assert f"cannot listen on {first.address}" in stderr
    assert second.events() == ["store opened", "store closed"]


@pytest.mark.parametrize(
    ("fault", "needed", "happened", "to_do"),
    [
        ("store", "the log's store", "Permission denied: /var/lib/log.db", "make the folder writable"),
        ("app", "settings that are all known", "ValueError: no such thing", "`carrel config`"),
    ],
)
async def test_any_failure_names_need_and_advice(
    start: Any, fault: str, needed: str, happened: str, to_do: str
) -> None:
    demo = await start(fault=fault)
    code, stderr = await demo.end()
    assert code != 0
    for text in (f"needed   {needed}", f"happened {happened}", to_do):
        assert text in stderr
    assert "Traceback" not in stderr


async def test_open_call_is_cut_off_when_the_drain_is_over(start: Any, eventually: Eventually) -> None:
    demo = await start(ready=True, environ={"CARREL_DRAIN_SECONDS": "0.3"})
    async with open_channel(demo.address) as channel:
        call = asyncio.ensure_future(resolve(channel))
        await eventually(lambda: "call began" in demo.events())
        began = time.monotonic()
        with Awake() as took:
            demo.send()
            code, _ = await demo.end()
            with pytest.raises(UnavailableError):
                await call
        lasted = time.monotonic() - began
    assert code == 0
    assert lasted > 0.25
    assert took.seconds < 5
    assert demo.events() == [
        "store opened",
        "call began",
        "draining",
        "call cut off",
        "server gone",
        "store closed",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_hastens_the_end(start: Any, eventually: Eventually, number: int) -> None:
    demo = await start(ready=True, environ={"CARREL_DRAIN_SECONDS": "60"})
    async with open_channel(demo.address) as channel:
        call = asyncio.ensure_future(resolve(channel))
        await eventually(lambda: "call began" in demo.events())
        demo.send(signal.SIGTERM)
        await eventually(lambda: "draining" in demo.events())
        assert demo.process.returncode is None
        demo.send(number)
        code, _ = await demo.end()
        with pytest.raises(UnavailableError):
            await call
    assert code == 0
    assert demo.events()[-2:] == ["server gone", "store closed"]


async def test_signal_before_readiness_ends_the_start(start: Any, eventually: Eventually) -> None:
    demo = await start(fault="hang-start")
    await eventually(lambda: demo.events() == ["hanging"], within=20)
    demo.send()
    code, stderr = await demo.end()
    assert code == 0
    assert "Traceback" not in stderr


async def test_failing_task_ends_the_service_in_order_with_code_1(start: Any) -> None:
    demo = await start(fault="task", ready=True)
    code, stderr = await demo.end()
    assert code == 1
    assert demo.events()[-2:] == ["server gone", "store closed"]
    failed = next(line for line in logged(stderr) if line["event"] == "task failed")
    assert (failed["task"], failed["error_type"]) == ("clean-up loop", "ZeroDivisionError")


async def test_loop_that_is_held_up_is_told(start: Any, eventually: Eventually) -> None:
    demo = await start(fault="stall", ready=True)
    await eventually(lambda: demo.events().count("stalled") >= 3, within=20)
    demo.send()
    code, stderr = await demo.end()
    assert code == 0
    first = next(line for line in logged(stderr) if line["event"] == "event loop was held up")
    assert (first["level"], first["times"]) == ("warning", 1)
    assert first["seconds"] > 1


async def test_store_whose_close_raises_is_logged(start: Any) -> None:
    demo = await start(fault="raise-close", ready=True)
    demo.send()
    code, stderr = await demo.end()
    assert code == 1
    assert any(line["event"] == "the end went wrong" for line in logged(stderr))


@pytest.mark.parametrize("fault", ["hang-close", "deaf-close"])
async def test_end_that_hangs_is_cut_off_after_its_margin(start: Any, fault: str) -> None:
    demo = await start(fault=fault, ready=True, environ={"CARREL_DRAIN_SECONDS": "0", "CARREL_CLOSE_SECONDS": "0.5"})
    began = time.monotonic()
    with Awake() as took:
        demo.send()
        code, stderr = await demo.end()
    assert code == 1
    assert time.monotonic() - began >= 0.5
    assert took.seconds < 6
    assert any(line["event"] == "the end takes too long" for line in logged(stderr))


async def test_phases_never_go_back() -> None:
    starter = Starter("bridge")
    async with starter.phase(Phase.INTEGRATION, needs="a store"):
        pass
    with pytest.raises(RuntimeError, match="CONFIGURATION comes before INTEGRATION"):
        async with starter.phase(Phase.CONFIGURATION):
            pass


async def test_failure_inside_a_phase_keeps_its_first_place() -> None:
    starter = Starter("bridge")
    inner = StartupError("port in use", phase="READINESS", what="an address", advice="free it")
    with pytest.raises(StartupError) as caught:
        async with starter.phase(Phase.INTEGRATION, needs="something else"):
            raise inner
    assert caught.value is inner
    assert failure_block("bridge", inner) == (
        "bridge could not start\n"
        "  phase    READINESS\n"
        "  needed   an address\n"
        "  happened port in use\n"
        "  to do    free it"
    )


async def test_cancellation_passes_through_a_phase() -> None:
    with pytest.raises(asyncio.CancelledError):
        async with Starter("bridge").phase(Phase.INTEGRATION):
            raise asyncio.CancelledError


async def resolve(channel: Any) -> Any:
    stub: Callable[..., Any] = bridge_pb2_grpc.BridgeServiceStub(channel).ResolveRun
    return await stub(bridge_pb2.ResolveRunRequest(context=session_context(), run_id="r"), timeout=50)
