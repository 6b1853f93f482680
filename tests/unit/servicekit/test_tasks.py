"""Owned tasks: none outlives its owner, and none fails unheard."""

import asyncio

import pytest

from servicekit.identity.principals import ServicePrincipal
from servicekit.rpc.context import enter_call, remaining_deadline_s
from servicekit.tasks import TaskOwner, failure_handler


async def test_tasks_are_cancelled_and_awaited_when_the_owner_leaves() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with TaskOwner() as tasks:
        _ = tasks.start(work("a"), "a")
        _ = tasks.start(work("b"), "b")
        await asyncio.sleep(0)
        assert len(tasks) == 2
    assert sorted(ended) == ["a", "b"]
    assert len(tasks) == 0


async def test_failing_task_is_logged_once_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    reported: list[tuple[str, BaseException]] = []
    async with TaskOwner(lambda name, error: reported.append((name, error))) as tasks:

        async def fail() -> None:
            raise ZeroDivisionError("by zero")

        sister = tasks.start(asyncio.sleep(30), "sister")
        task = tasks.start(fail(), "relay")
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert not sister.done()
    assert [(name, type(error)) for name, error in reported] == [("relay", ZeroDivisionError)]
    assert [record.getMessage() for record in caplog.records] == ["task failed"]


async def test_failing_task_ends_the_service_by_default() -> None:
    ended: list[str] = []
    token = failure_handler.set(lambda name, _error: ended.append(name))
    try:
        async with TaskOwner() as tasks:

            async def fail() -> None:
                raise ValueError("odd")

            await asyncio.wait([tasks.start(fail(), "clean-up loop")])
            await asyncio.sleep(0)
    finally:
        failure_handler.reset(token)
    assert ended == ["clean-up loop"]


async def test_task_that_ends_or_is_cancelled_is_no_failure() -> None:
    reported: list[str] = []
    async with TaskOwner(lambda name, _error: reported.append(name)) as tasks:
        _ = tasks.start(asyncio.sleep(0), "short")
        long = tasks.start(asyncio.sleep(30), "long")
        await asyncio.sleep(0)
        long.cancel()
        await asyncio.wait([long])
    assert reported == []


async def test_task_that_ends_by_anothers_cancellation_is_a_failure() -> None:
    reported: list[str] = []
    async with TaskOwner(lambda name, error: reported.append(f"{name}: {error}")) as tasks:
        awaited: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await awaited

        task = tasks.start(wait(), "relay")
        await asyncio.sleep(0)
        awaited.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert reported == ["relay: ended by a cancellation of something that it waited for"]


async def test_closed_owner_starts_nothing() -> None:
    tasks = TaskOwner()
    await tasks.aclose()
    with pytest.raises(RuntimeError, match="is closed"):
        _ = tasks.start(asyncio.sleep(0), "late")
    await tasks.aclose()


async def test_task_that_swallows_its_cancellation_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servicekit.tasks._STUCK_AFTER_S", 0.01)
    asked = 0

    async def stubborn() -> None:
        nonlocal asked
        while asked < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked += 1

    async with TaskOwner() as tasks:
        _ = tasks.start(stubborn(), "stubborn")
        await asyncio.sleep(0)
    assert asked == 3


async def test_task_may_close_its_own_owner() -> None:
    tasks = TaskOwner()
    task = tasks.start(tasks.aclose(), "closer")
    await asyncio.wait_for(task, 10)


async def test_task_does_not_inherit_the_deadline_of_the_call_that_started_it() -> None:
    enter_call(ServicePrincipal("gateway", frozenset(), 0.0), 5.0)
    assert remaining_deadline_s() is not None

    async def look() -> float | None:
        return remaining_deadline_s()

    async with TaskOwner() as tasks:
        assert await tasks.start(look(), "driver") is None
    assert remaining_deadline_s() is not None
