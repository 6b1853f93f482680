"""What every test gets: a clean environment, a watch for tasks left behind, and ways to wait without sleeping.

Not here: fakes and servers. Those stand beside what they replace, or in a conftest nearer to the tests that use them.
"""

import asyncio
import contextlib
import ctypes
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, TypeVar, overload

import psutil
import pytest
from hypothesis import settings

from tests.support.at_once import FailuresAtOnce
from tests.support.order import Scheduler, first_the_long_ones
from tests.support.postgres import PostgresServer, postgres_server

T = TypeVar("T")
_PR_SET_CHILD_SUBREAPER: Final = 36

# No deadline per example: the machine is shared, and pytest-timeout bounds the test as a whole.
settings.register_profile("carrel", deadline=None)
settings.load_profile("carrel")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler | None:
    """Ours, where tests are distributed by file."""
    return Scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Where xdist distributes many tests, a failure is told when it is known, not after the last test."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.getvalue("dist") != "no" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(reporter))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of xdist the order of the files matters."""
    if hasattr(config, "workerinput"):
        first_the_long_ones(items)


class Eventually(Protocol):
    """The type of the fixture `eventually`: waits until a condition holds and returns what it returned."""

    @overload
    async def __call__(self, condition: Callable[[], Awaitable[T]], *, within: float = ..., what: str = ...) -> T: ...
    @overload
    async def __call__(self, condition: Callable[[], T], *, within: float = ..., what: str = ...) -> T: ...


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(lambda: log.offset == 3)`: polls until the result is true, fails after `within` seconds.

    The condition may be a plain function or one that returns an awaitable. `what` names it in the failure. `within` is
    how long a machine that is busy with other things may take; a promise about time is shown with `Awake`.
    """
    return _eventually


async def _eventually(condition: Callable[[], Any], *, within: float = 15.0, what: str = "") -> Any:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    pause = 0.001
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if loop.time() >= deadline:
            pytest.fail(f"not within {within} s: {what or inspect.getsource(condition).strip()}; last seen: {value!r}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`free_port()` is a TCP port on localhost that was free a moment ago; two calls never give the same one.

    Only for a process that cannot be told to take port 0 and say what it got.
    """
    given: set[int] = set()

    def find() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in given:
                given.add(port)
                return port

    return find


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of this process; each makes a database of its own, or cleans a shared one."""
    with postgres_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    # An unknown or leftover CARREL_* of the developer's shell would be an error, or worse, change what is tested.
    for name in [name for name in os.environ if name.startswith("CARREL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def _nobodys_heir() -> Iterator[None]:
    # Tests of workers make this process the heir of orphans, as agent_instance is. Elsewhere they would stay zombies.
    yield
    disinherit()


def disinherit() -> None:
    """Be the heir of nobody's orphans, and bury those that were inherited."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


@pytest.fixture(autouse=True)
def _no_tasks_left(request: pytest.FixtureRequest) -> None:
    # Asked for here, before the test's own fixtures, so that it ends after them and sees what they forgot.
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    # A task that was told to stop needs a few turns of the loop, and on a busy machine grpc's own a moment for the
    # peer's last word; one that nobody told does not end.
    for _ in range(200):
        if not _unended(before):
            return
        await asyncio.sleep(0.01)
    left = _unended(before)
    for task in left:
        task.cancel()
    await asyncio.wait(left, timeout=1)
    names = "\n  ".join(f"{task.get_name()}: {task.get_coro()!r}" for task in left)
    pytest.fail(f"the test left {len(left)} asyncio tasks running; whoever starts one must await it:\n  {names}")


def _unended(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    mine = {asyncio.current_task()}
    return {task for task in asyncio.all_tasks() if task not in before and task not in mine and not task.done()}
