"""Channels to several copies of a service: calls go round, and one that drains, dies or comes back is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.errors import StartupError, UnavailableError
from carrel.v1 import execution_pb2, execution_pb2_grpc
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies, Rotation
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.identity import session_context
from tests.support.rpc import Rpc, serving, shared_settings

_WITHIN_S: Final = 1.0


class Copy:
    """One copy: counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def GetRun(self, request: Any, context: Any) -> execution_pb2.GetRunResponse:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return execution_pb2.GetRunResponse()

    def __getattr__(self, name: str) -> Any:
        """Every other method, which nobody calls."""
        return self.GetRun


@asynccontextmanager
async def copy_at(copy: Copy, listen: str = "127.0.0.1:0", **settings: Any) -> AsyncIterator[Rpc]:
    add: Callable[[Any, Any], None] = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    services = [(add, copy, "carrel.v1.ExecutionService")]
    async with serving(services, listen=listen, settings=shared_settings(**settings)) as rpc:
        yield rpc


@asynccontextmanager
async def two_copies() -> AsyncIterator[tuple[list[Copy], list[Rpc], Any]]:
    copies = [Copy(), Copy()]
    async with AsyncExitStack() as stack:
        rpcs = [await stack.enter_async_context(copy_at(copy)) for copy in copies]
        channel = await stack.enter_async_context(open_channel(",".join(rpc.address for rpc in rpcs)))
        yield copies, rpcs, execution_pb2_grpc.ExecutionServiceStub(channel)


async def ask(stub: Any, times: int = 1) -> None:
    for _ in range(times):
        await stub.GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))


async def both_are_asked(stub: Any, copies: list[Copy], eventually: Eventually) -> None:
    async def seen() -> bool:
        before = [copy.calls for copy in copies]
        await ask(stub, 4)
        return all(copy.calls > count for copy, count in zip(copies, before, strict=True))

    await eventually(seen)


async def test_calls_go_round_among_the_copies(eventually: Eventually) -> None:
    async with two_copies() as (copies, _, stub):
        await both_are_asked(stub, copies, eventually)
        before = [copy.calls for copy in copies]
        await ask(stub, 10)
        assert [copy.calls - count for copy, count in zip(copies, before, strict=True)] == [5, 5]


async def test_a_copy_that_is_not_ready_is_not_asked_until_it_is(eventually: Eventually) -> None:
    async with two_copies() as (copies, rpcs, stub):
        await both_are_asked(stub, copies, eventually)
        rpcs[0].server.readiness.set_open(False)

        async def left() -> bool:
            before = copies[0].calls
            await ask(stub, 4)
            return copies[0].calls == before

        with Awake() as took:
            await eventually(left)
        assert took.seconds < _WITHIN_S
        rpcs[0].server.readiness.set_open(True)
        await both_are_asked(stub, copies, eventually)


async def test_a_copy_that_ends_is_left_without_an_error_and_found_again(eventually: Eventually) -> None:
    async with AsyncExitStack() as stack:
        copies = [Copy(), Copy()]
        first = AsyncExitStack()
        rpc = await first.enter_async_context(copy_at(copies[0]))
        other = await stack.enter_async_context(copy_at(copies[1]))
        channel = await stack.enter_async_context(open_channel(f"{rpc.address},{other.address}"))
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        await both_are_asked(stub, copies, eventually)
        await first.aclose()
        with Awake() as took:
            await ask(stub, 10)
        assert took.seconds < _WITHIN_S
        await stack.enter_async_context(copy_at(copies[0], rpc.address))
        await both_are_asked(stub, copies, eventually)


async def test_a_repeated_call_goes_to_another_copy(eventually: Eventually) -> None:
    async with two_copies() as (copies, _, stub):
        await both_are_asked(stub, copies, eventually)
        copies[0].error = UnavailableError("the store of this one is away")
        failed = copies[0].calls
        await ask(stub, 6)
        assert copies[0].calls > failed


async def test_with_no_copy_ready_a_call_fails_at_once_and_says_so(eventually: Eventually) -> None:
    async with two_copies() as (copies, rpcs, stub):
        await both_are_asked(stub, copies, eventually)
        for rpc in rpcs:
            await rpc.server.drain(grace_s=0)
        with pytest.raises(UnavailableError):
            await ask(stub)


async def test_names_in_a_list_are_resolved_when_it_is_opened() -> None:
    async with copy_at(Copy()) as rpc:
        port = rpc.address.rpartition(":")[2]
        async with open_channel(f"localhost:{port},[::1]:{port}") as channel:
            await ask(execution_pb2_grpc.ExecutionServiceStub(channel), 3)
    with pytest.raises(StartupError, match=r"no-such-host\.invalid"):
        open_channel("127.0.0.1:1,no-such-host.invalid:1")


async def test_a_name_is_dialled_with_all_its_numbers() -> None:
    copy = Copy()
    async with copy_at(copy) as rpc:
        port = rpc.address.rpartition(":")[2]
        async with open_channel(f"dns:///localhost:{port}") as channel:
            await ask(execution_pb2_grpc.ExecutionServiceStub(channel), 3)
    assert copy.calls == 3


async def test_connections_are_renewed_without_a_failed_call_and_open_streams_go_on(eventually: Eventually) -> None:
    copies = [Copy(), Copy()]
    async with (
        copy_at(copies[0], max_connection_age_seconds=0.5) as one,
        copy_at(copies[1], max_connection_age_seconds=0.5) as two,
        open_channel(f"{one.address},{two.address}") as channel,
        open_channel(one.address) as single,
    ):
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        await both_are_asked(stub, copies, eventually)
        watch = health_pb2_grpc.HealthStub(single).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            # Not an idempotent call: none may fail, not even to be made again.
            await stub.CreateEngine(execution_pb2.CreateEngineRequest(context=session_context()))
            await asyncio.sleep(0.002)
        # The stream is three times as old as its connection may get, and still hears.
        one.server.readiness.set_open(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_who_chooses_a_copy_knows_at_each_moment_which_are_ready(eventually: Eventually) -> None:
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        one = await first.enter_async_context(copy_at(Copy()))
        two = await stack.enter_async_context(copy_at(Copy()))
        copies = await stack.enter_async_context(Copies(f"{one.address},{two.address}", "execution"))

        def ready() -> set[str]:
            return {copy.address for copy in copies.ready()}

        await copies.wait_ready(20)
        await eventually(lambda: ready() == {one.address, two.address})
        two.server.readiness.set_open(False)
        with Awake() as took:
            await eventually(lambda: ready() == {one.address})
        assert took.seconds < _WITHIN_S
        await first.aclose()
        with Awake() as took:
            await eventually(lambda: not ready())
        assert took.seconds < _WITHIN_S
        with pytest.raises(UnavailableError, match="no execution at"):
            await copies.wait_ready(0.01)
        two.server.readiness.set_open(True)
        assert [copy.address for copy in await copies.wait_ready(20)] == [two.address]
        await stack.enter_async_context(copy_at(Copy(), one.address))
        await eventually(lambda: ready() == {one.address, two.address})


async def test_a_stream_that_moves_on_goes_to_each_copy_in_turn_and_first_to_one_that_has_come_since(
    eventually: Eventually,
) -> None:
    async with AsyncExitStack() as stack:
        rpcs = [await stack.enter_async_context(copy_at(Copy())) for _ in range(3)]
        copies = await stack.enter_async_context(Copies(",".join(rpc.address for rpc in rpcs), "execution"))
        await eventually(lambda: len(copies.ready()) == 3)
        rotation = Rotation(copies)
        address_of = {copy.channel: copy.address for copy in copies.known()}
        first = [address_of[rotation.channel()] for _ in range(6)]
        assert len(set(first[:3])) == 3
        assert first[:3] == first[3:], "the one left alone for longest is next"
        latest = next(rpc for rpc in rpcs if rpc.address == first[-1])
        latest.server.readiness.set_open(False)
        await eventually(lambda: len(copies.ready()) == 2)
        assert latest.address not in {address_of[rotation.channel()] for _ in range(4)}
        latest.server.readiness.set_open(True)
        await eventually(lambda: len(copies.ready()) == 3)
        assert address_of[rotation.channel()] == latest.address


async def test_copies_under_a_name_come_and_go(monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    listed: list[str] = []

    async def resolve(target: str) -> list[str]:
        assert target == "dns:///execution:50051"
        return list(listed)

    monkeypatch.setattr("servicekit.rpc.copies.addresses_of", resolve)
    monkeypatch.setattr("servicekit.rpc.copies._RESOLVE_S", 0.05)
    async with (
        copy_at(Copy()) as one,
        copy_at(Copy()) as two,
        Copies("dns:///execution:50051", "execution") as copies,
    ):
        assert copies.known() == []
        listed.append(one.address)
        (first,) = await copies.wait_ready(20)
        listed.append(two.address)
        await eventually(lambda: {copy.address for copy in copies.ready()} == set(listed))
        with first.used():
            listed.remove(one.address)
            await eventually(lambda: [copy.address for copy in copies.ready()] == [two.address])
            one.server.readiness.set_open(False)
            await eventually(lambda: not first.ready)
            # A stream may go on over it, so it stays open, though nobody is sent there.
            assert first.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
        await eventually(lambda: copies.known() == copies.ready())
        listed.clear()
        await asyncio.sleep(0.2)
        assert copies.ready(), "a name service at a loss takes nobody away"
