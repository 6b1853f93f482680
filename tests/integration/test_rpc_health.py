"""Health over a real connection: honest readiness, liveness of its own, watchers that are told and let go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.errors import NotFoundError
from servicekit.health import READINESS, HealthServicer, Readiness
from tests.conftest import Eventually
from tests.support.rpc import Rpc, serving, shared_settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def rpc() -> AsyncIterator[Rpc]:
    async with serving([], settings=shared_settings(drain_seconds=20)) as rpc:
        yield rpc


async def state(rpc: Rpc, name: str = "readiness") -> Any:
    stub = health_pb2_grpc.HealthStub(rpc.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=15)).status


def watch(rpc: Rpc, name: str = "readiness") -> Any:
    return health_pb2_grpc.HealthStub(rpc.channel).Watch(health_pb2.HealthCheckRequest(service=name))


async def test_server_without_checks_is_ready_when_it_has_started(rpc: Rpc) -> None:
    assert [await state(rpc, name) for name in ("", "readiness", "liveness")] == [SERVING] * 3


async def test_unknown_name_is_not_found(rpc: Rpc) -> None:
    with pytest.raises(NotFoundError):
        await state(rpc, "x")
    watcher = watch(rpc, "x")
    assert (await watcher.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watcher.cancel()


async def test_readiness_follows_its_checks_and_liveness_does_not(rpc: Rpc, eventually: Eventually) -> None:
    usable = True

    async def probe() -> bool:
        return usable

    rpc.server.readiness.add("store", probe)
    rpc.server.readiness.add("stream", lambda: True)
    usable = False
    rpc.server.readiness.poke()

    async def says(expected: Any) -> bool:
        return bool(await state(rpc) == expected)

    await eventually(lambda: says(NOT_SERVING))
    assert rpc.server.readiness.failing == ("store",)
    assert await state(rpc, "") == NOT_SERVING
    assert await state(rpc, "liveness") == SERVING
    usable = True
    rpc.server.readiness.poke()
    await eventually(lambda: says(SERVING))


async def test_check_that_raises_or_hangs_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servicekit.health._POLL_S", 0.05)
    readiness = Readiness()

    def broken() -> bool:
        raise OSError("no such store")

    async def hanging() -> bool:
        await asyncio.Event().wait()
        return True

    readiness.add("broken", broken)
    readiness.add("hanging", hanging)
    readiness.add("fine", lambda: True)
    readiness.set_open(True)
    assert not await readiness.evaluate()
    assert readiness.failing == ("broken", "hanging")
    with pytest.raises(ValueError, match="exists already"):
        readiness.add("fine", lambda: True)


async def test_watchers_hear_of_changes_even_when_another_one_leaves(rpc: Rpc) -> None:
    usable = True
    rpc.server.readiness.add("store", lambda: usable)
    first, second = watch(rpc), watch(rpc)
    assert (await first.read()).status == (await second.read()).status == SERVING
    first.cancel()
    usable = False
    rpc.server.readiness.poke()
    assert (await asyncio.wait_for(second.read(), 5)).status == NOT_SERVING
    second.cancel()


async def test_watcher_is_told_of_a_drain_and_does_not_hold_it_up(rpc: Rpc) -> None:
    watcher = watch(rpc)
    assert (await watcher.read()).status == SERVING
    drain = asyncio.ensure_future(rpc.server.drain())
    assert (await watcher.read()).status == NOT_SERVING
    assert await watcher.read() is aio.EOF
    await asyncio.wait_for(drain, 5)


async def test_a_watcher_that_has_not_gone_on_since_its_last_word_is_told_of_the_end() -> None:
    servicer = HealthServicer()
    servicer.set_ready(True)
    told = servicer.Watch(health_pb2.HealthCheckRequest(service=READINESS), None)  # type: ignore[arg-type]
    assert (await anext(told)).status == SERVING
    servicer.close()
    assert [message.status async for message in told] == [NOT_SERVING]
