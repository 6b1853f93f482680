"""Channels over a real connection: shrinking deadlines, harmless retries, errors, waiting for readiness."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import aio

from carrel.errors import (
    CarrelError,
    DeadlineError,
    DownstreamUnavailableError,
    LimitExceededError,
    StoreUnavailableError,
    UnavailableError,
)
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, execution_pb2, execution_pb2_grpc
from servicekit.rpc.channel import open_channel, responses
from servicekit.rpc.context import enter_call, leave_call, remaining_deadline_s
from servicekit.rpc.server import Service
from servicekit.rpc.waiting import wait_ready
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.identity import run_context, session_context
from tests.support.rpc import Rpc, serving


class Counting:
    """A servicer of any service: counts calls by method and raises what is queued for them."""

    def __init__(self, *errors: Exception) -> None:
        self.calls: list[str] = []
        self.remaining: list[float | None] = []
        self.errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            self.calls.append(name)
            self.remaining.append(remaining_deadline_s())
            if self.errors:
                raise self.errors.pop(0)
            return getattr(execution_pb2, f"{name}Response", None) and getattr(execution_pb2, f"{name}Response")()

        return handle


def execution(*errors: Exception) -> tuple[Counting, list[Service]]:
    servicer = Counting(*errors)
    add: Callable[[Any, Any], None] = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    return servicer, [(add, servicer, "carrel.v1.ExecutionService")]


def stub_of(rpc: Rpc) -> Any:
    return execution_pb2_grpc.ExecutionServiceStub(rpc.channel)


def away() -> StoreUnavailableError:
    return StoreUnavailableError("the store is away")


async def test_idempotent_call_is_repeated_until_it_succeeds() -> None:
    servicer, services = execution(away(), away())
    async with serving(services) as rpc:
        await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))
    assert servicer.calls == ["GetRun"] * 3


async def test_idempotent_call_gives_up_after_four_attempts() -> None:
    servicer, services = execution(*[away() for _ in range(10)])
    async with serving(services) as rpc:
        with pytest.raises(StoreUnavailableError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))
    assert len(servicer.calls) == 4


async def test_call_that_may_do_harm_twice_is_made_once() -> None:
    servicer, services = execution(away(), away())
    async with serving(services) as rpc:
        with pytest.raises(StoreUnavailableError):
            await stub_of(rpc).CreateEngine(execution_pb2.CreateEngineRequest(context=session_context()))
    assert servicer.calls == ["CreateEngine"]


@pytest.mark.parametrize(("client_ref", "attempts"), [("", 1), ("ref-1", 2)])
async def test_new_run_is_asked_for_again_only_under_a_client_ref(client_ref: str, attempts: int) -> None:
    servicer, services = execution(away())
    request = execution_pb2.ExecutePipelineRequest(context=run_context(), message="hi", client_ref=client_ref)
    async with serving(services) as rpc:
        try:
            await stub_of(rpc).ExecutePipeline(request)
        except StoreUnavailableError:
            assert attempts == 1
    assert len(servicer.calls) == attempts


async def test_limit_is_not_tried_again_by_the_channel() -> None:
    servicer, services = execution(LimitExceededError("full", limit="x", retry_after_s=0.01))
    async with serving(services) as rpc:
        with pytest.raises(LimitExceededError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))
    assert len(servicer.calls) == 1


async def test_wait_that_the_server_asks_for_is_kept_when_it_is_short() -> None:
    servicer, services = execution(StoreUnavailableError("away", retry_after_s=0.2))
    async with serving(services) as rpc:
        began = time.monotonic()
        await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))
        assert time.monotonic() - began >= 0.2
    assert len(servicer.calls) == 2
    servicer, services = execution(StoreUnavailableError("away", retry_after_s=30))
    async with serving(services) as rpc:
        with pytest.raises(StoreUnavailableError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"))


async def test_retries_end_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter((0.01, 1000.0))
    monkeypatch.setattr("servicekit.rpc.channel.random.uniform", lambda low, high: next(waits))
    servicer, services = execution(*[away() for _ in range(10)])
    async with serving(services) as rpc:
        # The server's own error, and not DeadlineError, which a retry past the deadline would end in.
        with pytest.raises(StoreUnavailableError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"), timeout=15)
    assert len(servicer.calls) == 2


async def test_what_was_met_is_told_when_the_wait_for_another_attempt_took_the_rest_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shortest_and_stalled(low: float, high: float) -> float:
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        return low

    monkeypatch.setattr("servicekit.rpc.channel.random.uniform", shortest_and_stalled)
    _, services = execution(*[away() for _ in range(4)])
    async with serving(services) as rpc:
        with pytest.raises(StoreUnavailableError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"), timeout=0.4)


async def test_call_gets_the_smaller_of_its_own_time_and_what_remains() -> None:
    servicer, services = execution()
    request = execution_pb2.GetRunRequest(context=session_context(), run_id="r")
    async with serving(services) as rpc:
        await stub_of(rpc).GetRun(request)
        await stub_of(rpc).GetRun(request, timeout=30)
        enter_call(None, 20.0)
        await stub_of(rpc).GetRun(request, timeout=30)
        await stub_of(rpc).GetRun(request, timeout=10)
        enter_call(None, 0.0)
        with pytest.raises(DeadlineError, match="no time is left"):
            await stub_of(rpc).GetRun(request)
        leave_call()
    # Less what the call took to arrive.
    assert servicer.remaining == pytest.approx([5, 30, 20, 10], abs=4.5)


async def test_slow_server_ends_in_a_deadline_error() -> None:
    class Slow:
        async def GetRun(self, request: Any, context: Any) -> Any:
            await asyncio.sleep(30)

        def __getattr__(self, name: str) -> Any:
            return self.GetRun

    add: Any = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    async with serving([(add, Slow(), "carrel.v1.ExecutionService")]) as rpc:
        with pytest.raises(DeadlineError):
            await stub_of(rpc).GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"), timeout=0.1)


async def test_server_that_is_not_there_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        with pytest.raises(UnavailableError) as caught:
            await stub.CreateEngine(execution_pb2.CreateEngineRequest(context=session_context()), timeout=20)
        assert caught.value.retryable
        bridge = bridge_pb2_grpc.BridgeServiceStub(channel)
        with pytest.raises(UnavailableError):
            async for _ in responses(bridge.ReadEvents(bridge_pb2.ReadEventsRequest())):
                pass


async def test_cancelling_the_caller_cancels_the_call(eventually: Eventually) -> None:
    ended = asyncio.Event()

    class Slow(Counting):
        def __getattr__(self, name: str) -> Any:
            async def handle(request: Any, context: Any) -> Any:
                self.calls.append(name)
                try:
                    await asyncio.sleep(30)
                finally:
                    ended.set()

            return handle

    servicer = Slow()
    add: Any = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    async with serving([(add, servicer, "carrel.v1.ExecutionService")]) as rpc:
        request = execution_pb2.GetRunRequest(context=session_context(), run_id="r")
        task = asyncio.ensure_future(stub_of(rpc).GetRun(request, timeout=20))
        await eventually(lambda: servicer.calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 5)


async def test_call_whose_channel_is_closed_under_it_is_an_error_and_no_cancellation(eventually: Eventually) -> None:
    class Hanging(Counting):
        def __getattr__(self, name: str) -> Any:
            async def handle(request: Any, context: Any) -> Any:
                self.calls.append(name)
                await asyncio.sleep(30)

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                await handle(request, context)
                yield execution_pb2.WatchRunResponse()

            return stream if name == "WatchRun" else handle

    servicer = Hanging()
    add: Any = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    async with serving([(add, servicer, "carrel.v1.ExecutionService")]) as rpc:
        channel = open_channel(rpc.address)
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)

        async def ask() -> None:
            await stub.GetRun(execution_pb2.GetRunRequest(context=session_context(), run_id="r"), timeout=20)

        async def look_on() -> None:
            async for _ in responses(
                stub.WatchRun(execution_pb2.WatchRunRequest(context=session_context(), run_id="r"))
            ):
                pass

        tasks = [asyncio.create_task(ask()), asyncio.create_task(look_on())]
        await eventually(lambda: len(servicer.calls) == 2)
        await channel.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError, UnavailableError]


async def test_channel_finds_a_server_that_comes_back(free_port: Callable[[], int]) -> None:
    listen = f"127.0.0.1:{free_port()}"
    request = execution_pb2.GetRunRequest(context=session_context(), run_id="r")
    async with open_channel(listen) as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        _, services = execution()
        async with serving(services, listen=listen):
            await stub.GetRun(request)
        with pytest.raises(CarrelError):
            await stub.CreateEngine(execution_pb2.CreateEngineRequest(context=session_context()))
        async with serving(services, listen=listen):
            with Awake() as took:
                await wait_ready(channel, "execution", 10)
                await stub.GetRun(request)
            assert took.seconds < 3


async def test_wait_ready_waits_for_the_checks_of_the_other_side(eventually: Eventually) -> None:
    usable = False
    _, services = execution()
    async with serving(services) as rpc:
        rpc.server.readiness.add("store", lambda: usable)
        rpc.server.readiness.poke()
        await eventually(lambda: not rpc.server.readiness.ready)
        waiting = asyncio.ensure_future(wait_ready(rpc.channel, "execution", 10))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        usable = True
        rpc.server.readiness.poke()
        await asyncio.wait_for(waiting, 5)


async def test_wait_ready_says_what_was_missing() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(DownstreamUnavailableError) as caught:
            await wait_ready(channel, "the bridge at 127.0.0.1:1", 0.2)
    assert caught.value.message == "the bridge at 127.0.0.1:1 was not ready within 0.2 s (it did not answer)"
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(DownstreamUnavailableError, match="UNIMPLEMENTED"):
                await wait_ready(channel, "the bridge", 0.5)
    finally:
        await server.stop(0)


async def test_responses_pass_items_and_end_quietly() -> None:
    async def three() -> AsyncIterator[int]:
        for n in range(3):
            yield n

    assert [n async for n in responses(three())] == [0, 1, 2]


async def test_call_on_a_closed_channel_is_an_error_of_the_tree() -> None:
    channel = open_channel("127.0.0.1:1")
    await channel.close()
    with pytest.raises(UnavailableError, match="the channel was closed"):
        await execution_pb2_grpc.ExecutionServiceStub(channel).CreateEngine(
            execution_pb2.CreateEngineRequest(context=session_context())
        )
