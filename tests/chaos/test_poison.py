"""Runs that kill their worker each time, and writers that come back too late, over real processes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from grpc import aio

from carrel.client import Event, SocketClient
from carrel.ids import new_id
from carrel.v1 import emitter_pb2, events_pb2
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from tests.chaos.recovery import AGENTS, told, wait_whole
from tests.conftest import Eventually
from tests.e2e.checks import TERMINAL, check_run, check_sequence, until_end
from tests.support.processes import alive, kill_all, worker_pids
from tests.support.stack import RunningStack, running_stack

MAX_ATTEMPTS = 3
SILENCE_S = 2.0
LEASE_S = 2.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes that notice a silence, and an expired lease, soon."""
    environment = {
        "CARREL_EXECUTION_SILENCE_SECONDS": f"{SILENCE_S:g}",
        "CARREL_EXECUTION_LEASE_SECONDS": f"{LEASE_S:g}",
        "CARREL_EXECUTION_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "CARREL_AGENT_INSTANCE_TIMES__HEARTBEAT": "0.5",
    }
    with running_stack(tmp_path_factory.mktemp("poison"), agents=[str(AGENTS)], environment=environment) as running:
        yield running


def _pid(stack: RunningStack, service: str) -> int:
    pid = stack.pid(service)
    assert pid is not None
    return pid


async def _until(client: SocketClient, events: list[Event], run_id: str, count: int) -> Event:
    """Read until the run has so many numbered steps in its latest attempt; the last of them."""
    async with asyncio.timeout(30):
        async for event in client.events():
            events.append(event)
            if event.run_id == run_id and event.data.get("number") == count:
                return event
            assert event.event_type != TERMINAL, told(events)
    raise AssertionError("no more events")


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["exit", "segfault"])
async def test_a_run_that_kills_its_worker_each_time_ends_in_agent_error(
    how: str, stack: RunningStack, eventually: Eventually
) -> None:
    user = f"poison-{how}"
    async with stack.client(user) as client:
        run = await client.execute("die", pipeline=["poison"], params={"how": how})
        events = await until_end(client, run.run_id)
        check_sequence(events, user)
        mine = check_run(events, run.run_id)
        kinds = [event.event_type for event in mine]
        end = mine[-1].data
        assert (end["status"], end["error"]["code"]) == ("FAILED", "WORKER_LOST"), told(mine)
        attempts = [event.data["attempt"] for event in mine if event.event_type == "run_attempt"]
        assert attempts == list(range(2, MAX_ATTEMPTS + 1)), told(mine)
        assert kinds.count("agent_error") == 1, told(mine)
        assert [event.data["attempt"] for event in mine if event.event_type == "agent_thinking"] == [1, 2, 3]
        pids = {event.data["pid"] for event in mine if event.event_type == "agent_thinking"}
        assert len(pids) == MAX_ATTEMPTS
        assert not any(alive(pid) for pid in pids)
        # The pool is healthy: runs go on, and as many workers wait as before.
        for _ in range(3):
            after = await client.execute("go", pipeline=["slow"], params={"steps": 2})
            assert (await until_end(client, after.run_id))[-1].data["status"] == "SUCCEEDED"
    await eventually(lambda: len(worker_pids(_pid(stack, "agent_instance"))) >= 4, what="the warm workers are back")


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_poison_runs_of_one_user_do_not_end_another_s(stack: RunningStack) -> None:
    async with stack.client("poisoner") as poisoner, stack.client("bystander") as bystander:
        runs = [await poisoner.execute("die", pipeline=["poison"], params={"how": how}) for how in ("exit", "segfault")]
        ours = await bystander.execute("go", pipeline=["slow"], params={"steps": 60})
        events = await until_end(bystander, ours.run_id)
        mine = check_run(events, ours.run_id)
        assert mine[-1].data["status"] == "SUCCEEDED"
        assert not [event for event in mine if event.event_type == "run_attempt"], told(mine)
        ended: set[str] = set()
        async with asyncio.timeout(30):
            async for event in poisoner.events():
                if event.event_type == TERMINAL:
                    ended.add(event.run_id)
                if ended == {run.run_id for run in runs}:
                    break


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_events_of_a_lost_attempt_that_come_late_are_refused_by_the_log(stack: RunningStack) -> None:
    user = "late-producer"
    events: list[Event] = []
    async with stack.client(user) as client:
        run = await client.execute("go", pipeline=["slow"], params={"steps": 150})
        first = await _until(client, events, run.run_id, 5)
        kill_all([first.data["pid"]])
        second = await _until(client, events, run.run_id, 3)
        while second.attempt < 2:
            second = await _until(client, events, run.run_id, 3)
        context = stack.run_context(user, thread=run.thread_id, run=run.run_id, request=first.request_id, admitted=True)
        refusals = []
        async with aio.insecure_channel(stack.address("emitter")) as channel:
            # As the first attempt's producer would go on, and as a new one would begin.
            for producer, number in ((f"{run.run_id}:0:1", 50), (f"{run.run_id}:0:9", 1)):
                refusals.append(await _refusal(channel, context, producer, number))
        assert [events_pb2.RefusalReason.Name(refusal.reason) for refusal in refusals] == (
            ["REFUSAL_REASON_STALE_FENCE"] * 2
        ), refusals
        events += await until_end(client, run.run_id)
    check_sequence(events, user)
    mine = check_run(events, run.run_id)
    assert mine[-1].data["status"] == "SUCCEEDED"
    assert not [event for event in mine if event.data.get("text") == "late"]


async def _refusal(channel: aio.Channel, context: Any, producer: str, number: int) -> events_pb2.Refusal:
    item = events_pb2.ProducerEvents(context=context, producer_id=producer, fence=1, attempt=1)
    event = item.events.add(event_id=new_id("ev"), number=number, event_type="agent_thinking", agent_name="slow")
    event.timestamp.GetCurrentTime()
    event.data = b'{"text":"late"}'
    call = EmitterServiceStub(channel).Emit()
    await call.write(emitter_pb2.EmitRequest(items=[item]))
    async with asyncio.timeout(10):
        while True:
            answer = await call.read()
            assert isinstance(answer, emitter_pb2.EmitResponse), "the stream ended"
            for ack in answer.acks:
                if ack.HasField("refusal"):
                    call.cancel()
                    return ack.refusal
                assert not ack.through, f"it was taken: {ack}"


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_a_frozen_agent_instance_that_wakes_says_nothing_of_its_lost_attempt(stack: RunningStack) -> None:
    user = "frozen"
    events: list[Event] = []
    async with stack.client(user) as client:
        run = await client.execute("go", pipeline=["slow"], params={"steps": 100})
        await _until(client, events, run.run_id, 5)
        frozen = stack.kill("agent_instance", signal.SIGSTOP)
        try:
            async with asyncio.timeout(SILENCE_S * 15):
                async for event in client.events():
                    events.append(event)
                    if event.event_type == "run_attempt":
                        break
        finally:
            kill_all([frozen], signal.SIGCONT)
        events += await until_end(client, run.run_id)
    check_sequence(events, user)
    mine = check_run(events, run.run_id)
    assert mine[-1].data["status"] == "SUCCEEDED", told(mine)
    _check_attempts_in_order(mine)
    assert stack.pid("agent_instance") == frozen, "it was not restarted"


def _check_attempts_in_order(mine: list[Event]) -> None:
    """Nothing of an earlier attempt's agent after ``run_attempt`` has told of the next."""
    attempt = 1
    for event in mine:
        if event.event_type == "run_attempt":
            attempt = int(event.data["attempt"])
        elif event.event_type == "agent_thinking":
            assert event.attempt == attempt, told(mine)
    assert attempt > 1, told(mine)


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.parametrize("frozen_s", [SILENCE_S / 2, LEASE_S * 2.5])
async def test_an_execution_that_was_frozen_ends_its_runs_all_the_same(
    frozen_s: float, stack: RunningStack, eventually: Eventually
) -> None:
    """Its store admits one process, so nobody else can have taken the run; its own lease may have expired."""
    user = f"frozen-execution-{frozen_s:g}"
    events: list[Event] = []
    await wait_whole(stack)
    async with stack.client(user) as client, stack.http(user) as http:
        run = await client.execute("go", pipeline=["slow"], params={"steps": 150})
        await _until(client, events, run.run_id, 5)
        frozen = stack.kill("execution", signal.SIGSTOP)
        try:
            await asyncio.sleep(frozen_s)
        finally:
            kill_all([frozen], signal.SIGCONT)
        events += await until_end(client, run.run_id)
        check_sequence(events, user)
        mine = check_run(events, run.run_id)
        assert mine[-1].data["status"] == "SUCCEEDED", told(mine)

        async def status() -> bool:
            return bool((await http.run(run.run_id))["status"] == "SUCCEEDED")

        await eventually(status, within=10)
    assert stack.pid("execution") == frozen, "it was not restarted"
