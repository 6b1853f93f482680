"""The supervisor over small real processes: start, death, restart, giving up, the end in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from carrel.cli.supervisor import ProcessSpec, Supervisor
from carrel.errors import StartupError

Eventually = Callable[..., Awaitable[object]]

READY = """
import os, signal, sys, time
def tell():
    os.write(int(os.environ["CARREL_READY_FD"]), b"127.0.0.1:1\\n")
def end(*_):
    print(NAME, "ended", flush=True)
    sys.exit(0)
NAME = os.environ["NAME"]
signal.signal(signal.SIGTERM, end)
"""
SERVE = READY + "tell()\nprint('serving', flush=True)\nwhile True: time.sleep(60)\n"
DEAF = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell()\nwhile True: time.sleep(60)\n"
BROKEN = "import sys\nprint('the reason', flush=True)\nsys.exit(3)\n"
# Ready the first time, and broken from then on.
ONCE = READY + (
    "mark = os.environ['MARK']\n"
    "if os.path.exists(mark): sys.exit('it is gone')\n"
    "open(mark, 'w').close()\ntell()\nwhile True: time.sleep(60)\n"
)
CHATTY = READY + "tell()\nprint('x' * 3_000_000)\nprint('after', flush=True)\nwhile True: time.sleep(60)\n"


class Lines(list[tuple[str, str]]):
    """A log that is kept."""

    def __call__(self, name: str, text: str) -> None:
        self.append((name, text))

    def of(self, name: str) -> list[str]:
        return [text for who, text in self if who == name]


def spec(name: str, code: str, **environment: str) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-S", "-c", code], {**os.environ, "NAME": name, **environment})


async def test_all_are_started_at_once_and_end_in_the_given_order() -> None:
    lines = Lines()
    supervisor = Supervisor([spec("first", SERVE), spec("second", SERVE), spec("third", SERVE)], lines)
    await supervisor.start()
    assert all(child.pid for child in supervisor.children.values())
    await supervisor.stop()
    await supervisor.stop()
    assert [text for _, text in lines if "ended" in text] == ["first ended", "second ended", "third ended"]
    assert all(child.pid is None for child in supervisor.children.values())


async def test_killed_process_is_started_again_and_what_happened_is_said(eventually: Eventually) -> None:
    lines, changes = Lines(), []
    supervisor = Supervisor([spec("one", SERVE)], lines)
    supervisor.on_change = lambda: changes.append(supervisor.children["one"].pid)
    await supervisor.start()
    try:
        child = supervisor.children["one"]
        pids = set()
        for _ in range(10):
            pid = child.pid
            assert pid is not None
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda old=pid: child.ready.is_set() and child.pid not in {None, old})
        assert len(pids) == 10
        assert child.restarts == 10
        assert lines.of("one").count("died of SIGKILL; starting it again") == 10
        assert not supervisor.gave_up.done()
        assert child.pid in changes
    finally:
        await supervisor.stop()


async def test_process_that_cannot_start_ends_the_start_with_what_it_said() -> None:
    supervisor = Supervisor([spec("good", SERVE), spec("bad", BROKEN)], Lines())
    with pytest.raises(StartupError, match="bad ended with exit code 3") as caught:
        await supervisor.start()
    assert "the reason" in caught.value.message
    await supervisor.stop()


async def test_process_that_does_not_get_ready_in_time_is_named() -> None:
    supervisor = Supervisor([spec("good", SERVE), spec("slow", "import time\ntime.sleep(60)")], Lines(), grace_s=5)
    with pytest.raises(StartupError, match="slow") as caught:
        await supervisor.start(within_s=1.0)
    assert "good" not in caught.value.message
    await supervisor.stop()


async def test_gives_up_on_one_that_was_ready_and_cannot_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carrel.cli.supervisor._FAILED_STARTS", 3)
    lines = Lines()
    supervisor = Supervisor([spec("one", ONCE, MARK=str(tmp_path / "mark"))], lines)
    await supervisor.start()
    os.kill(supervisor.children["one"].pid or 0, signal.SIGKILL)
    error = await asyncio.wait_for(supervisor.gave_up, 15)
    assert "it is gone" in error.message
    assert len([text for text in lines.of("one") if "starting it again" in text]) == 3
    await supervisor.stop()


async def test_restart_on_request_counts_as_no_failure(eventually: Eventually) -> None:
    supervisor = Supervisor([spec("one", SERVE)], Lines())
    await supervisor.start()
    try:
        child = supervisor.children["one"]
        for _ in range(10):
            old = child.pid
            await supervisor.restart("one")
            await eventually(lambda old=old: child.ready.is_set() and child.pid not in {None, old})
        assert not supervisor.gave_up.done()
    finally:
        await supervisor.stop()


async def test_one_that_does_not_end_is_killed_after_the_grace_or_at_once_when_hastened() -> None:
    lines, hasten = Lines(), asyncio.Event()
    supervisor = Supervisor([spec("deaf", DEAF), spec("deaf2", DEAF)], lines, grace_s=0.2, hasten=hasten)
    await supervisor.start()
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 10
    assert lines.of("deaf")[-1] == "did not end in time; killed"

    hasten.set()
    supervisor = Supervisor([spec("deaf", DEAF)], lines, grace_s=60, hasten=hasten)
    await supervisor.start()
    await supervisor.stop()
    assert lines.of("deaf")[-1] == "killed"


async def test_line_beyond_every_bound_does_not_stop_the_log(eventually: Eventually) -> None:
    lines = Lines()
    supervisor = Supervisor([spec("one", CHATTY)], lines)
    await supervisor.start()
    await eventually(lambda: "after" in lines.of("one"))
    await supervisor.stop()


async def test_command_that_does_not_exist_is_said_and_not_waited_for() -> None:
    supervisor = Supervisor([ProcessSpec("none", ["/does/not/exist"], {})], Lines())
    with pytest.raises(StartupError, match="none"):
        await supervisor.start()
    await supervisor.stop()


async def test_fault_of_the_supervisor_itself_ends_the_start_and_is_named() -> None:
    def broken(_name: str, _text: str) -> None:
        raise RuntimeError("the log is broken")

    supervisor = Supervisor(
        [spec("one", "print('a line', flush=True)\n" + SERVE.replace("tell()\nprint", "print"))], broken
    )
    with pytest.raises(StartupError, match="the log is broken"):
        await supervisor.start(within_s=10)
    await supervisor.stop()
